"""A run as launchers are asked for it, and the checks before anything is started: files, plan and cost."""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from launch import shell as shells
from launch.shell import Shell
from mmrl.plan.chips import Topology
from mmrl.terminal import printable

ROOT = Path(__file__).resolve().parents[1]  # of the clone: what is copied to machines
PLAN_S = 3600.0  # compiling four programs of a large model takes minutes
# Statuses of `mmrl train` (docs/faults.md).
LOST = 75  # another process of the run is gone: the same command goes on
OTHERS = (LOST, 134)  # of a process that ended because another one did
STOPPED = (130, 143)  # asked to stop; the last step is saved
NAME_LENGTH = 40  # of a job; Google Cloud allows 63, and launchers append to it


@dataclass(frozen=True)
class LaunchJob:
    """One run of ``mmrl train``, told apart from where it runs.

    Attributes:
      name: of what is made for it: lower-case letters, digits and hyphens.
      config: an experiment, FILE[:ARG], relative to the root of the clone.
      workdir: the run's folder, as the user names it.
      overrides: ``--config.KEY=VALUE`` words.
      tree: the files that run, for ``git archive``: the commit, or its changes on top of it.
      mesh: sizes of the axes, as the config has them.
    """

    name: str
    config: str
    workdir: str
    overrides: tuple[str, ...] = ()
    tree: str = ""
    mesh: tuple[tuple[str, int], ...] = ()


# From a job, the slices it is to run on and the size of its model (None: as config.model.path has it) to what
# `mmrl plan --json` prints.
Planner = Callable[[LaunchJob, Topology, str | None], str]


def run_arguments(sub: argparse.ArgumentParser) -> None:
    """Options of every launcher, beside ``--config.KEY=VALUE``."""
    sub.add_argument("--config", required=True, metavar="FILE[:ARG]", help="an experiment, as for mmrl train")
    sub.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    sub.add_argument("--dry-run", action="store_true", help="check, print every command, run none")


def remote_arguments(sub: argparse.ArgumentParser, accelerators: str) -> None:
    """Options of launchers to other machines besides."""
    run_arguments(sub)
    sub.add_argument("--name", help="of what is made there (default: made of --workdir)")
    sub.add_argument("--allow-dirty", action="store_true", help="run changes that are not committed, too")
    sub.add_argument("--model-size", metavar="SIZE", help="a published model, for mmrl plan: 3b, 7b, ...")
    sub.add_argument("--no-plan", action="store_true", help="do not ask mmrl plan whether it fits")
    sub.add_argument("--hours", type=float, metavar="H", help="how long it may take, for the cost in chips")
    sub.add_argument("--accelerator", required=True, metavar="SLICE", help=accelerators)
    sub.add_argument(
        "--restarts", type=int, default=10, metavar="N", help="after lost machines (default: %(default)s)"
    )


def verb_arguments(sub: argparse.ArgumentParser, what: str, *, workdir: bool = False) -> None:
    """Options of verbs about a run that was started before."""
    sub.add_argument("--workdir", required=workdir, metavar="DIR", help="the run's folder")
    sub.add_argument("--name", help=f"of the {what} (default: made of --workdir)")
    sub.add_argument("--dry-run", action="store_true", help="print every command, run none")


def check_words(options: argparse.Namespace, *, in_bucket: str) -> PurePosixPath:
    """The folder of a run on other machines.

    Raises:
      ValueError: ``--restarts`` is negative, or the folder is a bucket's address (``in_bucket`` is the fix).
    """
    check_at_least(options, "restarts", 0)
    if options.workdir.startswith("gs://"):
        raise ValueError(f"--workdir={options.workdir}: {in_bucket}")
    return PurePosixPath(options.workdir)


def check_at_least(options: argparse.Namespace, name: str, least: int) -> None:
    """Raises ValueError if an option is a smaller number."""
    value = getattr(options, name)
    if value < least:
        raise ValueError(f"--{name}={value}: {'at least one' if least else '0 or more'}")


def job_name(options: argparse.Namespace, what: str) -> str:
    """``--name``, or one made of ``--workdir``.

    Raises:
      ValueError: neither is given, or Google Cloud and Kubernetes would not take it.
    """
    if options.name:
        return check_name(options.name)
    if not options.workdir:
        raise ValueError(f"which {what}? --name, or the --workdir of its run")
    return name_of(options.workdir)


def name_of(workdir: str) -> str:
    """A job's name made of its folder: the same folder has the same name, another has another.

    "runs/papo_g/seed1" gives "papo-g-seed1-" and six digits that stand for the whole path.
    """
    path = workdir.rstrip("/")
    readable = re.sub("[^a-z0-9]+", "-", "-".join(path.lower().split("/")[-2:])).strip("-")
    readable = re.sub("^(?![a-z])", "r-", readable.removeprefix("runs-"))
    digest = hashlib.sha256(path.encode()).hexdigest()[:6]
    return f"{readable[: NAME_LENGTH - 7].rstrip('-')}-{digest}"


def check_name(name: str) -> str:
    """The name as it is; ValueError if Google Cloud and Kubernetes would not take it."""
    if not re.fullmatch(f"[a-z]([-a-z0-9]{{0,{NAME_LENGTH - 2}}}[a-z0-9])?", name):
        raise ValueError(
            f"--name={name}: at most {NAME_LENGTH} lower-case letters, digits and hyphens, a letter first"
        )
    return name


def train_words(job: LaunchJob, workdir: str, processes: int) -> list[str]:
    """The command that every process of the run starts, its folder being ``workdir`` there."""
    words = ["mmrl", "train", f"--config={job.config}", f"--workdir={workdir}", *job.overrides]
    return [*words, "--coordinator=auto"] if processes > 1 else words


def mesh_sizes(config: str, overrides: Sequence[str]) -> dict[str, int]:
    """Axes of the experiment's mesh, resolved as the run will; ValueError as `mmrl train` would say."""
    from mmrl.config import resolve
    from mmrl.experiment import load

    mesh = resolve(load(config, overrides)).mesh
    return {axis: getattr(mesh, axis) for axis in ("replica", "data", "fsdp", "expert", "tensor")}


def job(shell: Shell, options: argparse.Namespace, overrides: Sequence[str], root: Path) -> LaunchJob:
    """The job that the words mean, with the files below ``root`` that would run; says what they are.

    Raises:
      ValueError: a dirty tree, an experiment that does not resolve or that git does not know, a wrong name.
    """
    name = job_name(options, "run")
    mesh = mesh_sizes(options.config, overrides)
    tree = source(shell, root, allow_dirty=options.allow_dirty)
    config = tracked(shell, root, options.config)
    return LaunchJob(name, config, options.workdir, tuple(overrides), tree, tuple(mesh.items()))


def source(shell: Shell, root: Path, *, allow_dirty: bool) -> str:
    """The files that would run: the commit, and with ``allow_dirty`` changes of tracked files on top of it.

    Raises:
      ValueError: no git repository, or changes and not ``allow_dirty``.
    """
    commit = _git(shell, root, "rev-parse", "HEAD").strip()
    status = _git(shell, root, "status", "--porcelain").splitlines()
    unknown = tuple(line[3:] for line in status if line.startswith("??"))
    changed = tuple(line[3:] for line in status if not line.startswith("??"))
    if status and not allow_dirty:
        some = ", ".join((*changed, *unknown)[:3]) + (", ..." if len(status) > 3 else "")
        raise ValueError(
            f"{len(status)} files are not as in commit {commit[:10]} ({some}): commit them, so that the run "
            "can be told from its commit, or say --allow-dirty"
        )
    shell.say(f"commit    {commit[:10]}" + (f" and {len(changed)} changed files" if changed else ""))
    if unknown:
        shell.say(f"          not copied, as git does not know them: {printable(', '.join(unknown))}")
    # A commit of the changes that no branch points to; nothing is altered here.
    return (_git(shell, root, "stash", "create").strip() if changed else "") or commit


def tracked(shell: Shell, root: Path, config: str) -> str:
    """An experiment FILE[:ARG] as seen from the root of the clone.

    Raises:
      ValueError: the file is not among those that git knows, so that it would not be copied.
    """
    path, colon, form = config.partition(":")
    where = Path(path).resolve()
    known = where.is_relative_to(root) and _git(shell, root, "ls-files", "--", str(where)).strip()
    if not known:
        raise ValueError(
            f"--config={config}: only files that git knows are copied to the machines; `git add` it in {root}"
        )
    return f"{where.relative_to(root)}{colon}{form}"


def _git(shell: Shell, root: Path, *words: str) -> str:
    done = shells.run(replace(shell, dry_run=False), ["git", *words], folder=root)
    if done.status:
        raise ValueError(f"git {words[0]} in {root}: {done.last_line}")
    return done.out


def say_fit_and_cost(
    shell: Shell,
    options: argparse.Namespace,
    job: LaunchJob,
    topology: Topology,
    plan: Planner | None,
) -> None:
    """Say whether the job fits on the slices, and their cost. Raises ValueError if it does not fit."""
    if options.no_plan:
        shell.say("plan      not asked (--no-plan)")
    else:
        shell.say(f"plan      {fits(job, topology, options.model_size, plan or planner(shell))}")
    shell.say(f"cost      {cost(topology, options.hours)}")


def planner(shell: Shell) -> Planner:
    """The real ``mmrl plan``, in a process of its own: it needs jax to see no device."""

    def plan(job: LaunchJob, topology: Topology, model_size: str | None) -> str:
        size = [f"--model-size={model_size}"] if model_size else []
        words = [sys.executable, "-m", "mmrl.cli", "plan", f"--config={job.config}", *job.overrides, *size]
        words += [f"--topology={topology}", "--json", "--quick"]
        done = shells.run(replace(shell, dry_run=False), words, timeout=PLAN_S, folder=ROOT)
        if done.status:
            raise ValueError(
                f"mmrl plan says nothing for {topology}: {done.last_line.removeprefix('mmrl: ')} "
                "(--model-size=7b names a published model; --no-plan goes without)"
            )
        return done.out

    return plan


def fits(job: LaunchJob, topology: Topology, model_size: str | None, plan: Planner) -> str:
    """One line on how full the memory gets, by ``mmrl plan``.

    Raises:
      ValueError: a program does not fit, or there is no verdict.
    """
    found = json.loads(plan(job, topology, model_size))
    programs = found["plan"]["programs"]
    for program in programs:
        if program["fit"] == "no":
            raise ValueError(
                f"{program['program']} does not fit on {topology}: {program['needed_bytes'] / 2**30:.1f} of "
                f"{program['limit_bytes'] / 2**30:.1f} GiB a device; mmrl plan finds smaller batches or a "
                "larger slice"
            )
    fullest = max(programs, key=lambda program: program["needed_bytes"])
    share = 100 * fullest["needed_bytes"] / fullest["limit_bytes"]
    return (
        f"{found['model']} on {topology}: all programs fit, {fullest['program']} with {share:.0f} % of "
        f"the memory{' (tight)' if fullest['fit'] == 'tight' else ''}"
    )


def cost(topology: Topology, hours: float | None) -> str:
    """The cost of the slices, in chips: prices differ with place, time and contract."""
    chips = topology.chips
    line = f"{chips} chips of {topology.generation}: {chips} chip-hours an hour"
    return line if hours is None else f"{line}, {chips * hours:g} in {hours:g} h"
