"""Learning rates over a run, made of optax's schedules."""

import jax.numpy as jnp
import optax


def constant_with_warmup(peak: float, warmup_steps: int) -> optax.Schedule:
    """From 0 at step 0 linearly to ``peak`` at ``warmup_steps``, then constant; 0 steps start at the peak."""
    return _after_warmup(peak, warmup_steps, optax.constant_schedule(peak))


def cosine_with_warmup(
    peak: float, warmup_steps: int, total_steps: int, final_fraction: float = 0.0, cycles: float = 0.5
) -> optax.Schedule:
    """Warmup, then ``cycles`` of a cosine from ``peak`` to ``final_fraction * peak``, until ``total_steps``.

    Half a cycle, the default, falls once. After ``total_steps`` the rate stays (EasyR1's and verl's goes on
    along the cosine). Raises ValueError unless there are steps after the warmup.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"cosine_with_warmup: {warmup_steps} warmup steps leave none of {total_steps}")

    def cosine(step):
        done = jnp.minimum(step / (total_steps - warmup_steps), 1.0)
        height = 0.5 * (1.0 + jnp.cos(2.0 * jnp.pi * cycles * done))
        return peak * (final_fraction + (1.0 - final_fraction) * height)

    return _after_warmup(peak, warmup_steps, cosine)


def _after_warmup(peak: float, warmup_steps: int, schedule: optax.Schedule) -> optax.Schedule:
    if warmup_steps < 0:
        raise ValueError(f"learning rate: warmup_steps must not be negative, got {warmup_steps}")
    if warmup_steps == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), schedule], [warmup_steps])
