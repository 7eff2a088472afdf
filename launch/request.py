"""From the words of a command to a checked job, alike for all launchers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch import checks
from launch.job import Job, check_name, name_of
from launch.shell import Shell
from mmrl.plan.chips import Topology


def arguments(sub: argparse.ArgumentParser) -> None:
    """What every launcher takes, beside ``--config.KEY=VALUE``."""
    sub.add_argument("--config", required=True, metavar="FILE[:ARG]", help="an experiment, as for mmrl train")
    sub.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    sub.add_argument("--dry-run", action="store_true", help="check, print every command, run none")


def remote(sub: argparse.ArgumentParser) -> None:
    """What launchers to other machines take besides."""
    sub.add_argument("--name", help="of what is made there (default: made of --workdir)")
    sub.add_argument("--allow-dirty", action="store_true", help="run changes that are not committed, too")
    sub.add_argument("--model-size", metavar="SIZE", help="a published model, for mmrl plan: 3b, 7b, ...")
    sub.add_argument("--no-plan", action="store_true", help="do not ask mmrl plan whether it fits")
    sub.add_argument("--hours", type=float, metavar="H", help="how long it may take, for the cost in chips")


def job(
    shell: Shell, options: argparse.Namespace, overrides: Sequence[str], root: Path = checks.ROOT
) -> tuple[Job, checks.Source]:
    """The job that the words mean, and the files below ``root`` that would run; says what they are.

    Raises:
      ValueError: a dirty tree, an experiment that does not resolve, or a wrong name.
    """
    name = check_name(options.name) if options.name else name_of(options.workdir)
    checks.experiment(options.config, overrides)
    files = checks.source(shell, allow_dirty=options.allow_dirty, root=root)
    config = checks.tracked(shell, options.config, root=root)
    shell.say(
        f"commit    {files.commit[:10]}"
        + (f" and {len(files.changed)} changed files" if files.changed else "")
    )
    if files.left:
        shell.say(f"          not copied, as git does not know them: {', '.join(files.left)}")
    dirty = files.tree != files.commit
    return Job(name, config, options.workdir, tuple(overrides), files.commit, dirty), files


def afford(
    shell: Shell, options: argparse.Namespace, job: Job, topology: Topology, plan: checks.Planner
) -> None:
    """Say whether the job fits on the slices, and what they cost. Raises ValueError if it does not fit."""
    if options.no_plan:
        shell.say("plan      not asked (--no-plan)")
    else:
        shell.say(f"plan      {checks.fits(job, topology, options.model_size, plan)}")
    shell.say(f"cost      {checks.cost(topology, options.hours)}")
