"""What the scores of a batch say of it, in a few numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.jit
def describe_scores(
    scores: dict[str, Float[Array, "b g r"]],
    sampled: Float[Array, "b g r"],
    mask: Bool[Array, "b g r"],
    valid: Bool[Array, "b g"],
) -> dict[str, Float[Array, ""]]:
    """How far sampler and scorer disagree, and what the scores say of the responses.

    The sampler's logprobs ``sampled`` are renormalised over what top-k, top-p and min-p keep, the scorer's
    are not: with truncation the difference holds the mass cut off as well as the rounding. Zeros if no
    response is valid.
    """
    mask = mask & valid[..., None]
    count = jnp.maximum(mask.sum(), 1)

    def mean(values: Array) -> Array:
        return jnp.where(mask, values, 0.0).sum() / count

    logprob = scores["logprob"]
    difference = jnp.where(mask, jnp.abs(logprob - sampled), 0.0)
    out = {
        "sampler/logprob_difference_mean": mean(difference),
        "sampler/logprob_difference_max": difference.max(),
        "policy/sampled_entropy": -mean(logprob),
    }
    if "entropy" in scores:
        out["policy/entropy"] = mean(scores["entropy"])
    perception = scores.get("perception")
    if perception is None and "corrupted" in scores:
        # The sampled-token estimate k3 of KL(image present || corrupted).
        log_ratio = jnp.clip(scores["corrupted"] - logprob, -20, 20)
        perception = jnp.clip(jnp.expm1(log_ratio) - log_ratio, 0, 10)
    if perception is not None:
        out["perception/mean"] = mean(perception)
        present = jnp.where(mask, perception, jnp.nan)
        for percent in (50, 90):
            value = jnp.nanpercentile(present, percent)
            out[f"perception/p{percent}"] = jnp.where(mask.any(), value, 0.0)
    if "reference" in scores:
        log_ratio = jnp.clip(scores["reference"] - logprob, -20, 20)
        out["policy/reference_kl"] = mean(jnp.expm1(log_ratio) - log_ratio)
    return out
