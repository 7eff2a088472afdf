"""``mmrl sweep``: the runs of an ablation, and their table."""

import argparse
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl.commands import options as option
from mmrl.commands.options import Command
from mmrl.terminal import command, rewrite, tell

if TYPE_CHECKING:
    from mmrl.sweep.execute import Outcome


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub.add_argument("file", metavar="FILE[:ARG]", help="a sweep; --config.KEY=VALUE changes all its runs")
    sub.add_argument(
        "--workdir",
        type=option.text,
        metavar="DIR",
        help="folder of the sweep (default: runs/<name of FILE>)",
    )
    sub.add_argument(
        "--at-once",
        type=option.count,
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
    """Run what is not finished, and write the table; exit status 1 if a run failed."""
    launcher = _launcher(options.launcher)
    if options.workdir and "://" in options.workdir:
        raise ValueError(
            f"--workdir={options.workdir}: a sweep looks into its runs; name a folder of this machine"
        )
    from mmrl.sweep.definition import (
        FINISHED,
        name_of,
        open_sweep,
        plan_runs,
        run_states,
        select_arms,
        write_sweep,
    )
    from mmrl.sweep.execute import execute
    from mmrl.sweep.results import load_sweep, write_table

    sweep = open_sweep(options.file)
    directory = Path(options.workdir or Path("runs") / name_of(options.file))
    runs = plan_runs(sweep, directory, overrides)
    chosen, states = select_arms(runs, options.arm), run_states(runs)
    pending = [run for run in chosen if states[run.name] != FINISHED]
    if options.dry_run:
        for planned in chosen:
            words = command(*(launcher or ("mmrl", "train")), *planned.words) if planned in pending else ""
            tell(f"{states[planned.name]:<10}{planned.name}  {words}".rstrip())
        return
    if launcher and shutil.which(launcher[0]) is None:
        raise ValueError(f"--launcher={options.launcher!r}: there is no program {launcher[0]!r}")
    write_sweep(sweep, directory, overrides)
    outcome = None
    if not options.table:
        tell(f"{len(runs)} runs, {len(pending)} to be run, {options.at_once} at once")
        start = launcher or (sys.executable, "-m", "mmrl.cli", "train")
        show = _rewrite if sys.stdout.isatty() else _print_changes()
        outcome = execute(runs, pending, start, options.at_once, wait=launcher is None, show=show)
        tell()
    tell(write_table(load_sweep(directory)))
    tell(f"table     {directory / 'table.md'}, {directory / 'table.csv'}; values {directory / 'runs.csv'}")
    if outcome is not None:
        _print_unfinished(outcome)


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


def _rewrite(line: str) -> None:
    rewrite(line, last=False)


def _print_changes() -> Callable[[str], None]:
    """Prints a line of progress where something besides the time has changed."""
    last = ""

    def show(line: str) -> None:
        nonlocal last
        if line.partition("  [")[0] != last:
            tell(line)
        last = line.partition("  [")[0]

    return show


def _print_unfinished(outcome: "Outcome") -> None:
    """Print the runs that are not finished, and exit with the status of that."""
    for run in outcome.elsewhere:
        tell(f"ended     {run.name}: {run.workdir} has no summary.json; fetch it, then run this with --table")
    for run, line in outcome.failed:
        tell(f"failed    {run.name}: {line}\n          {run.workdir / 'log.txt'}", error=True)
    if outcome.signal is not None:
        name = signal.Signals(outcome.signal).name
        tell(f"mmrl: stopped by {name}; the same command goes on from here", error=True)
        raise SystemExit(128 + outcome.signal)
    if outcome.failed:
        tell(f"mmrl: {len(outcome.failed)} runs failed; the same command tries them again", error=True)
        raise SystemExit(1)


_EXAMPLES = """\
examples:
  mmrl sweep experiments/sweeps/shapes.py --at-once=2
  mmrl sweep experiments/sweeps/papo_coefficient.py:smoke --arm=grpo --arm=perception_kl=0.02
  mmrl sweep experiments/sweeps/papo_masking.py --config.model.path=DIR --config.data.train=FILE.parquet \\
      --launcher="python -m launch local --processes=4"

FILE defines get_sweep(ARG). What is finished is skipped, what is not goes on from its last checkpoint."""
SWEEP = Command(
    "sweep", "Run an ablation, and make its table.", _EXAMPLES, add_arguments, run, takes_config=True
)
