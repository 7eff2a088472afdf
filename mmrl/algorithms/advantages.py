"""Advantages of responses within their group: rewards [b g] -> advantages [b g].

Every function leaves invalid rows out of its statistics and gives them 0. A group with fewer than two valid
rows has nothing to be compared with: its advantages are 0. A group of equal rewards gives exactly 0, with an
``eps`` of 0 too. Rewards up to 1e15 in size, the most that grading lets pass, give finite advantages.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def group_mean(values: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b 1"]:
    """The mean over the valid rows of each group; 0 if there are none."""
    count = jnp.sum(valid, axis=1, keepdims=True)
    return jnp.sum(jnp.where(valid, values, 0.0), axis=1, keepdims=True) / jnp.maximum(count, 1)


def group_std(values: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b 1"]:
    """The unbiased standard deviation over the valid rows of each group; 0 for fewer than two."""
    count = jnp.sum(valid, axis=1, keepdims=True)
    squares = jnp.where(valid, jnp.square(values - group_mean(values, valid)), 0.0)
    return jnp.sqrt(jnp.sum(squares, axis=1, keepdims=True) / jnp.maximum(count - 1, 1))


def centred(rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """The reward less the group's mean (Dr. GRPO, Liu et al. 2025)."""
    highest = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=1, keepdims=True)
    # The mean of seven 0.1 is not 0.1 in float32; dividing that ulp by (std + 1e-6) would give -0.007.
    # This also covers groups with one valid row (highest == lowest) and with none (highest < lowest).
    return jnp.where(valid & (highest > lowest), rewards - group_mean(rewards, valid), 0.0)


def normalised(
    rewards: Float[Array, "b g"], valid: Bool[Array, "b g"], eps: float = 1e-6
) -> Float[Array, "b g"]:
    """The reward less the group's mean, divided by (unbiased standard deviation + eps).

    Source: GRPO, Shao et al. 2024, section 4.1.2. ``eps`` is 1e-6 in PAPO, VPPO, EasyR1, verl; 1e-4 in TRL.
    """
    return _over(centred(rewards, valid), group_std(rewards, valid) + eps)


def batch_scaled(
    rewards: Float[Array, "b g"], valid: Bool[Array, "b g"], eps: float = 1e-4
) -> Float[Array, "b g"]:
    """The reward less its group's mean, divided by (standard deviation over the whole batch + eps).

    Source: Liu et al. 2025 ("Tricks or Traps"), TRL's ``scale_rewards="batch"``.
    """
    spread = group_std(rewards.reshape(1, -1), valid.reshape(1, -1))
    return _over(centred(rewards, valid), spread + eps)


def leave_one_out(rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """The reward less the mean of the others of its group (RLOO, Ahmadian et al. 2024, equation 8)."""
    count = jnp.sum(valid, axis=1, keepdims=True)
    return centred(rewards, valid) * count / jnp.maximum(count - 1, 1)


def lead_of_best(rewards: Float[Array, "b g"], valid: Bool[Array, "b g"]) -> Float[Array, "b g"]:
    """The best row's lead on the second best of its group, 0 for the others; a tie at the top gives 0."""
    ranked = -jnp.sort(-jnp.where(valid, rewards, -jnp.inf), axis=1)
    second = ranked[:, 1:2] if rewards.shape[1] > 1 else jnp.full_like(ranked, -jnp.inf)
    lead = jnp.where(jnp.isfinite(second), ranked[:, :1] - second, 0.0)
    return jnp.where(valid & (rewards == ranked[:, :1]), lead, 0.0)


def best_of_group(
    rewards: Float[Array, "b g"], valid: Bool[Array, "b g"], eps: float = 1e-6
) -> Float[Array, "b g"]:
    """Pass@k: ``lead_of_best`` over (unbiased standard deviation + eps).

    Source: Walder and Karkhanis 2025, as ``grpo_passk`` of EasyR1.
    """
    return _over(lead_of_best(rewards, valid), group_std(rewards, valid) + eps)


def _over(values: Float[Array, "b g"], spread: Float[Array, "_ 1"]) -> Float[Array, "b g"]:
    """``values / spread``; a spread of 0, which only an ``eps`` of 0 allows, leaves them as they are: 0."""
    return values / jnp.where(spread > 0.0, spread, 1.0)
