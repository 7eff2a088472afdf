"""Coefficients that change during training: pure functions of the step."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# (updates made so far, updates in the whole run) -> value
Schedule = Callable[[Int[Array, ""], int], Float[Array, ""]]


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda step, total_steps: jnp.asarray(value, jnp.float32)


def linear(start: float, end: float, fraction: float = 1.0) -> Schedule:
    """From ``start`` at step 0 linearly to ``end`` after ``fraction`` of the run, then ``end``.

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
