"""Runs of a sweep: their configs, what their folders hold already, and the early stages that they share."""

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.atomic import atomic_folder, atomic_write
from mmrl.config import Config, resolve
from mmrl.experiment import load
from mmrl.run_folder import differing, flat, read_config
from mmrl.suggest import suggest
from mmrl.sweep.definition import Sweep, labels
from mmrl.sweep.results import workdir_of

FINISHED, BEGUN, NEW = "finished", "begun", "new"  # states of a run's folder

# Keys that neither the world nor the cold start reads. All others must agree, whether or not they matter.
_LATER = (
    *("algorithm.", "corruption.", "evaluation.", "reward.", "rollout.", "train."),
    *("data.curriculum.", "data.heldout", "data.stages", "data.temperature", "data.train"),
    *("optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_updates"),
)
_EARLIER = ("train.max_skipped",)  # among these, what the cold start does read


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    arm: str
    seed: int
    workdir: Path
    words: tuple[str, ...]  # arguments of ``mmrl train``
    config: Config

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.seed}"


def plan_runs(sweep: Sweep, directory: Path, overrides: Sequence[str] = ()) -> tuple[SweepRun, ...]:
    """The runs of a sweep in the order they are started: all arms of the first seed, then of the second.

    Args:
      sweep: of `open_sweep`.
      directory: the sweep's folder.
      overrides: ``--config.KEY=VALUE`` for all arms.

    Raises:
      ValueError: an arm's config does not resolve (whichever arm it is: all are), an arm does not change what
        it says, two arms are the same run, or ``overrides`` change what the sweep varies.
    """
    arms = dict(zip(labels(sweep.arms), (one.changes for one in sweep.arms), strict=True))
    varied = {"seed"}.union(*arms.values())
    for override in overrides:
        key = override.removeprefix("--config.").partition("=")[0]
        if key in varied:
            raise ValueError(f"{override}: config.{key} is what the sweep varies; change the sweep file")
    configs = {label: _config(sweep.experiment, label, arms[label], overrides) for label in arms}
    for one, other in itertools.combinations(arms, 2):
        if configs[one] == configs[other]:
            raise ValueError(f"the arms {one!r} and {other!r} are the same run: leave one out")
    return tuple(
        SweepRun(
            arm=label,
            seed=seed,
            workdir=(workdir := workdir_of(directory, label, seed)),
            words=(
                *(f"--config={sweep.experiment}", f"--workdir={workdir}", *overrides),
                *(*config_words(changes), f"--config.seed={seed}"),
            ),
            config=dataclasses.replace(configs[label], seed=seed),
        )
        for seed in sweep.seeds
        for label, changes in arms.items()
    )


def config_words(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """``--config.KEY=VALUE`` for each change, as `mmrl.experiment.load` reads it."""
    texts = {key: value if isinstance(value, str) else repr(value) for key, value in changes.items()}
    return tuple(f"--config.{key}={text}" for key, text in texts.items())


def select_arms(runs: Sequence[SweepRun], arms: Sequence[str]) -> tuple[SweepRun, ...]:
    """The runs of some arms; of all where none is named. Raises ValueError if there is no such arm."""
    known = list(dict.fromkeys(run.arm for run in runs))
    for label in arms:
        if label not in known:
            raise ValueError(f"--arm={label} is no arm of the sweep{suggest(label, known)}")
    return tuple(run for run in runs if not arms or run.arm in arms)


def run_states(runs: Sequence[SweepRun]) -> dict[str, str]:
    """State of the folder of each run, by the run's name: `FINISHED`, `BEGUN` or `NEW`.

    Raises ValueError if a folder holds a run with another config (the keys are named).
    """
    states, wrong = {}, []
    for run in runs:
        if not (run.workdir / "config.json").is_file():
            states[run.name] = NEW
            continue
        try:
            keys = differing(run.config, read_config(run.workdir))
        except ValueError as error:
            raise ValueError(f"{run.workdir}: {error}") from error
        if keys:
            wrong.append(f"{run.workdir} holds a run with another config ({'; '.join(keys)})")
        states[run.name] = FINISHED if (run.workdir / "summary.json").is_file() else BEGUN
    if wrong:
        more = f", and {len(wrong) - 1} more such folders" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{more}; name another --workdir, or delete what should be run anew")
    return states


def write_sweep(sweep: Sweep, directory: Path, overrides: Sequence[str]) -> None:
    """Write ``sweep.json``, the definition of a sweep. Raises ValueError if the folder cannot be written."""
    content = {
        "experiment": sweep.experiment,
        "overrides": list(overrides),
        "arms": {label: dict(one.changes) for label, one in zip(labels(sweep.arms), sweep.arms, strict=True)},
        "seeds": sweep.seeds,
        "baseline": sweep.baseline,
        "metrics": sweep.metrics,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic_write(directory / "sweep.json", json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"--workdir={directory} cannot be written: {error}") from error


def early_stages(config: Config) -> tuple[str, ...]:
    """Folders of the stages before reinforcement learning, in a run's folder."""
    return (("world",) if config.world.train else ()) + (("cold_start",) if config.cold_start.steps else ())


def early_stages_done(run: SweepRun) -> bool:
    """True if all early stages are finished in the run's folder. The file looked for is their last."""
    models = (run.workdir / stage / "model" for stage in early_stages(run.config))
    return all((model / "config.json").is_file() for model in models)


def early_config(config: Config) -> dict[str, object]:
    """The keys of a config that the early stages depend on, the seed among them, with their values."""
    return {
        key: value
        for key, value in flat(dataclasses.asdict(config)).items()
        if key in _EARLIER
        or not any(key == name or (name.endswith(".") and key.startswith(name)) for name in _LATER)
    }


def share_stages(run: SweepRun, runs: Iterable[SweepRun]) -> SweepRun | None:
    """Put the stages that another run has finished into the folder of ``run``, if they would come out alike.

    A stage that is begun there is left alone. Files are hard links where the disk has them: stages that are
    finished are only read.

    Returns: the run whose stages they are; None if there were none to share.
    """
    wanted = [stage for stage in early_stages(run.config) if not (run.workdir / stage).exists()]
    if not wanted or early_stages_done(run):
        return None
    for donor in runs:
        there = donor.name != run.name and (donor.workdir / "config.json").is_file()
        if not there or not early_stages_done(donor):
            continue
        if early_config(read_config(donor.workdir)) == early_config(run.config):
            for stage in wanted:
                with atomic_folder(run.workdir / stage) as part:
                    shutil.copytree(donor.workdir / stage, part, copy_function=_link, dirs_exist_ok=True)
            return donor
    return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _config(experiment: str, label: str, changes: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """The config of an arm, from the words that its runs are given."""
    try:
        loaded = load(experiment, [*overrides, *config_words(changes)])
        for key, value in changes.items():
            found: Any = loaded
            for part in key.split("."):
                found = found[part]
            if _as_tuples(found) != _as_tuples(value):
                raise ValueError(f"config.{key}={value!r} is read as {found!r}; write a value of that type")
        return resolve(loaded)
    except ValueError as error:
        raise ValueError(f"arm {label!r}: {error}") from error


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
