"""Advantages of tokens from rewards given on tokens: [n r] -> [n r], for baselines and critics.

``n`` is any number of responses (groups do not matter here). Everything is 0 outside the mask.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def whiten(values: Float[Array, "n r"], mask: Bool[Array, "n r"], eps: float = 1e-8) -> Float[Array, "n r"]:
    """Values with mean 0 and unbiased variance 1 over the mask; a single token is centred only by the mean.

    Source: ``masked_whiten`` of PAPO and EasyR1, which is (x - mean) / sqrt(variance + eps).
    """
    count = jnp.sum(mask)
    mean = jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(mask, jnp.square(values - mean), 0.0))
    variance = squares / jnp.maximum(count - 1, 1)
    return jnp.where(mask, (values - mean) * jax.lax.rsqrt(variance + eps), 0.0)


def discounted_returns(
    rewards: Float[Array, "n r"], mask: Bool[Array, "n r"], gamma: float = 1.0
) -> Float[Array, "n r"]:
    """The discounted sum of the rewards from each token on; the sum starts afresh after a masked token."""

    def step(later, column):
        reward, kept = column
        total = reward + gamma * later
        return jnp.where(kept, total, 0.0), total

    _, returns = jax.lax.scan(step, jnp.zeros(rewards.shape[0]), (rewards.T, mask.T), reverse=True)
    return returns.T


def reinforce_plus_plus(
    rewards: Float[Array, "n r"], mask: Bool[Array, "n r"], gamma: float = 1.0
) -> Float[Array, "n r"]:
    """Discounted returns, whitened over all tokens (REINFORCE++, Hu 2025)."""
    return whiten(discounted_returns(rewards, mask, gamma), mask)


def greedy_baseline(
    rewards: Float[Array, "n r"], baseline: Float[Array, "n"], mask: Bool[Array, "n r"]
) -> Float[Array, "n r"]:
    """The response's whole reward less that of the greedy response (ReMax, Li et al. 2023, equation 4)."""
    total = jnp.sum(rewards, axis=-1, keepdims=True)
    return jnp.where(mask, total - baseline[:, None], 0.0)


def generalised_advantages(
    rewards: Float[Array, "n r"],
    values: Float[Array, "n r"],
    mask: Bool[Array, "n r"],
    gamma: float,
    lam: float,
) -> Float[Array, "n r"]:
    """GAE (Schulman et al. 2016, equation 16), before whitening.

    Tokens outside the mask are stepped over: the value and the advantage after them are those before them.
    """

    def step(later, column):
        next_value, next_advantage = later
        reward, value, kept = column
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        advantage = jnp.where(kept, advantage, next_advantage)
        return (jnp.where(kept, value, next_value), advantage), advantage

    start = (jnp.zeros(rewards.shape[0]), jnp.zeros(rewards.shape[0]))
    _, advantages = jax.lax.scan(step, start, (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T


def rewards_less_kl(
    rewards: Float[Array, "n r"],
    kl: Float[Array, "n r"],
    mask: Bool[Array, "n r"],
    coefficient: Float[Array, ""] | float,
) -> Float[Array, "n r"]:
    """Token rewards less ``coefficient`` times the token's KL to the reference (Ouyang et al. 2022)."""
    return rewards - jnp.where(mask, coefficient * kl, 0.0)
