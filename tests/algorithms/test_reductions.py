"""Weights of tokens in the mean."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms import reductions

MASK = jnp.array([[[1, 1, 1, 1], [1, 1, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]], bool)
VALID = jnp.array([[True, True], [True, False]])  # three responses, one of them without tokens


@pytest.mark.parametrize(
    ("reduction", "first", "second"),
    [
        (reductions.token_mean, 1 / 6, 1 / 6),
        (reductions.sequence_mean, 1 / 4 / 3, 1 / 2 / 3),
        (reductions.sequence_sum, 1 / 3, 1 / 3),
        (reductions.constant_length(10), 1 / 30, 1 / 30),
    ],
)
def test_weights(reduction, first, second):
    weight = np.asarray(reduction(MASK, VALID))
    np.testing.assert_allclose(weight[0, 0], first, rtol=1e-6)
    np.testing.assert_allclose(weight[0, 1, :2], second, rtol=1e-6)
    assert np.all(weight[~np.asarray(MASK)] == 0.0)


@pytest.mark.parametrize(
    "reduction", [reductions.token_mean, reductions.sequence_mean, reductions.sequence_sum]
)
def test_nothing_to_average_is_zero(reduction):
    weight = reduction(jnp.zeros_like(MASK), jnp.zeros_like(VALID))
    np.testing.assert_array_equal(weight, 0.0)
