"""Additions to the reward that depend on the response's length alone."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def soft_overlong(max_length: int, cache: int) -> Callable[[Int[Array, "*rows"]], Float[Array, "*rows"]]:
    """0 up to ``max_length - cache`` tokens, then falling linearly to -1 at ``max_length``, -1 beyond.

    Source: DAPO, Yu et al. 2025, equation 13. Raises ValueError unless 0 < cache < max_length.
    """
    if not 0 < cache < max_length:
        raise ValueError(f"soft_overlong: need 0 < cache < max_length, got {cache} and {max_length}")

    def penalty(length: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
        over = (length - (max_length - cache)).astype(jnp.float32)
        return -jnp.clip(over / cache, 0.0, 1.0)

    return penalty
