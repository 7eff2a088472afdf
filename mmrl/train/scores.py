"""What the scores of a batch say of it, in a few numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrl.types import Responses


@jax.jit
def describe_scores(
    scores: dict[str, Float[Array, "b g r"]], responses: Responses
) -> dict[str, Float[Array, ""]]:
    """How far sampler and scorer disagree, what truncation cut, and what the scores say of the responses.

    Sampler and scorer are compared under one distribution, the tempered one before top-k, top-p and min-p,
    so that rounding is all that they can differ by ("sampler/logprob_difference_..."). How much of its mass
    these have cut off where a token was drawn is "sampler/cut_mass_...". Zeros if no response is valid.
    """
    mask = responses.mask & responses.valid[..., None]
    count = jnp.maximum(mask.sum(), 1)

    def mean(values: Array) -> Array:
        return jnp.where(mask, values, 0.0).sum() / count

    logprob = scores["logprob"]
    difference = jnp.where(mask, jnp.abs(logprob - (responses.logprob + responses.log_kept)), 0.0)
    cut = jnp.where(mask, -jnp.expm1(responses.log_kept), 0.0)
    out = {
        "sampler/logprob_difference_mean": mean(difference),
        "sampler/logprob_difference_max": difference.max(),
        "sampler/cut_mass_mean": mean(cut),
        "sampler/cut_mass_max": cut.max(),
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
