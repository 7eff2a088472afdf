"""Definition of a sweep: arms, seeds, baseline and metrics, as ``get_sweep(ARG)`` of a file returns them.

`param` varies one key and `arm` is one arm; `product`, `zipped` and `chain` make larger sweeps of smaller
ones. All are tuples of `Arm`, so that plain Python works on them too.
"""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrl.experiment import call
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
    keys = {key for one in arms for key in one.changes}
    ends = {key: [".".join(key.split(".")[k:]) for k in range(key.count("."), -1, -1)] for key in keys}
    shared = Counter(end for key in keys for end in ends[key])
    short = {key: next((end for end in ends[key] if shared[end] == 1), key) for key in keys}
    same = {
        key
        for key in keys
        if len(arms) > 1 and all(key in a.changes and a.changes[key] == arms[0].changes[key] for a in arms)
    }
    found = [_label(one, short, same) for one in arms]
    if not all(found):
        found = [_label(one, short, ()) for one in arms]
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
    if any("seed" in one.changes for one in sweep.arms):
        raise ValueError("an arm changes 'seed': name them in seeds, which all arms are run with")
