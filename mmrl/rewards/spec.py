"""Reward composition: weights that may follow the run, gates, and bonuses within a group.

A `RewardSpec` says how responses to the rows of a data set are graded and rewarded. It is made of
``config.reward``, of which each data set may have keys of its own under ``sources``, and each row
``facts["weights"]``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from mmrl.rewards.group import BONUSES, GradedGroup
from mmrl.rewards.verifier import Verifier, load_verifiers, score, user_names, verifier_names
from mmrl.suggest import suggest

Points = tuple[tuple[float, float], ...]  # (share of the run, weight)
SOURCE_KEYS: dict[str, tuple[Any, str]] = {  # that a data set may have, and their types
    **dict.fromkeys(("weights", "gates", "options"), (Mapping, "an object")),
    **dict.fromkeys(("bonuses", "also"), ((list, tuple), "a list of names")),
    "verifier": (str, "a name"),
}
_GATE = re.compile(r"\s*(\w+)\s*(?:>=\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*)?")


class Gate(NamedTuple):
    """A condition on a response: a component of it is at least so large."""

    component: str
    least: float


@dataclass(frozen=True)
class RewardSpec:
    """Rules by which responses are graded and rewarded."""

    weights: Mapping[str, Points]  # of components
    gates: Mapping[str, tuple[Gate, ...]]  # a component counts only where all its gates hold
    bonuses: tuple[str, ...] = ()  # keys of `mmrl.rewards.group.BONUSES`
    verifier: str = ""  # overrules the one that rows name
    also: tuple[str, ...] = ()  # verifiers that grade every response, besides the row's
    options: Mapping[str, Any] = field(default_factory=dict)  # facts that rows leave out

    @property
    def needs(self) -> frozenset[str]:
        """Components that must be reported: those weighted and those that gates or bonuses read."""
        gates = {gate.component for gates in self.gates.values() for gate in gates}
        read = {name for bonus in self.bonuses for name in BONUSES[bonus].reads}
        return frozenset({*self.weights, *gates, *read} - set(self.bonuses))

    def verifiers(self, named: str) -> str:
        """The verifiers, joined by "+", of a row that names ``named``."""
        return "+".join(dict.fromkeys([*(self.verifier or named).split("+"), *self.also]))


def reward_spec(reward: Mapping[str, Any], source: str = "") -> RewardSpec:
    """The spec for the rows of a data set; a file may be named without its ending.

    ``reward`` is ``config.reward`` as a dict. ``weights``: component -> a number, or points ((share of the
    run, weight), ...) between which it is interpolated; ``gates``: component -> "format", "iou>=0.5", or
    several of these ("format" alone means at least 1); ``bonuses``, ``verifier``, ``also``, ``options``;
    ``sources``: name of a data set -> keys of these that hold for it instead (options: besides). Raises
    ValueError naming the key for what is not of this form or names what does not exist.
    """
    sources = reward.get("sources", {})
    own = sources.get(source) or sources.get(PurePath(source).stem) or {}
    path = f"config.reward.sources[{source!r}]" if own else "config.reward"
    if not isinstance(own, Mapping):
        raise ValueError(f"{path}={own!r} should have the keys {', '.join(SOURCE_KEYS)}")
    for key, value in own.items():
        if key not in SOURCE_KEYS:
            raise ValueError(f"{path} has the key {key!r}; a data set may have {', '.join(SOURCE_KEYS)}")
        kind, noun = SOURCE_KEYS[key]
        names = value if isinstance(value, list | tuple) else ()
        if not isinstance(value, kind) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}.{key}={value!r} should be {noun}")
    merged = {**reward, **own, "options": {**reward.get("options", {}), **own.get("options", {})}}
    weights = read_weights(merged["weights"], f"{path}.weights")
    gates = {
        name: _gates(conditions, f"{path}.gates[{name!r}]")
        for name, conditions in dict(merged.get("gates", {})).items()
        # what a data set takes over from the run has no say about components that it does not weigh
        if name in weights or "weights" not in own or "gates" in own
    }
    bonuses = tuple(
        name
        for name in merged.get("bonuses", ())
        if name in weights or "weights" not in own or "bonuses" in own
    )
    for name in gates:
        if name not in weights:
            raise ValueError(f"{path}.gates[{name!r}]: no weight is given to {name!r}, so it has no gate")
    for name in bonuses:
        if name not in BONUSES:
            raise ValueError(f"{path}.bonuses: {name!r} is unknown{suggest(name, BONUSES)}")
        if name not in weights:
            raise ValueError(f"{path}.bonuses: give {name!r} a weight in {path}.weights")
    verifier, also = merged.get("verifier", ""), tuple(merged.get("also", ()))
    for key, names in (("verifier", (verifier,) if verifier else ()), ("also", also)):
        try:
            for name in names:
                verifier_names(name, user_names(name))
        except ValueError as error:
            raise ValueError(f"{path}.{key}: {error}") from error
    return RewardSpec(weights, gates, bonuses, verifier, also, merged["options"])


def user_verifiers(reward: Mapping[str, Any]) -> dict[str, Verifier]:
    """User-defined verifiers, "FILE.py:function", that ``config.reward``, as a dict, has for any data set.

    Raises ValueError if one is not there.
    """
    specs = [reward_spec(reward, source) for source in ("", *reward.get("sources", {}))]
    return load_verifiers(
        user_names("+".join(name for spec in specs for name in (spec.verifier, *spec.also)))
    )


def read_weights(weights: Any, path: str) -> dict[str, Points]:
    """Weights as points. Raises ValueError naming ``path`` if they are none, or nothing is weighted."""
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{path} is empty: every reward would be 0")
    return {str(name): _points(value, f"{path}[{name!r}]") for name, value in weights.items()}


def _points(value: Any, path: str) -> Points:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return ((0.0, float(value)),)
    try:
        points = tuple((float(share), float(weight)) for share, weight in value)
    except (TypeError, ValueError):
        points = ()
    shares = [share for share, _ in points]
    rising = all(a < b for a, b in pairwise(shares)) and all(0 <= share <= 1 for share in shares)
    if not points or not rising or not all(math.isfinite(weight) for _, weight in points):
        raise ValueError(
            f"{path}={value!r} should be a number, or points ((share of the run, weight), ...) with shares"
            " that rise within 0 and 1"
        )
    return points


def weight_at(points: Points, progress: float) -> float:
    """The weight when the share ``progress`` of the run is done; constant before and after the points."""
    shares, weights = zip(*points, strict=True)
    return float(np.interp(progress, shares, weights))


def _gates(value: Any, path: str) -> tuple[Gate, ...]:
    gates = []
    for text in value if isinstance(value, list | tuple) else (value,):
        match = _GATE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f'{path}={text!r} should read "component" or "component>=0.5", or several of these'
            )
        gates.append(Gate(match[1], float(match[2] or 1.0)))
    return tuple(gates)


def compute_rewards(
    spec: RewardSpec, components: Sequence[Mapping[str, float]], group: GradedGroup, progress: float
) -> tuple[list[float], list[dict[str, float]]]:
    """Rewards of the responses of a group that could be graded, and their components with the bonuses.

    ``progress`` is the share of the run that is done. Raises ValueError if a weighted component is missing.
    """
    if not components:
        return [], []
    bonuses = {name: BONUSES[name].value(components, group) for name in spec.bonuses}
    complete = [
        {**row, **{name: float(values[k]) for name, values in bonuses.items()}}
        for k, row in enumerate(components)
    ]
    weights = {name: weight_at(points, progress) for name, points in spec.weights.items()}
    rewards = []
    for row in complete:
        closed = [name for name, gates in spec.gates.items() if any(row[c] < least for c, least in gates)]
        rewards.append(score({**row, **dict.fromkeys(closed, 0.0)}, weights))
    return rewards, complete
