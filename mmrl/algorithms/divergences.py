"""Estimates of a KL divergence from logprobs of sampled tokens, and the exact one from whole distributions.

``kl(p, q)`` estimates KL(P || Q) on tokens sampled from P, where ``p`` and ``q`` are the two logprobs of the
sampled token. Schulman 2020, "Approximating KL divergence".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Estimator = Callable[[Float[Array, "*n"], Float[Array, "*n"]], Float[Array, "*n"]]


def k1(p: Float[Array, "*n"], q: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log p - log q: unbiased, of high variance, negative at times."""
    return p - q


def absolute(p: Float[Array, "*n"], q: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """|log p - log q|, with gradient 0 where they are equal."""
    difference = p - q
    return difference * jax.lax.stop_gradient(jnp.sign(difference))


def k2(p: Float[Array, "*n"], q: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """(log p - log q)^2 / 2, called mse in EasyR1 and verl."""
    return 0.5 * jnp.square(p - q)


def k3(
    p: Float[Array, "*n"],
    q: Float[Array, "*n"],
    difference_limit: float = 20.0,
    value_limit: float = 10.0,
) -> Float[Array, "*n"]:
    """exp(d) - d - 1 with d = log q - log p: never negative, unbiased before the two limits.

    ``d`` is limited to +-``difference_limit`` and the result to ``value_limit``; no gradient beyond either.
    The limits are those of PAPO, VPPO, EasyR1 and verl (``low_var_kl``); TRL has none.
    """
    difference = jnp.clip(q - p, -difference_limit, difference_limit)
    # expm1 keeps the digits that exp(d) - 1 loses where the two policies nearly agree.
    return jnp.minimum(jnp.expm1(difference) - difference, value_limit)


def full(p: Float[Array, "*n v"], q: Float[Array, "*n v"]) -> Float[Array, "*n"]:
    """KL(P || Q) from the logprobs of the whole vocabulary."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


ESTIMATORS: dict[str, Estimator] = {"k1": k1, "abs": absolute, "k2": k2, "k3": k3}
