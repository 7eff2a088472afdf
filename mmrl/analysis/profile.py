"""Perception of many responses in a few numbers: how few tokens carry it, and how far responses differ.

The two observations that VPPO (arXiv 2510.09285, section 3) begins with: within a response a small part of
the tokens depends on the image, and some responses depend on it more than others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mmrl.analysis.perception import TokenPerception

ESTIMATES = ("exact", "k3")
TOP = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class PerceptionProfile:
    """Token perception of many responses, in nats."""

    tokens: Float[np.ndarray, "n"]  # of all tokens, ascending
    responses: Float[np.ndarray, "k"]  # mean over the tokens of each response, in order; NaN without tokens
    gini: float  # 0: all tokens alike, 1: one token has all
    top: dict[float, float]  # share of the tokens -> share of all perception that the highest have

    @property
    def mean(self) -> float:
        return float(self.tokens.mean()) if len(self.tokens) else float("nan")

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.tokens, percent)) if len(self.tokens) else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation of the responses' means by their mean: how far responses differ."""
        means = self.responses[~np.isnan(self.responses)]
        return float(means.std() / means.mean()) if len(means) and means.mean() > 0 else float("nan")


def perception_profile(measured: Sequence[TokenPerception], estimate: str = "exact") -> PerceptionProfile:
    """The profile of responses that `perceive` has measured; ``estimate`` is "exact" or "k3".

    Raises ValueError for another estimate.
    """
    if estimate not in ESTIMATES:
        raise ValueError(f"estimate={estimate!r} should be one of {ESTIMATES}")
    values = [getattr(one, estimate) for one in measured]
    # A KL is never negative but for rounding.
    tokens = np.sort(np.maximum(np.concatenate([*values, np.zeros(0, np.float32)]), 0.0))
    _, held = lorenz(tokens)
    count = len(tokens)
    return PerceptionProfile(
        tokens=tokens,
        responses=np.array([one.mean() if len(one) else np.nan for one in values], float),
        gini=_gini(tokens),
        top={share: float(1 - held[count - int(np.ceil(share * count))]) for share in TOP},
    )


def lorenz(tokens: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """The Lorenz curve of ascending values: share of the tokens from the lowest, share of the sum they hold.

    Both from 0 to 1. The second is the first where the sum is 0.
    """
    places = np.linspace(0.0, 1.0, len(tokens) + 1)
    total = tokens.sum(dtype=float)
    if not total > 0:
        return places, places
    return places, np.concatenate([[0.0], np.cumsum(tokens, dtype=float) / total])


def _gini(tokens: Float[np.ndarray, "n"]) -> float:
    """Gini's coefficient: twice the area between the Lorenz curve and that of equal values."""
    count, total = len(tokens), tokens.sum(dtype=float)
    if not total > 0:
        return 0.0
    ranks = np.arange(1, count + 1)
    return float(2 * (ranks * tokens.astype(float)).sum() / (count * total) - (count + 1) / count)
