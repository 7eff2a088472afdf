"""From a sweep to its runs: every config resolved, and what their folders hold already."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.atomic import atomic_write
from mmrl.config import Config, resolve
from mmrl.experiment import load
from mmrl.run_folder import differing, read_config
from mmrl.suggest import suggest
from mmrl.sweep.arms import labels, words
from mmrl.sweep.definition import Sweep
from mmrl.sweep.results import workdir_of

FINISHED, BEGUN, NEW = "finished", "begun", "new"  # what a run's folder may hold


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    arm: str
    seed: int
    workdir: Path
    words: tuple[str, ...]  # what ``mmrl train`` is told
    config: Config

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.seed}"


def plan(sweep: Sweep, directory: Path, overrides: Sequence[str] = ()) -> tuple[Member, ...]:
    """The runs of a sweep in the order they are started: all arms of the first seed, then of the second.

    Args:
      sweep: of `open_sweep`.
      directory: the sweep's folder.
      overrides: ``--config.KEY=VALUE`` for all arms.

    Raises:
      ValueError: an arm's config does not resolve (whichever arm it is: all are), an arm does not change what
        it says, two arms are the same run, or ``overrides`` change what the sweep varies.
    """
    known = labels(sweep.arms)
    varied = {"seed"} | {key for one in sweep.arms for key in one.changes}
    for override in overrides:
        key = override.removeprefix("--config.").partition("=")[0]
        if key in varied:
            raise ValueError(f"{override}: config.{key} is what the sweep varies; change the sweep file")
    configs = {
        label: _config(sweep.experiment, label, one.changes, overrides)
        for label, one in zip(known, sweep.arms, strict=True)
    }
    for k, label in enumerate(known):
        for other in known[:k]:
            if configs[label] == configs[other]:
                raise ValueError(f"the arms {other!r} and {label!r} are the same run: leave one out")
    return tuple(
        Member(
            arm=label,
            seed=seed,
            workdir=workdir_of(directory, label, seed),
            words=(
                f"--config={sweep.experiment}",
                f"--workdir={workdir_of(directory, label, seed)}",
                *overrides,
                *words(one.changes),
                f"--config.seed={seed}",
            ),
            config=dataclasses.replace(configs[label], seed=seed),
        )
        for seed in sweep.seeds
        for label, one in zip(known, sweep.arms, strict=True)
    )


def only(members: Sequence[Member], arms: Sequence[str]) -> tuple[Member, ...]:
    """The runs of some arms; of all where none is named. Raises ValueError if there is no such arm."""
    known = list(dict.fromkeys(one.arm for one in members))
    for label in arms:
        if label not in known:
            raise ValueError(f"--arm={label} is no arm of the sweep{suggest(label, known)}")
    return tuple(one for one in members if not arms or one.arm in arms)


def states(members: Sequence[Member]) -> dict[str, str]:
    """What the folder of each run holds, by the run's name: `FINISHED`, `BEGUN` or `NEW`.

    Raises ValueError if a folder holds a run with another config (the keys are named).
    """
    found, wrong = {}, []
    for one in members:
        if not (one.workdir / "config.json").is_file():
            found[one.name] = NEW
            continue
        try:
            keys = differing(one.config, read_config(one.workdir))
        except ValueError as error:
            raise ValueError(f"{one.workdir}: {error}") from error
        if keys:
            wrong.append(f"{one.workdir} holds a run with another config ({'; '.join(keys)})")
        found[one.name] = FINISHED if (one.workdir / "summary.json").is_file() else BEGUN
    if wrong:
        more = f", and {len(wrong) - 1} more such folders" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{more}; name another --workdir, or delete what should be run anew")
    return found


def write_sweep(sweep: Sweep, directory: Path, overrides: Sequence[str]) -> None:
    """Write ``sweep.json``, which says what was asked. Raises ValueError if the folder cannot be written."""
    asked = {
        "experiment": sweep.experiment,
        "overrides": list(overrides),
        "arms": {label: dict(one.changes) for label, one in zip(labels(sweep.arms), sweep.arms, strict=True)},
        "seeds": sweep.seeds,
        "baseline": sweep.baseline,
        "metrics": sweep.metrics,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / "sweep.json", json.dumps(asked, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"--workdir={directory} cannot be written: {error}") from error


def _config(experiment: str, label: str, changes: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """The config of an arm, by the words that its runs are given."""
    try:
        loaded = load(experiment, [*overrides, *words(changes)])
        for key, value in changes.items():
            found: Any = loaded
            for part in key.split("."):
                found = found[part]
            if _plain(found) != _plain(value):
                raise ValueError(f"config.{key}={value!r} is read as {found!r}; write a value of that type")
        return resolve(loaded)
    except ValueError as error:
        raise ValueError(f"arm {label!r}: {error}") from error


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
