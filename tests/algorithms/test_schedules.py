"""Schedules of coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms import schedules


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 1.0])
def test_linear_reaches_its_end_and_stays(fraction):
    total = 40
    schedule = jax.jit(schedules.linear(0.02, 0.005, fraction), static_argnums=1)
    values = np.array([float(schedule(jnp.int32(step), total)) for step in range(total + 5)])
    way = max(1, int(total * fraction))
    assert values[0] == pytest.approx(0.02, rel=1e-6)
    np.testing.assert_allclose(values[way:], 0.005, rtol=1e-6)
    np.testing.assert_allclose(np.diff(values[: way + 1]), (0.005 - 0.02) / way, rtol=1e-4)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_an_impossible_fraction_is_an_error(fraction):
    with pytest.raises(ValueError, match="fraction"):
        schedules.linear(1.0, 0.0, fraction)


def test_scaled_multiplies():
    schedule = schedules.scaled(schedules.linear(1.0, 0.0), 3.0)
    assert float(schedule(jnp.int32(5), 10)) == pytest.approx(1.5)


def test_adaptive_coefficient_is_bounded_and_moves_towards_the_target():
    step = dict(target=0.1, horizon=100.0, samples=50)
    assert schedules.adaptive_coefficient(0.2, 0.1, **step) == 0.2
    assert schedules.adaptive_coefficient(0.2, 100.0, **step) == pytest.approx(0.2 * 1.1)
    assert schedules.adaptive_coefficient(0.2, 0.0, **step) == pytest.approx(0.2 * 0.9)
