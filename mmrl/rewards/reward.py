"""Rewards as values: what grades the responses to a data set's rows, and how components become a reward.

An experiment writes a `Reward` of verifiers, `at_least` and `ramp`. A config holds what `to_json` makes of
it: names, numbers and lists, as the command line gives them. `reward_of` reads these.

A bonus is a component that compares a response with its group, or depends on whether it is right. It is
logged apart, weighted and gated like those of verifiers, and 0 where it has nothing to compare. "Right" is an
accuracy of at least 0.5.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mmrl.rewards.verifier import Grade, Verifier
from mmrl.rewards.verifiers import load_verifiers, user_names, verifier_names
from mmrl.suggest import suggest

PAPO_WEIGHTS: Mapping[str, float] = MappingProxyType({"accuracy": 0.9, "format": 0.1})  # and EasyR1's
VPPO_WEIGHTS: Mapping[str, float] = MappingProxyType({"accuracy": 1.0})

Points = tuple[tuple[float, float], ...]  # (share of the run, weight)
_GATE = re.compile(r"\s*(\w+)\s*(?:>=\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*)?")


class Gate(NamedTuple):
    """A condition on a response: a component of it is at least so large."""

    component: str
    least: float = 1.0


def at_least(component: str, least: float = 1.0) -> Gate:
    """The gate that is open where ``component`` is ``least`` or more."""
    return Gate(component, float(least))


def ramp(*points: tuple[float, float]) -> Points:
    """A weight that follows the run: (share of the run, weight), ..., between which it is interpolated."""
    return _points(points, "ramp")


@dataclass(frozen=True)
class Reward:
    """Reward of the responses to a data set's rows: verifiers, and how their components add up.

    What is left out is as in the run, or the default. Raises ValueError, which names the field, for what is
    not of this form or names what does not exist.
    """

    weights: Any = None  # component -> a number, or a `ramp`
    gates: Any = None  # component -> `at_least`, or several: it counts only where all hold
    bonuses: Any = None  # keys of `BONUSES`
    verifier: Any = None  # instead of what rows name: a `Verifier`, or a name, such as "FILE.py:function"
    also: Any = None  # verifiers that grade every response, besides the row's
    options: Any = None  # facts that rows leave out; those of the verifiers are added

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            is_list = field in ("bonuses", "also")
            kind = list | tuple if is_list else object if field == "verifier" else Mapping
            if value is not None and not isinstance(value, kind):
                raise ValueError(
                    f"{field}={value!r} should be {'a list of names' if is_list else 'an object'}"
                )
        if self.weights is not None:
            if not self.weights:
                raise ValueError("weights is empty: every reward would be 0")
            self._set(weights={str(k): _points(v, f"weights[{k!r}]") for k, v in self.weights.items()})
        if self.gates is not None:
            self._set(gates={str(k): _gates(v, f"gates[{k!r}]") for k, v in self.gates.items()})
        for name in self.bonuses or ():
            if name not in BONUSES:
                raise ValueError(f"bonuses: {name!r} is unknown{suggest(str(name), BONUSES)}")
        options = dict(self.options or {})
        if self.verifier:
            self._set(verifier=_name("verifier", self.verifier, options))
        if self.also is not None:
            self._set(also=tuple(_name("also", verifier, options) for verifier in self.also))
        if self.options is not None or options:
            self._set(options=options)

    def _set(self, **values: Any) -> None:
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def over(self, run: "Reward") -> "Reward":
        """This reward, where it says something, and else ``run``, which says everything.

        Gates and bonuses that are taken over have no say about components that it does not weigh.
        """
        said = {name: value for name, value in vars(self).items() if value not in (None, "")}
        taken = dict(vars(run))
        if "weights" in said:
            taken["gates"] = {name: gates for name, gates in run.gates.items() if name in self.weights}
            taken["bonuses"] = tuple(name for name in run.bonuses if name in self.weights)
        return Reward(**{**taken, **said, "options": {**run.options, **(self.options or {})}})

    def to_json(self) -> dict[str, Any]:
        """Names, numbers and lists of what is said, as a config has it. `Reward` of them is equal."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        for name, points in said.get("weights", {}).items():
            said["weights"] = {**said["weights"], name: points[0][1] if len(points) == 1 else points}
        for name, gates in said.get("gates", {}).items():
            said["gates"] = {**said["gates"], name: tuple(f"{gate}>={least!r}" for gate, least in gates)}
        return said

    @property
    def needs(self) -> frozenset[str]:
        """Components that must be reported: those weighted and those that gates or bonuses read."""
        gates = {gate.component for gates in self.gates.values() for gate in gates}
        read = {name for bonus in self.bonuses for name in BONUSES[bonus].reads}
        return frozenset({*self.weights, *gates, *read} - set(self.bonuses))

    def verifiers(self, named: str) -> str:
        """The verifiers, joined by "+", of a row that names ``named``."""
        return "+".join(dict.fromkeys([*(self.verifier or named).split("+"), *self.also]))


def _name(field: str, verifier: Any, options: dict[str, Any]) -> str:
    """The name of a verifier; its options go to ``options``."""
    if isinstance(verifier, Verifier):
        for option, value in verifier.options.items():
            if options.setdefault(option, value) != value:
                raise ValueError(f"{field}: {option!r} is given two values; verifiers of a row share options")
        if not verifier.function.__module__.startswith("mmrl.rewards."):
            raise ValueError(f"{field}: name {verifier.name!r}, which is your own, as 'FILE.py:function'")
        return verifier.name
    if not isinstance(verifier, str):
        raise ValueError(f"{field}={verifier!r} should be a verifier, or the name of one")
    try:
        verifier_names(verifier, user_names(verifier))
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    return verifier


def reward_of(reward: Mapping[str, Any], source: str = "") -> Reward:
    """The reward for the rows of a data set; a file may be named without its ending.

    ``reward`` is ``config.reward`` as a dict: the fields of `Reward` as `Reward.to_json` has them, and
    ``sources``: name of a data set -> what holds for it instead (options: besides). A gate may be written
    "format" (at least 1) or "iou>=0.5". Raises ValueError naming the key.
    """
    sources = reward.get("sources", {})
    own = sources.get(source) or sources.get(PurePath(source).stem)
    path, keys = "config.reward", [field.name for field in fields(Reward)]
    defaults: dict[str, Any] = {"gates": {}, "bonuses": (), "also": (), "options": {}}
    read = _read(defaults | {key: reward[key] for key in keys if key in reward}, path)
    if own:
        path += f".sources[{source!r}]"
        if not isinstance(own, Mapping):
            raise ValueError(f"{path}={own!r} should have the keys {', '.join(keys)}")
        if wrong := [key for key in own if key not in keys]:
            raise ValueError(f"{path} has the key {wrong[0]!r}; a data set may have {', '.join(keys)}")
        read = _read(own, path).over(read)
    for name in read.gates:
        if name not in read.weights:
            raise ValueError(f"{path}.gates[{name!r}]: no weight is given to {name!r}, so it has no gate")
    for name in read.bonuses:
        if name not in read.weights:
            raise ValueError(f"{path}.bonuses: give {name!r} a weight in {path}.weights")
    return read


def _read(values: Mapping[str, Any], path: str) -> Reward:
    try:
        return Reward(**values)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from error


def user_verifiers(reward: Mapping[str, Any]) -> dict[str, Grade]:
    """User-defined verifiers, "FILE.py:function", that ``config.reward``, as a dict, has for any data set.

    Raises ValueError if one is not there.
    """
    rewards = [reward_of(reward, source) for source in ("", *reward.get("sources", {}))]
    return load_verifiers(user_names("+".join(each.verifiers("") for each in rewards)))


def _points(value: Any, path: str) -> Points:
    """A weight as points. Raises ValueError naming ``path`` if it is neither a number nor such."""
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
    """Gates out of `at_least`, "component", "component>=0.5", or several of these."""
    gates = []
    for gate in value if isinstance(value, list | tuple) and not isinstance(value, Gate) else (value,):
        match = _GATE.fullmatch(gate) if isinstance(gate, str) else None
        if match is None and not isinstance(gate, Gate):
            raise ValueError(
                f'{path}={gate!r} should read "component" or "component>=0.5", or several of these'
            )
        gates.append(Gate(match[1], float(match[2] or 1.0)) if match else gate)
    return tuple(gates)


def score(components: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The reward: the sum of ``weights[name] * components[name]``; components without a weight count 0.

    ValueError if a weighted component is missing.
    """
    missing = sorted(weights.keys() - components.keys())
    if missing:
        raise ValueError(
            f"reward weights name {missing}, which the verifier does not report; "
            f"it reports {sorted(components)}"
        )
    return sum(weight * components[name] for name, weight in weights.items())


def compute_rewards(
    reward: Reward, components: Sequence[Mapping[str, float]], group: "GradedGroup", progress: float
) -> tuple[list[float], list[dict[str, float]]]:
    """Rewards of the responses of a group that could be graded, and their components with the bonuses.

    ``progress`` is the share of the run that is done. Raises ValueError if a weighted component is missing.
    """
    if not components:
        return [], []
    bonuses = {name: BONUSES[name].value(components, group) for name in reward.bonuses}
    complete = [
        {**row, **{name: float(values[k]) for name, values in bonuses.items()}}
        for k, row in enumerate(components)
    ]
    weights = {name: weight_at(points, progress) for name, points in reward.weights.items()}
    rewards = []
    for row in complete:
        closed = [name for name, gates in reward.gates.items() if any(row[c] < least for c, least in gates)]
        rewards.append(score({**row, **dict.fromkeys(closed, 0.0)}, weights))
    return rewards, complete


RIGHT = 0.5
ALL_WRONG_TARGET = 750  # tokens that VL-Cogito wants where no response of a group is right
SOLVED, FAILED = 0.9, 0.1  # beyond which SophiaVL-R1 trusts no judge

Components = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class GradedGroup:
    """Lengths of those responses of a group that could be graded."""

    lengths: Int[np.ndarray, "k"]  # tokens that the policy wrote
    max_tokens: int  # the budget of a response


class Bonus(NamedTuple):
    """A function of a group, and the components it reads."""

    value: Callable[[Components, GradedGroup], Float[np.ndarray, "k"]]
    reads: tuple[str, ...] = ("accuracy",)


def _right(components: Components) -> Bool[np.ndarray, "k"]:
    return np.array([row["accuracy"] >= RIGHT for row in components], bool)


def brevity(components: Components, group: GradedGroup) -> Float[np.ndarray, "k"]:
    """0.5 for the shortest response of the group to -0.5 for the longest; a wrong one gets no more than 0.

    Source: Kimi k1.5 (2025), section 2.3.3; so in Reason-RFT, there with weight 0.05 and characters.
    """
    lengths = group.lengths.astype(float)
    spread = np.ptp(lengths) if len(lengths) else 0.0
    if spread == 0:
        return np.zeros(len(lengths))
    value = 0.5 - (lengths - lengths.min()) / spread
    return np.where(_right(components), value, np.minimum(value, 0.0))


def cosine_length(components: Components, group: GradedGroup) -> Float[np.ndarray, "k"]:
    """Right: from 1 at no tokens to 0.5 at the budget, along a cosine; wrong: from 0 to -0.5.

    Source: Yeo et al. 2025 (arXiv 2502.03373), with the values of VLM-R1's ``cosine_reward``, whose released
    code takes every response for right.
    """
    share = np.clip(group.lengths / max(group.max_tokens, 1), 0.0, 1.0)
    fall = 0.5 * (1.0 - np.cos(math.pi * share)) / 2
    return np.where(_right(components), 1.0 - fall, -fall)


def dynamic_length(components: Components, group: GradedGroup) -> Float[np.ndarray, "k"]:
    """0 for a right response; a wrong one loses up to 0.5 for being shorter or longer than the right ones.

    With x the distance to their mean length, as a share of it and at most 1: -0.25 (1 - cos(pi x)). Where all
    are wrong the target is 750 tokens, and half as much is lost. Source: VL-Cogito (2025).
    """
    right, lengths = _right(components), group.lengths.astype(float)
    target, scale = (lengths[right].mean(), 1.0) if right.any() else (float(ALL_WRONG_TARGET), 0.5)
    distance = np.minimum(np.abs(lengths / max(target, 1.0) - 1.0), 1.0)
    return np.where(right, 0.0, -0.25 * scale * (1.0 - np.cos(math.pi * distance)))


def trusted_judge(components: Components, group: GradedGroup) -> Float[np.ndarray, "k"]:
    """The component "judge", trusted as far as it prefers right responses to wrong ones of the group.

    Multiplied by exp(mean over right - mean over wrong) where that is below 1 and some are right; 0 where all
    are right, or all wrong. Source: SophiaVL-R1 (2025), trust weight; there it judges the thinking, and has
    the weight 0.3 exp(-step / T).
    """
    accuracy = np.array([row["accuracy"] for row in components], float)
    judged = np.array([row["judge"] for row in components], float)
    if (accuracy >= SOLVED).all() or (accuracy <= FAILED).all():
        return np.zeros(len(judged))
    right = accuracy >= RIGHT
    gap = judged[right].mean() - judged[~right].mean() if right.any() and not right.all() else 0.0
    return judged * math.exp(min(gap, 0.0))


BONUSES: Mapping[str, Bonus] = MappingProxyType(
    {
        "brevity": Bonus(brevity),
        "cosine_length": Bonus(cosine_length),
        "dynamic_length": Bonus(dynamic_length),
        "trusted_judge": Bonus(trusted_judge, ("accuracy", "judge")),
    }
)
