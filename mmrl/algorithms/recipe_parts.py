"""Parts that recipes share: pieces made from hyper-parameters, checked with errors that name the recipe."""

from collections.abc import Callable

from mmrl.algorithms import penalties, reductions, schedules
from mmrl.algorithms.algorithm import Advantage
from mmrl.algorithms.penalties import Penalty
from mmrl.algorithms.reductions import Reduction
from mmrl.algorithms.schedules import Schedule


def per_response(estimate: Callable) -> Advantage:
    """An estimator of rewards and valid rows as the advantage of every token of a response."""
    return lambda experience: estimate(experience.rewards, experience.valid)[..., None]


def average_of(recipe: str, average: str) -> Reduction:
    known = {
        "token": reductions.token_mean,
        "sequence": reductions.sequence_mean,
        "sum": reductions.sequence_sum,
    }
    if average not in known:
        raise ValueError(f"{recipe}: average must be one of {', '.join(known)}, got {average!r}")
    return known[average]


def filter_between(recipe: str, low: float, high: float) -> tuple[float, float]:
    if not low < high:
        raise ValueError(f"{recipe}: filter_low {low} must be below filter_high {high}")
    return low, high


def term(
    recipe: str, name: str, coefficient: float, make: Callable[[Schedule], Penalty]
) -> tuple[Penalty, ...]:
    """A penalty with a constant coefficient, or nothing if it is 0."""
    if coefficient < 0.0:
        raise ValueError(f"{recipe}: {name} must not be negative, got {coefficient}")
    return (make(schedules.constant(coefficient)),) if coefficient else ()


def reference_kl_penalty(recipe: str, coefficient: float) -> tuple[Penalty, ...]:
    """The KL to the reference policy as a penalty; () if the coefficient is 0."""
    return term(recipe, "reference_kl", coefficient, penalties.reference_kl)
