"""One reward out of components: weights that may follow the run, gates, and bonuses within a group.

A `Rule` says how responses to the rows of a data set are graded and paid. It is made of ``config.reward``, of
which each data set may have keys of its own under ``sources``, and each row ``facts["weights"]``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from mmrl.rewards.group import BONUSES, Group
from mmrl.rewards.verifier import Verifier, names_of, own_names, own_verifiers, score
from mmrl.suggest import suggest

Points = tuple[tuple[float, float], ...]  # (share of the run, weight)
OWN_KEYS = {  # that a data set may have, and what they are
    **dict.fromkeys(("weights", "gates", "options"), "an object"),
    **dict.fromkeys(("bonuses", "also"), "a list of names"),
    "verifier": "a name",
}
_GATE = re.compile(r"\s*(\w+)\s*(?:>=\s*([-+.\d]+)\s*)?")


class Gate(NamedTuple):
    """A condition on a response: a component of it is at least so large."""

    component: str
    least: float


@dataclass(frozen=True)
class Rule:
    """How responses are graded and paid."""

    weights: Mapping[str, Points]  # of components
    gates: Mapping[str, tuple[Gate, ...]]  # a component counts only where all its gates hold
    bonuses: tuple[str, ...] = ()  # keys of `mmrl.rewards.group.BONUSES`
    verifier: str = ""  # overrules the one that rows name
    also: tuple[str, ...] = ()  # verifiers that grade every response, besides the row's
    options: Mapping[str, Any] | None = None  # facts that rows leave out

    @property
    def needs(self) -> frozenset[str]:
        """Components that must be reported: those weighted and those that gates or bonuses read."""
        gates = {gate.component for gates in self.gates.values() for gate in gates}
        read = {name for bonus in self.bonuses for name in BONUSES[bonus].reads}
        return frozenset({*self.weights, *gates, *read} - set(self.bonuses))

    def verifiers(self, named: str) -> str:
        """The verifiers, joined by "+", of a row that names ``named``."""
        return "+".join(dict.fromkeys([*(self.verifier or named).split("+"), *self.also]))


def rule(reward: Mapping[str, Any], source: str = "") -> Rule:
    """The rule for the rows of a data set.

    Args:
      reward: ``config.reward`` as a dict. ``weights``: component -> a number, or points ((share of the run,
        weight), ...) between which it is interpolated; ``gates``: component -> "format", "iou>=0.5", or
        several of these ("format" alone means at least 1); ``bonuses``, ``verifier``, ``also``, ``options``;
        ``sources``: name of a data set -> keys of these that hold for it instead (options: besides).
      source: the name of the data set; a file may be named without its ending.

    Raises ValueError naming the key for what is not of this form or names what does not exist.
    """
    sources = reward.get("sources", {})
    own = sources.get(source) or sources.get(PurePath(source).stem) or {}
    path = f"config.reward.sources[{source!r}]" if own else "config.reward"
    if not isinstance(own, Mapping):
        raise ValueError(f"{path}={own!r} should have the keys {', '.join(OWN_KEYS)}")
    for key, value in own.items():
        if key not in OWN_KEYS:
            raise ValueError(f"{path} has the key {key!r}; a data set may have {', '.join(OWN_KEYS)}")
        if not _is(value, OWN_KEYS[key]):
            raise ValueError(f"{path}.{key}={value!r} should be {OWN_KEYS[key]}")
    merged = {**reward, **own, "options": {**reward.get("options", {}), **own.get("options", {})}}
    weights = weights_of(merged["weights"], f"{path}.weights")
    if "weights" in own:  # what it takes over from the run has no say about components that it does not weigh
        for key in ("gates", "bonuses"):
            if key not in own:
                merged[key] = weighted(merged.get(key, ()), weights)
    gates = {
        name: _gates(conditions, f"{path}.gates[{name!r}]")
        for name, conditions in dict(merged.get("gates", {})).items()
    }
    bonuses = tuple(merged.get("bonuses", ()))
    for name in gates:
        if name not in weights:
            raise ValueError(f"{path}.gates[{name!r}]: no weight is given to {name!r}, so it has no gate")
    for name in bonuses:
        if name not in BONUSES:
            raise ValueError(f"{path}.bonuses: {name!r} is unknown{suggest(name, BONUSES)}")
        if name not in weights:
            raise ValueError(f"{path}.bonuses: give {name!r} a weight in {path}.weights")
    verifier, also = merged.get("verifier", ""), tuple(merged.get("also", ()))
    for key, named in (("verifier", [verifier] if verifier else []), ("also", also)):
        try:
            [names_of(name, own_names(name)) for name in named]
        except ValueError as error:
            raise ValueError(f"{path}.{key}: {error}") from error
    return Rule(weights, gates, bonuses, verifier, also, merged["options"])


def own(reward: Mapping[str, Any]) -> dict[str, Verifier]:
    """Verifiers of one's own, "FILE.py:function", that ``config.reward``, as a dict, has for any data set.

    Raises ValueError if one is not there.
    """
    rules = [rule(reward, source) for source in ("", *reward.get("sources", {}))]
    return own_verifiers(own_names("+".join(name for one in rules for name in (one.verifier, *one.also))))


def weighted(value: Any, weights: Mapping[str, Points]) -> Any:
    """The part of some gates or bonuses that is about components with a weight."""
    if isinstance(value, Mapping):
        return {name: conditions for name, conditions in value.items() if name in weights}
    return tuple(name for name in value if name in weights)


def weights_of(weights: Any, path: str) -> dict[str, Points]:
    """Weights as points. Raises ValueError naming ``path`` if they are none, or nothing is weighed."""
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


def _is(value: Any, kind: str) -> bool:
    """Whether a value is what `OWN_KEYS` say."""
    if kind == "an object":
        return isinstance(value, Mapping)
    if kind == "a name":
        return isinstance(value, str)
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _gates(value: Any, path: str) -> tuple[Gate, ...]:
    texts = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path}={value!r} should be a condition, or several")
    return tuple(_gate(text, path) for text in texts)


def _gate(text: str, path: str) -> Gate:
    match = _GATE.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        return Gate(match[1], float(match[2]) if match[2] else 1.0)
    except ValueError as error:
        raise ValueError(f'{path}={text!r} should read "component" or "component>=0.5"') from error


def pay(
    rule: Rule, components: Sequence[Mapping[str, float]], group: Group, progress: float
) -> tuple[list[float], list[dict[str, float]]]:
    """The rewards of the responses of a group that could be graded, and their components with the bonuses.

    Args: ``components`` of each response, ``group``'s facts of the same responses, and the share of the run
    that is done.

    Raises ValueError if a weighted component is missing.
    """
    if not components:
        return [], []
    bonuses = {name: BONUSES[name].value(components, group) for name in rule.bonuses}
    whole = [
        {**one, **{name: float(values[k]) for name, values in bonuses.items()}}
        for k, one in enumerate(components)
    ]
    weights = {name: weight_at(points, progress) for name, points in rule.weights.items()}
    return [_score(one, weights, rule.gates) for one in whole], whole


def _score(
    components: Mapping[str, float], weights: Mapping[str, float], gates: Mapping[str, tuple[Gate, ...]]
) -> float:
    shut = [name for name, held in gates.items() if any(components[c] < least for c, least in held)]
    return score({**components, **dict.fromkeys(shut, 0.0)}, weights)
