"""Weights of the policy-gradient term, per response or per token. They multiply the advantage."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.algorithms.divergences import k3
from mmrl.algorithms.experience import Experience, response_mean, token_counts
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, LOGPROB, PERCEPTION, Score

TokenScore = Callable[[Experience], Float[Array, "b g r"]]


@dataclass(frozen=True)
class Weight:
    """A factor of the advantage, computed once over the global batch; its shape broadcasts to [b g r]."""

    name: str
    value: Callable[[Experience], Float[Array, "b g _"]]
    needs: frozenset[Score] = frozenset()


def dependency_k3(experience: Experience) -> Float[Array, "b g r"]:
    """Dependence of each sampled token on the image: k3 of (image corrupted) against (image present).

    In [0, 10]. Source: VPPO's released code, which uses this one-sample estimate for its equation 2.
    """
    return k3(experience.scores[LOGPROB], experience.scores[CORRUPTED_LOGPROB])


def dependency_exact(experience: Experience) -> Float[Array, "b g r"]:
    """KL(image present || image corrupted) over the vocabulary at each token (VPPO, equation 2)."""
    return experience.scores[PERCEPTION]


def entropy(experience: Experience) -> Float[Array, "b g r"]:
    """The old policy's entropy at each token."""
    return experience.scores[ENTROPY]


def kept_count(tokens: Int[Array, "*rows"], keep: float) -> Int[Array, "*rows"]:
    """ceil(keep * tokens).

    The product is taken in float32, as in VPPO's code: for keep = 0.3 and 0.6 it can exceed the exact one by
    an ulp, and the ceiling then gives one token more.
    """
    return jnp.ceil(tokens.astype(jnp.float32) * jnp.float32(keep)).astype(jnp.int32)


def top_fraction(
    values: Float[Array, "*rows r"], mask: Bool[Array, "*rows r"], keep: float
) -> Bool[Array, "*rows r"]:
    """The ``kept_count`` largest tokens of each response; of equal values the earlier come first."""
    wanted = kept_count(token_counts(mask), keep)
    order = jnp.argsort(jnp.where(mask, -values, jnp.inf), axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1, stable=True)
    return mask & (rank < wanted[..., None])


def token_filter(
    perception: TokenScore | None, perception_keep: float, entropy_keep: float, needs: frozenset[Score]
) -> Weight:
    """1 on the tokens of each response that rank highest by dependency on the image, else 0 (VPPO, eq. 6).

    With ``entropy_keep`` > 0 the tokens of highest entropy are kept too (union); ``perception`` None keeps
    those alone. The average is not changed: it still divides by all tokens, as in the released code.
    """

    def value(experience: Experience) -> Float[Array, "b g r"]:
        kept = jnp.zeros_like(experience.mask)
        if perception is not None:
            kept |= top_fraction(perception(experience), experience.mask, perception_keep)
        if entropy_keep:
            kept |= top_fraction(entropy(experience), experience.mask, entropy_keep)
        return kept.astype(jnp.float32)

    return Weight("token_filter", value, needs | (frozenset({ENTROPY}) if entropy_keep else frozenset()))


def shaping_factors(
    scores: Float[Array, "*rows"],
    counted: Bool[Array, "*rows"],
    lowest: Float[Array, ""],
    highest: Float[Array, ""],
    shaping_min: float,
) -> Float[Array, "*rows"]:
    """Factors from ``shaping_min`` up, linear in the score, so scaled that their mean over rows is 1.

    1 everywhere if the range of the scores is at most 1e-6. Source: VPPO, equations 4 and 5.
    """
    span = highest - lowest
    place = jnp.clip((scores - lowest) / jnp.where(span > 1e-6, span, 1.0), 0.0, 1.0)
    place = jnp.where(counted, place, 0.0)
    mean_place = jnp.sum(place) / jnp.maximum(jnp.sum(counted), 1)
    top = shaping_min + (1.0 - shaping_min) / (mean_place + 1e-8)
    return jnp.where(span > 1e-6, shaping_min + place * (top - shaping_min), 1.0)


def score_range(
    scores: Float[Array, "*rows"], counted: Bool[Array, "*rows"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The lowest and the highest score of the counted rows; (0, 0) if there are fewer than two."""
    some = jnp.sum(counted) > 1
    lowest = jnp.min(jnp.where(counted, scores, jnp.inf))
    highest = jnp.max(jnp.where(counted, scores, -jnp.inf))
    return jnp.where(some, lowest, 0.0), jnp.where(some, highest, 0.0)


def trajectory_shaping(perception: TokenScore, shaping_min: float, needs: frozenset[Score]) -> Weight:
    """Scales the advantage of a response by its mean dependency on the image (VPPO, equations 4 and 5).

    Range and mean are taken over the whole global batch, over responses that have tokens. The released code
    takes the range over one device's mini-batch and the mean over one micro-batch.
    """

    def value(experience: Experience) -> Float[Array, "b g 1"]:
        scores = response_mean(perception(experience), experience.mask)
        counted = jnp.any(experience.mask, axis=-1)
        lowest, highest = score_range(scores, counted)
        return shaping_factors(scores, counted, lowest, highest, shaping_min)[..., None]

    return Weight("trajectory_shaping", value, needs)
