"""What is checked before anything is asked for: the files that would run, the experiment, plan and cost."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import shell as shells
from launch.job import Job
from launch.shell import Shell
from mmrl.plan.chips import Topology

ROOT = Path(__file__).resolve().parents[1]  # of the clone: what is copied to machines
PLAN_S = 3600.0  # compiling four programs of a large model takes minutes

# From a job, the slices it is to run on and the size of its model (None: as config.model.path has it) to what
# `mmrl plan --json` prints.
Planner = Callable[[Job, Topology, str | None], str]


@dataclass(frozen=True)
class Source:
    """The files that run elsewhere: ``tree`` names them for ``git archive``, ``commit`` is HEAD."""

    commit: str
    tree: str
    changed: tuple[str, ...] = ()  # tracked files that differ from the commit; they run as they are here
    left: tuple[str, ...] = ()  # files git does not know; they stay here


def source(shell: Shell, *, allow_dirty: bool, root: Path = ROOT) -> Source:
    """What would run: the commit, and with ``allow_dirty`` the changes of tracked files on top of it.

    Raises:
      ValueError: no git repository, or changes and not ``allow_dirty``.
    """
    commit = _git(shell, root, "rev-parse", "HEAD").strip()
    status = _git(shell, root, "status", "--porcelain").splitlines()
    left = tuple(line[3:] for line in status if line.startswith("??"))
    changed = tuple(line[3:] for line in status if not line.startswith("??"))
    if not status:
        return Source(commit, commit)
    if not allow_dirty:
        some = ", ".join((*changed, *left)[:3]) + (", ..." if len(status) > 3 else "")
        raise ValueError(
            f"{len(status)} files are not as in commit {commit[:10]} ({some}): commit them, so that the run "
            "can be told from its commit, or say --allow-dirty"
        )
    # A commit of the changes that no branch points to; nothing is altered here.
    tree = _git(shell, root, "stash", "create").strip() if changed else ""
    return Source(commit, tree or commit, changed, left)


def _git(shell: Shell, root: Path, *words: str) -> str:
    done = shells.run(replace(shell, dry_run=False), ["git", *words], folder=root)
    if done.status:
        raise ValueError(f"git {words[0]} in {root}: {shells.last_line(done)}")
    return done.out


def tracked(shell: Shell, config: str, *, root: Path = ROOT) -> str:
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


def experiment(config: str, overrides: Sequence[str]) -> None:
    """Resolve the experiment as the run will.

    Raises:
      ValueError: as `mmrl train` would say.
    """
    from mmrl.config import resolve
    from mmrl.experiment import load

    resolve(load(config, overrides))


def planner(shell: Shell) -> Planner:
    """What asks the real ``mmrl plan``, in a process of its own: it needs jax to see no device."""

    def plan(job: Job, topology: Topology, model_size: str | None) -> str:
        size = [f"--model-size={model_size}"] if model_size else []
        words = [sys.executable, "-m", "mmrl.cli", "plan", f"--config={job.config}", *job.overrides, *size]
        words += [f"--topology={topology}", "--json", "--quick"]
        done = shells.run(replace(shell, dry_run=False), words, timeout=PLAN_S, folder=ROOT)
        if done.status:
            said = shells.last_line(done).removeprefix("mmrl: ")
            raise ValueError(
                f"mmrl plan says nothing for {topology}: {said} "
                "(--model-size=7b names a published model; --no-plan goes without)"
            )
        return done.out

    return plan


def fits(job: Job, topology: Topology, model_size: str | None, plan: Planner) -> str:
    """One line on how full the memory gets, by ``mmrl plan``.

    Raises:
      ValueError: a program does not fit, or there is no verdict.
    """
    found = json.loads(plan(job, topology, model_size))
    programs = found["plan"]["programs"]
    for one in programs:
        if one["fit"] == "no":
            raise ValueError(
                f"{one['program']} does not fit on {topology}: {_gib(one['needed_bytes'])} of "
                f"{_gib(one['limit_bytes'])} GiB a device; mmrl plan finds smaller batches or a larger slice"
            )
    fullest = max(programs, key=lambda one: one["needed_bytes"])
    share = 100 * fullest["needed_bytes"] / fullest["limit_bytes"]
    return (
        f"{found['model']} on {topology}: all programs fit, {fullest['program']} with {share:.0f} % of "
        f"the memory{' (tight)' if fullest['fit'] == 'tight' else ''}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"


def cost(topology: Topology, hours: float | None) -> str:
    """What the slices cost, in chips: prices differ with place, time and contract."""
    chips = topology.chips
    line = f"{chips} chips of {topology.generation}: {chips} chip-hours an hour"
    return line if hours is None else f"{line}, {chips * hours:g} in {hours:g} h"
