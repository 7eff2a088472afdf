"""Arms of a sweep: what each changes of the experiment, and what to call it.

`param` varies one key and `arm` is one arm; `product`, `zipped` and `chain` make larger sweeps of smaller
ones. All are tuples of `Arm`, so that plain Python works on them too.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LONGEST = 120  # characters of a label, which is the name of a folder
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")


@dataclass(frozen=True)
class Arm:
    """One setting of the experiment, run with every seed."""

    changes: Mapping[str, Any]  # key of the config, such as "algorithm.name" -> value
    name: str = ""  # what is known of its label
    spelt: tuple[str, ...] = ()  # keys that the label spells out behind the name


Arms = tuple[Arm, ...]


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
    return tuple(_together(combination) for combination in itertools.product(*parts))


def zipped(*parts: Arms) -> Arms:
    """The first arm of each part together, then the second of each, and so on.

    Raises ValueError if the parts are of different length, or two change the same key.
    """
    sizes = [len(part) for part in parts]
    if len(set(sizes)) > 1:
        raise ValueError(f"zipped: the parts should be equally long, and are of {sizes}")
    return tuple(_together(combination) for combination in zip(*parts, strict=True))


def labels(arms: Arms) -> tuple[str, ...]:
    """What to call each arm: short, and fit for the name of a folder.

    A key is named by the end of it that no other key of the sweep shares; one that is the same in all arms
    is left out, where something else remains.

    Raises ValueError if two arms would be called alike, or a name cannot be that of a folder.
    """
    spelt = [_spelt(one, _short(arms), _same(arms)) for one in arms]
    if not all(spelt):
        spelt = [_spelt(one, _short(arms), frozenset()) for one in arms]
    if not all(spelt):
        raise ValueError('an arm that changes nothing needs a label: arm({}, "base")')
    for label in spelt:
        if not _SAFE.fullmatch(label) or len(label) > _LONGEST:
            raise ValueError(
                f"the label {label!r} cannot be the name of a folder: give a short one of letters, digits "
                "and _ = , . + - that begins with a letter or digit, as in arm({...}, LABEL)"
            )
    alike = [label for label, count in Counter(map(str.casefold, spelt)).items() if count > 1]
    if alike:
        raise ValueError(
            f"several arms would be called {alike[0]!r}: give them labels, as in arm({{...}}, LABEL)"
        )
    return tuple(spelt)


def words(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """``--config.KEY=VALUE`` for each change, as `mmrl.experiment.load` reads it."""
    return tuple(
        f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in changes.items()
    )


def _together(parts: Sequence[Arm]) -> Arm:
    changes: dict[str, Any] = {}
    for part in parts:
        twice = sorted(changes.keys() & part.changes.keys())
        if twice:
            raise ValueError(f"{twice[0]!r} is changed by two parts of a product or of zipped")
        changes |= part.changes
    return Arm(
        changes,
        ",".join(part.name for part in parts if part.name),
        tuple(key for part in parts for key in part.spelt),
    )


def _spelt(one: Arm, short: Mapping[str, str], same: frozenset[str]) -> str:
    pairs = [f"{short[key]}={_text(one.changes[key])}" for key in one.spelt if key not in same]
    return ",".join([*([one.name] if one.name else []), *pairs])


def _short(arms: Arms) -> dict[str, str]:
    """Of every key, the shortest end that tells it from the others."""
    keys = sorted({key for one in arms for key in one.changes})
    ends = {key: [".".join(key.split(".")[k:]) for k in range(key.count("."), -1, -1)] for key in keys}
    shared = Counter(end for key in keys for end in ends[key])
    return {key: next((end for end in ends[key] if shared[end] == 1), key) for key in keys}


def _same(arms: Arms) -> frozenset[str]:
    """Keys that every arm gives the same value."""
    if len(arms) < 2:
        return frozenset()
    first, *others = arms
    return frozenset(
        key
        for key, value in first.changes.items()
        if all(key in one.changes and one.changes[key] == value for one in others)
    )


def _text(value: Any) -> str:
    """A value in letters that the name of a folder may have."""
    if isinstance(value, tuple | list):
        return "-".join(map(_text, value))
    return _UNSAFE.sub("-", str(value)).strip("-") or "none"
