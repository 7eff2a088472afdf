"""``mmrl sweep``: the runs of an ablation, and their table."""

import argparse
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.commands import option_types
from mmrl.terminal import command, rewrite, tell

if TYPE_CHECKING:
    from mmrl.sweep.execute import Ended
    from mmrl.sweep.plan import Member

EXAMPLES = """\
examples:
  mmrl sweep experiments/sweeps/shapes.py --at-once=2
  mmrl sweep experiments/sweeps/papo_coefficient.py:smoke --arm=grpo --arm=perception_kl=0.02
  mmrl sweep experiments/sweeps/papo_masking.py --config.model.path=DIR --config.data.train=FILE.parquet \\
      --launcher="python -m launch local --processes=4"

FILE defines get_sweep(ARG). What is finished is skipped, what is not goes on from its last checkpoint."""


def arguments(sub: argparse.ArgumentParser) -> None:
    """What the command takes."""
    sub.add_argument("file", metavar="FILE[:ARG]", help="a sweep; --config.KEY=VALUE changes all its runs")
    sub.add_argument(
        "--workdir",
        type=option_types.text,
        metavar="DIR",
        help="folder of the sweep (default: runs/<name of FILE>)",
    )
    sub.add_argument(
        "--at-once",
        type=option_types.count,
        default=1,
        metavar="K",
        help="runs at a time (default: %(default)s)",
    )
    sub.add_argument(
        "--launcher", metavar="WORDS", help="what starts a run, given its words (default: mmrl train)"
    )
    sub.add_argument("--arm", action="append", default=[], metavar="LABEL", help="only this; may be repeated")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--table", action="store_true", help="run nothing, make the table of what there is")
    what.add_argument("--dry-run", action="store_true", help="list the runs and how far they are")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """``mmrl sweep``; exit status 1 if a run failed."""
    launcher = _launcher(options.launcher)
    if options.workdir and "://" in options.workdir:
        raise ValueError(
            f"--workdir={options.workdir}: a sweep looks into its runs; name a folder of this machine"
        )
    from mmrl.sweep.definition import name_of, open_sweep
    from mmrl.sweep.plan import FINISHED, only, plan, states, write_sweep
    from mmrl.sweep.results import load_sweep, write_table

    sweep = open_sweep(options.file)
    directory = Path(options.workdir or Path("runs") / name_of(options.file))
    members = plan(sweep, directory, overrides)
    chosen = only(members, options.arm)
    found = states(members)
    if options.dry_run:
        for one in chosen:
            words = (
                "" if found[one.name] == FINISHED else command(*(launcher or ("mmrl", "train")), *one.words)
            )
            tell(f"{found[one.name]:<10}{one.name}  {words}".rstrip())
        return
    if launcher and shutil.which(launcher[0]) is None:
        raise ValueError(f"--launcher={options.launcher!r}: there is no program {launcher[0]!r}")
    write_sweep(sweep, directory, overrides)
    ended = None
    if not options.table:
        pending = [one for one in chosen if found[one.name] != FINISHED]
        ended = _execute(members, pending, launcher, options.at_once)
    tell(write_table(load_sweep(directory)))
    made = ", ".join(str(directory / name) for name in ("table.md", "table.csv"))
    tell(f"table     {made}; values {directory / 'runs.csv'}")
    if ended is not None:
        _tell(ended, found, chosen)


def _launcher(text: str | None) -> tuple[str, ...] | None:
    """The words of --launcher. Raises ValueError if there are none."""
    if text is None:
        return None
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"--launcher={text!r}: {error}") from error
    if not words:
        raise ValueError("--launcher is empty: leave it out, or name a program")
    return words


def _execute(
    members: Sequence["Member"], pending: Sequence["Member"], launcher: Sequence[str] | None, at_once: int
) -> "Ended":
    from mmrl.sweep.execute import execute

    tell(f"{len(members)} runs, {len(pending)} to be run, {at_once} at once")
    command = launcher or (sys.executable, "-m", "mmrl.cli", "train")
    show = _live if sys.stdout.isatty() else _plain()
    ended = execute(members, pending, command, at_once, wait=launcher is None, show=show)
    tell()
    return ended


def _live(line: str) -> None:
    rewrite(line, last=False)


def _plain() -> Callable[[str], None]:
    """Shows a line where something besides the time has changed."""
    last = ""

    def show(line: str) -> None:
        nonlocal last
        what = line.partition("  [")[0]
        if what != last:
            tell(line)
        last = what

    return show


def _tell(ended: "Ended", found: dict[str, str], chosen: Sequence["Member"]) -> None:
    """Say what is not finished, and leave with the status of that."""
    for one in ended.elsewhere:
        tell(f"ended     {one.name}: {one.workdir} has no summary.json; fetch it, then run this with --table")
    for one, said in ended.failed:
        tell(f"failed    {one.name}: {said}\n          {one.workdir / 'log.txt'}", error=True)
    if ended.signal is not None:
        name = signal.Signals(ended.signal).name
        tell(f"mmrl: stopped by {name}; the same command goes on from here", error=True)
        raise SystemExit(128 + ended.signal)
    if ended.failed:
        tell(f"mmrl: {len(ended.failed)} runs failed; the same command tries them again", error=True)
        raise SystemExit(1)
