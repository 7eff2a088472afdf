"""Inputs of the pieces of an algorithm: rewards and scores of one global batch."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mmrl.algorithms.passes import Score


@struct.dataclass
class Experience:
    """Rewards and scores of a whole global batch, before the update.

    Made by ``algorithm.prepare``: rows that are not valid have an empty ``mask``, and whatever stands outside
    ``mask`` in ``scores``, and outside ``valid`` in ``rewards`` and ``accuracy``, has been set to zero.
    """

    rewards: Float[Array, "b g"]  # after reward shaping
    accuracy: Float[Array, "b g"]  # in [0, 1]: the share of the reward that is about correctness
    mask: Bool[Array, "b g r"]  # True on the tokens the policy wrote
    valid: Bool[Array, "b g"]
    scores: dict[Score, Float[Array, "b g r"]]
    step: Int[Array, ""]  # updates made so far
    total_steps: int = struct.field(pytree_node=False)


def token_counts(mask: Bool[Array, "*rows r"]) -> Int[Array, "*rows"]:
    """The number of tokens of each response."""
    return jnp.sum(mask, axis=-1, dtype=jnp.int32)


def response_mean(values: Float[Array, "*rows r"], mask: Bool[Array, "*rows r"]) -> Float[Array, "*rows"]:
    """Mean over the tokens of each response; 0 for a response without tokens."""
    return jnp.sum(jnp.where(mask, values, 0.0), axis=-1) / jnp.maximum(token_counts(mask), 1)
