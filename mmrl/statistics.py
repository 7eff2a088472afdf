"""Means with confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEVEL = 0.95  # of every interval in this project


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval; NaN where the values do not determine them."""

    mean: float
    low: float
    high: float
    n: int  # values, or sets of values, that the mean is taken over

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2


def mean_interval(values: Float[np.ndarray, "n"]) -> Interval:
    """Mean of independent repetitions (seeds), or of paired differences, with Student's t interval.

    One value has a mean and no interval; no value has neither.
    """
    from scipy.stats import sem, t

    count = len(values)
    mean = float(values.mean()) if count else np.nan
    if count < 2:
        return Interval(mean, np.nan, np.nan, count)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1) * sem(values))
    return Interval(mean, mean - half, mean + half, count)


def bootstrap_interval(
    values: Float[np.ndarray, "n"], rng: np.random.Generator, draws: int = 2000
) -> Interval:
    """Mean over questions, with the percentile interval of the bootstrap (Efron 1979).

    ``values`` has one number a question, such as the share of its responses that are right: questions are
    drawn, not responses, as the responses to one question are alike.
    """
    return stratified_interval([values], rng, draws)._replace(n=len(values))


def stratified_interval(
    groups: Sequence[Float[np.ndarray, "_"]], rng: np.random.Generator, draws: int = 2000
) -> Interval:
    """Mean of the means of several sets of questions, each of one weight; questions are drawn within each.

    The sets (benchmarks) are the ones that are of interest, not a sample of such: none is drawn.
    """
    if not groups or not all(map(len, groups)):
        return Interval(np.nan, np.nan, np.nan, 0)
    # One draw at a time: `draws` times `n` numbers of a large benchmark need not be held.
    means = [
        np.mean([values[rng.integers(len(values), size=len(values))].mean() for values in groups])
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(np.mean([values.mean() for values in groups]))
    return Interval(mean, float(low), float(high), len(groups))
