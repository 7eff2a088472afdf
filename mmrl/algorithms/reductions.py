"""Reductions of per-token losses to one number: a weight for each token, over the whole global batch."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrl.algorithms.experience import token_counts

# (mask of the tokens that count, valid rows) -> weight of each token; 0 outside the mask
Reduction = Callable[[Bool[Array, "b g r"], Bool[Array, "b g"]], Float[Array, "b g r"]]


def token_mean(mask: Bool[Array, "b g r"], valid: Bool[Array, "b g"]) -> Float[Array, "b g r"]:
    """The mean over all tokens of the batch (DAPO, section 3.3). A batch without tokens gives 0."""
    del valid
    return mask / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)


def sequence_mean(mask: Bool[Array, "b g r"], valid: Bool[Array, "b g"]) -> Float[Array, "b g r"]:
    """The mean over each response's tokens, then over the valid responses (GRPO, equation 3).

    A valid response without tokens adds 0 and is counted, as in EasyR1, PAPO and TRL (verl leaves it out).
    """
    length = jnp.maximum(token_counts(mask), 1)[..., None]
    return mask / (length * jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0))


def sequence_sum(mask: Bool[Array, "b g r"], valid: Bool[Array, "b g"]) -> Float[Array, "b g r"]:
    """The sum over each response's tokens, then the mean over the valid responses (RLOO)."""
    return mask / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)


def constant_length(length: int) -> Reduction:
    """The sum over each response's tokens divided by a constant, then the mean over the valid responses.

    Source: Dr. GRPO (Liu et al. 2025), which removes the length from the weights.
    """
    if length < 1:
        raise ValueError(f"reductions.constant_length: length must be at least 1, got {length}")
    return lambda mask, valid: sequence_sum(mask, valid) / length
