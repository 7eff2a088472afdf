"""Group bonuses: components that compare a response with its group, or depend on whether it is right.

A bonus is a component like those of verifiers: it is logged apart, weighted and gated. Each is 0 where it has
nothing to compare. "Right" is an accuracy of at least 0.5.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

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
