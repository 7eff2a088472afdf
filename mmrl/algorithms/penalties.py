"""Terms added to the policy loss: KL to the reference, perception KL, entropies, imitation.

A term is a mean of per-token values times a coefficient, which may follow a schedule. ``live`` holds what the
policy gives in the update (with gradient), ``scores`` what was measured before it (without).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.algorithms.divergences import ESTIMATORS
from mmrl.algorithms.experience import Experience, token_counts
from mmrl.algorithms.passes import (
    CORRUPTED,
    CORRUPTED_LOGPROB,
    ENTROPY,
    LOGPROB,
    PERCEPTION,
    REFERENCE_LOGPROB,
    Pass,
    Score,
)
from mmrl.algorithms.reductions import Reduction, token_mean
from mmrl.algorithms.schedules import Schedule

Tokens = Float[Array, "b g r"]
Scores = dict[Score, Float[Array, "b g r"]]
# (live, scores, weight of each row, mask) -> the value of each token
TokenTerm = Callable[[Scores, Scores, Float[Array, "b g"], Bool[Array, "b g r"]], Tokens]


@dataclass(frozen=True)
class Penalty:
    """``coefficient * mean(token)``, added to the loss; subtracted if ``maximise``."""

    name: str
    coefficient: Schedule
    token: TokenTerm
    maximise: bool = False
    needs: frozenset[Score] = frozenset()  # before the update
    live: frozenset[Score] = frozenset()  # in the update, beyond `LOGPROB`
    differentiated: frozenset[Pass] = frozenset()  # in the update, beyond `POLICY`
    reduction: Reduction | None = None  # None: the algorithm's
    row_weight: Callable[[Experience], Float[Array, "b g"]] | None = None  # weighs, does not count
    counted: Callable[[Experience], Bool[Array, "b g"]] | None = None  # rows the mean is taken over


def reference_kl(coefficient: Schedule, estimator: str = "k3") -> Penalty:
    """KL(policy || reference) on the sampled tokens (GRPO, Shao et al. 2024, equations 3 and 4)."""
    estimate = _estimator("reference_kl", estimator)

    def token(live: Scores, scores: Scores, row_weight, mask) -> Tokens:
        return estimate(live[LOGPROB], scores[REFERENCE_LOGPROB])

    return Penalty("reference_kl", coefficient, token, needs=frozenset({REFERENCE_LOGPROB}))


def perception_kl(
    coefficient: Schedule,
    estimator: str = "k3",
    corrupted_branch: str = "constant",
    apply_to: str = "all",
    incorrect_weight: float = 0.1,
    top_fraction: float = 0.0,
    limit: float = 0.0,
) -> Penalty:
    """KL(image present || image corrupted), maximised: responses shall depend on what is seen (PAPO, eq. 4).

    ``estimator`` is "exact" (whole vocabulary) or one for sampled tokens ("k3", "k1", "k2", "abs").
    ``corrupted_branch`` "constant" takes the old policy's logprobs, "live" the current policy's with
    gradient; an exact KL with a constant branch is the current policy's without gradient through the branch.
    ``apply_to`` "all" | "correct" | "weighted" (incorrect rows count ``incorrect_weight``).
    ``top_fraction`` > 0 keeps the tokens of each response at or above that quantile of the term.
    ``limit`` > 0 bounds each token's value, with no gradient beyond. None of these changes the denominator.
    """
    is_live = corrupted_branch == "live"

    def token(live: Scores, scores: Scores, row_weight, mask) -> Tokens:
        if estimator == "exact":
            value = live[PERCEPTION]
        else:
            corrupted = live[CORRUPTED_LOGPROB] if is_live else scores[CORRUPTED_LOGPROB]
            value = _estimator("perception_kl", estimator)(live[LOGPROB], corrupted)
        value = value * row_weight[..., None]
        if top_fraction:
            value = jnp.where(top_quantile(jax.lax.stop_gradient(value), mask, top_fraction), value, 0.0)
        return jnp.clip(value, 0.0, limit) if limit else value

    if estimator == "exact":
        needs, from_update = frozenset[Score](), frozenset({PERCEPTION})
    else:
        _estimator("perception_kl", estimator)
        needs = frozenset() if is_live else frozenset({CORRUPTED_LOGPROB})
        from_update = frozenset({CORRUPTED_LOGPROB}) if is_live else frozenset()
    return Penalty(
        "perception_kl",
        coefficient,
        token,
        maximise=True,
        needs=needs,
        live=from_update,
        differentiated=frozenset({CORRUPTED}) if is_live else frozenset(),
        row_weight=_row_weight(apply_to, incorrect_weight),
    )


def sampled_entropy(coefficient: Schedule) -> Penalty:
    """-log p of the sampled tokens, minimised: the "entropy" of PAPO's and VPPO's code (clean branch).

    Its gradient has mean zero on samples of the current policy, so it acts through drift and clipping only;
    ``entropy`` is the term over the whole distribution. Averaged over tokens whatever the algorithm's mean.
    """
    return Penalty("sampled_entropy", coefficient, lambda live, *_: -live[LOGPROB], reduction=token_mean)


def corrupted_sampled_entropy(coefficient: Schedule, corrupted_branch: str = "constant") -> Penalty:
    """-log p of the same tokens with the image corrupted, minimised (PAPO's double entropy loss).

    ``corrupted_branch`` "constant" takes the old policy's logprobs and "frozen" the current policy's: without
    gradient, a mere number, as in the released default. "live" lets the gradient through.
    """
    name = "corrupted_sampled_entropy"
    if corrupted_branch == "constant":
        return Penalty(
            name,
            coefficient,
            lambda live, scores, *_: -scores[CORRUPTED_LOGPROB],
            needs=frozenset({CORRUPTED_LOGPROB}),
            reduction=token_mean,
        )
    is_live = corrupted_branch == "live"
    return Penalty(
        name,
        coefficient,
        lambda live, *_: (
            -live[CORRUPTED_LOGPROB] if is_live else -jax.lax.stop_gradient(live[CORRUPTED_LOGPROB])
        ),
        live=frozenset({CORRUPTED_LOGPROB}),
        differentiated=frozenset({CORRUPTED}) if is_live else frozenset(),
        reduction=token_mean,
    )


def entropy(coefficient: Schedule) -> Penalty:
    """The entropy of the whole distribution at each token, minimised."""
    return Penalty(
        "entropy",
        coefficient,
        lambda live, *_: live[ENTROPY],
        live=frozenset({ENTROPY}),
        reduction=token_mean,
    )


def imitation(coefficient: Schedule, accuracy_above: float = 0.1) -> Penalty:
    """The negative logprob of correct responses, averaged over their tokens (PAPO's optional SFT loss)."""
    return Penalty(
        "imitation",
        coefficient,
        lambda live, *_: -live[LOGPROB],
        reduction=token_mean,
        counted=lambda experience: experience.accuracy > accuracy_above,
    )


def top_quantile(
    values: Float[Array, "*rows r"], mask: Bool[Array, "*rows r"], fraction: float
) -> Bool[Array, "*rows r"]:
    """Tokens of each response at or above the (1 - fraction) quantile of its values; all ties are kept.

    With linear interpolation the quantile lies above the order statistic below it, hence the tokens at or
    above it are those at or above the next one: the ceil((1 - fraction) * (n - 1))-th, counted from 0.
    """
    count = token_counts(mask)
    place = jnp.float32(1.0 - fraction) * (count - 1)
    # A rounding error must not push a whole place up to the next order statistic.
    index = jnp.clip(jnp.ceil(place - 1e-4).astype(jnp.int32), 0, values.shape[-1] - 1)
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=-1)
    return mask & (values >= jnp.take_along_axis(ordered, index[..., None], axis=-1))


def _estimator(term: str, name: str):
    if name not in ESTIMATORS:
        raise ValueError(f"{term}: unknown estimator {name!r}; one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def _row_weight(apply_to: str, incorrect_weight: float):
    correct_threshold = 0.1
    if apply_to == "all":
        return None
    lesser = {"correct": 0.0, "weighted": incorrect_weight}.get(apply_to)
    if lesser is None:
        raise ValueError(f"perception_kl: apply_to must be all, correct or weighted, got {apply_to!r}")
    return lambda experience: jnp.where(experience.accuracy > correct_threshold, 1.0, lesser)
