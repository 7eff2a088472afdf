"""Coefficients and learning rates that change during training: pure functions of the step."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

# (updates made so far, updates in the whole run) -> value
Schedule = Callable[[Int[Array, ""], int], Float[Array, ""]]


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda step, total_steps: jnp.asarray(value, jnp.float32)


def linear(start: float, end: float, fraction: float = 1.0) -> Schedule:
    """A ramp from ``start`` at step 0 linearly to ``end`` after ``fraction`` of the run, then ``end``.

    The way takes ``max(1, floor(total_steps * fraction))`` steps. Source: PAPO's annealed perception
    coefficient (``AnnealingKLController`` of the released code, read before it is updated).
    Raises ValueError if ``fraction`` is not in (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"schedules.linear: fraction must lie in (0, 1], got {fraction}")

    def value(step: Int[Array, ""], total_steps: int) -> Float[Array, ""]:
        way = max(1, int(total_steps * fraction))
        done = jnp.clip(jnp.asarray(step, jnp.float32), 0.0, way)
        # Weighted by whole steps left, so that a value near the end keeps its digits.
        return start * ((way - done) / way) + end * (done / way)

    return value


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """``schedule`` multiplied by a constant."""
    return lambda step, total_steps: factor * schedule(step, total_steps)


def adaptive_coefficient(
    coefficient: float, measured: float, *, target: float, horizon: float, samples: int
) -> float:
    """The next coefficient of a penalty that shall hold ``measured`` near ``target``.

    It grows or shrinks by at most 20 % per ``horizon`` samples. For the host, between updates. Source:
    Ziegler et al. 2019, section 2.2, as in PAPO, EasyR1 and verl (``AdaptiveKLController``).
    """
    error = min(max(measured / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * samples / horizon)


def constant_with_warmup(peak: float, warmup_steps: int) -> optax.Schedule:
    """A linear warm-up from 0 to ``peak`` at ``warmup_steps``, then constant; 0 steps start at the peak."""
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
