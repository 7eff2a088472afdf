"""Sweeps: arms, seeds, baseline and metrics, as ``get_sweep(ARG)`` of a file returns them, and their runs.

`param` varies one key and `arm` is one arm; `product`, `zipped` and `chain` make larger sweeps of smaller
ones. All are tuples of `Arm`, so that plain Python works on them too. Of runs: their configs, what their
folders hold already, and the early stages that they share.
"""

import dataclasses
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrl.atomic import atomic_folder, atomic_write
from mmrl.config import Config, resolve
from mmrl.experiment import call, load
from mmrl.run_folder import differing, flat, names_key, read_config
from mmrl.suggest import suggest

AREA = "area:"  # before the name of a metric
_LONGEST = 120  # characters of a label, which is the name of a folder
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")


@dataclass(frozen=True)
class Arm:
    """One setting of the experiment, run with every seed."""

    changes: Mapping[str, Any]  # key of the config, such as "algorithm.name" -> value
    name: str = ""  # the part of its label that was given
    label_keys: tuple[str, ...] = ()  # keys whose values the label holds, after the name


Arms = tuple[Arm, ...]


@dataclass(frozen=True)
class Sweep:
    """An ablation: every arm with every seed, and what is reported of the runs."""

    experiment: str  # FILE[:ARG], as ``mmrl train --config`` takes it
    arms: Arms
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""  # label of the arm that the others are compared with; "" compares none
    # Names in metrics.jsonl, of which the last value is taken; "area:NAME" is the mean height of the curve,
    # which is higher the earlier a run learns.
    metrics: tuple[str, ...] = ("heldout/accuracy", "area:reward/accuracy")


def arm(changes: Mapping[str, Any], label: str = "") -> Arms:
    """One arm. Its label is made of what it changes, unless one is given."""
    return (Arm(dict(changes), label, () if label else tuple(changes)),)


def param(key: str, *values: Any) -> Arms:
    """An arm for each value of one key. Raises ValueError where there is none."""
    if not values:
        raise ValueError(f"param({key!r}) needs values")
    return tuple(Arm({key: value}, "", (key,)) for value in values)


def chain(*parts: Arms) -> Arms:
    """The arms of all parts, one part after the other."""
    return tuple(itertools.chain(*parts))


def product(*parts: Arms) -> Arms:
    """Every combination of an arm of each part, the last part varying fastest.

    Raises ValueError if two parts change the same key.
    """
    return tuple(map(_combine, itertools.product(*parts)))


def zipped(*parts: Arms) -> Arms:
    """The first arm of each part together, then the second of each, and so on.

    Raises ValueError if the parts are of different length, or two change the same key.
    """
    sizes = [len(part) for part in parts]
    if len(set(sizes)) > 1:
        raise ValueError(f"zipped: the parts should be equally long, and are of {sizes}")
    return tuple(map(_combine, zip(*parts, strict=True)))


def form(sweep: Sweep, arg: str) -> Sweep:
    """The sweep as it is (``arg`` ""), or its ``smoke`` form: the experiment's, with the first seed alone.

    Raises ValueError if there is no such form.
    """
    if arg == "":
        return sweep
    if arg == "smoke":
        return replace(sweep, experiment=f"{sweep.experiment}:smoke", seeds=sweep.seeds[:1])
    raise ValueError(f"there is no form {arg!r}; leave it out, or write ':smoke'")


def open_sweep(file: str) -> Sweep:
    """The sweep that ``get_sweep(ARG)`` of FILE[:ARG] returns, checked.

    Raises:
      ValueError: no such file or form, or a sweep that cannot be run; no config is looked at yet.
    """
    sweep = call(file, "get_sweep", f"sweep {file}")
    if not isinstance(sweep, Sweep):
        raise ValueError(f"sweep {file}: get_sweep returned {type(sweep).__name__}, and no mmrl.sweep.Sweep")
    try:
        _check(sweep)
    except ValueError as error:
        raise ValueError(f"sweep {file}: {error}") from error
    return sweep


def name_of(file: str) -> str:
    """Name of the sweep of FILE[:ARG]."""
    return Path(file.partition(":")[0]).stem


def labels(arms: Arms) -> tuple[str, ...]:
    """Label of each arm: short, and fit for the name of a folder.

    A key is named by the end of it that no other key of the sweep shares; one that is the same in all arms
    is left out, where something else remains.

    Raises ValueError if two arms would have one label, or a name cannot be that of a folder.
    """
    keys = {key for arm in arms for key in arm.changes}
    ends = {key: [".".join(key.split(".")[k:]) for k in range(key.count("."), -1, -1)] for key in keys}
    shared = Counter(end for key in keys for end in ends[key])
    short = {key: next((end for end in ends[key] if shared[end] == 1), key) for key in keys}
    same = {
        key
        for key in keys
        if len(arms) > 1 and all(key in a.changes and a.changes[key] == arms[0].changes[key] for a in arms)
    }
    found = [_label(arm, short, same) for arm in arms]
    if not all(found):
        found = [_label(arm, short, ()) for arm in arms]
    if not all(found):
        raise ValueError('an arm that changes nothing needs a label: arm({}, "base")')
    for label in found:
        if not _SAFE.fullmatch(label) or len(label) > _LONGEST:
            raise ValueError(
                f"the label {label!r} cannot be the name of a folder: give a short one of letters, digits "
                "and _ = , . + - that begins with a letter or digit, as in arm({...}, LABEL)"
            )
    for label, count in Counter(map(str.casefold, found)).items():
        if count > 1:
            raise ValueError(
                f"several arms would be called {label!r}: give them labels, as in arm({{...}}, LABEL)"
            )
    return tuple(found)


def _combine(parts: Sequence[Arm]) -> Arm:
    changes: dict[str, Any] = {}
    for part in parts:
        for key in sorted(changes.keys() & part.changes.keys()):
            raise ValueError(f"{key!r} is changed by two parts of a product or of zipped")
        changes |= part.changes
    name = ",".join(part.name for part in parts if part.name)
    return Arm(changes, name, tuple(key for part in parts for key in part.label_keys))


def _label(one: Arm, short: Mapping[str, str], left_out: Collection[str]) -> str:
    pairs = [f"{short[key]}={_safe(one.changes[key])}" for key in one.label_keys if key not in left_out]
    return ",".join([one.name] * bool(one.name) + pairs)


def _safe(value: Any) -> str:
    """A value in letters that the name of a folder may have."""
    if isinstance(value, tuple | list):
        return "-".join(map(_safe, value))
    return _UNSAFE.sub("-", str(value)).strip("-") or "none"


def _check(sweep: Sweep) -> None:
    known = labels(sweep.arms)
    if not known:
        raise ValueError("there are no arms")
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        raise ValueError(f"seeds={sweep.seeds} should be some numbers, each once")
    if any(type(seed) is not int or seed < 0 for seed in sweep.seeds):
        raise ValueError(f"seeds={sweep.seeds} should be whole numbers from 0")
    if sweep.baseline and sweep.baseline not in known:
        raise ValueError(f"baseline={sweep.baseline!r} is no arm{suggest(sweep.baseline, known)}")
    if not sweep.metrics or not all(isinstance(name, str) and name for name in sweep.metrics):
        raise ValueError(f"metrics={sweep.metrics!r} should be a tuple of names")
    if any("seed" in arm.changes for arm in sweep.arms):
        raise ValueError("an arm changes 'seed': name them in seeds, which all arms are run with")


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


def workdir_of(directory: Path, arm: str, seed: int) -> Path:
    """The folder of one run of the sweep in ``directory``."""
    return directory / arm / f"seed{seed}"


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
    arms = dict(zip(labels(sweep.arms), (arm.changes for arm in sweep.arms), strict=True))
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
        if key in _EARLIER or not names_key(_LATER, key)
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
