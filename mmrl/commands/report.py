"""``mmrl report``: one page about runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmrl.commands import options as option
from mmrl.commands.options import Command
from mmrl.terminal import tell


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub.add_argument(
        "runs",
        nargs="+",
        type=option.path,
        metavar="RUN",
        help="a run's folder, or one with runs in it, as of a sweep",
    )
    sub.add_argument(
        "--out", type=option.path, default=Path("report.html"), help="the page (default: %(default)s)"
    )
    sub.add_argument(
        "--rollouts",
        type=option.integer(0),
        default=24,
        metavar="N",
        help="responses to look at, in all; 0 reads no weights (default: %(default)s)",
    )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Write the page."""
    if options.out.is_dir():
        raise ValueError(
            f"--out={options.out} is a folder; name a file, such as {options.out / 'report.html'}"
        )
    if not options.out.absolute().parent.is_dir():
        raise ValueError(f"--out={options.out}: there is no folder {options.out.absolute().parent}")
    from mmrl.atomic import atomic_write
    from mmrl.report.report import find_runs, report

    workdirs = find_runs(options.runs)
    atomic_write(options.out, report(workdirs, options.rollouts, tell))
    tell(f"{options.out}  ({options.out.stat().st_size / 1e6:.1f} MB, needs no other file)")


_EXAMPLES = """\
examples:
  mmrl report runs/quickstart runs/vppo --out=report.html

One HTML page about runs, which needs no other file and no network."""
REPORT = Command("report", "Write a page about runs.", _EXAMPLES, add_arguments, run)
