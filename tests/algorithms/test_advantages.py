"""Advantages of responses within their group: what the golden vectors do not show."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.algorithms import advantages

ESTIMATORS = {
    "normalised": advantages.normalised,
    "centred": advantages.centred,
    "leave_one_out": advantages.leave_one_out,
    "batch_scaled": advantages.batch_scaled,
    "best_of_group": advantages.best_of_group,
    "lead_of_best": advantages.lead_of_best,
}


WITHOUT_EPS = {
    f"{name}, eps 0": partial(ESTIMATORS[name], eps=0.0)
    for name in ("normalised", "batch_scaled", "best_of_group")
}
JITTED = {name: jax.jit(estimator) for name, estimator in (ESTIMATORS | WITHOUT_EPS).items()}
REWARDS = st.sampled_from([0.0, 0.1, 1.0, -1.0, 1e-30, 1e15, -1e15]) | st.floats(-1e15, 1e15)
ROWS = st.lists(st.lists(st.tuples(REWARDS, st.booleans()), min_size=4, max_size=4), min_size=3, max_size=3)


@pytest.mark.parametrize("name", JITTED)
@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_any_rewards_and_any_valid_rows_give_finite_advantages(name, rows):
    rewards, valid = (np.array([[pair[i] for pair in row] for row in rows]) for i in (0, 1))
    actual = np.asarray(JITTED[name](jnp.asarray(rewards, jnp.float32), jnp.asarray(valid)))
    assert np.all(np.isfinite(actual))
    assert np.all(actual[~valid] == 0.0)
    assert np.all(actual[valid.sum(axis=1) < 2] == 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0, -3.7])
def test_equal_rewards_give_exactly_zero(name, reward):
    rewards = jnp.stack([jnp.full(7, reward), jnp.arange(7.0)])
    actual = ESTIMATORS[name](rewards, jnp.ones((2, 7), bool))
    assert np.all(np.asarray(actual[0]) == 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_fewer_than_two_valid_rows_give_zero(name):
    rewards = jnp.array([[1.0, 2.0, 4.0], [5.0, jnp.nan, jnp.inf], [jnp.nan, jnp.nan, jnp.nan]])
    valid = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
    actual = np.asarray(ESTIMATORS[name](rewards, valid))
    assert np.all(actual[1:] == 0.0)
    assert np.any(actual[0] != 0.0)
    assert np.all(np.isfinite(actual))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_invalid_row_is_as_if_it_were_not_there(name):
    rewards = jnp.array([[1.0, 0.0, 0.5, 0.25]])
    with_invalid = jnp.array([[1.0, jnp.nan, 0.0, 0.5, 0.25]])
    alone = ESTIMATORS[name](rewards, jnp.ones((1, 4), bool))
    beside = ESTIMATORS[name](with_invalid, jnp.array([[True, False, True, True, True]]))
    np.testing.assert_allclose(np.delete(np.asarray(beside), 1, axis=1), alone, rtol=1e-6)
    assert beside[0, 1] == 0.0


def test_leave_one_out_is_the_reward_less_the_mean_of_the_others():
    rewards = np.array([[1.0, 0.0, 0.5, 0.25]], np.float32)
    expected = [value - np.delete(rewards[0], i).mean() for i, value in enumerate(rewards[0])]
    actual = advantages.leave_one_out(jnp.asarray(rewards), jnp.ones((1, 4), bool))
    np.testing.assert_allclose(actual[0], expected, rtol=1e-6)


def test_pass_at_k_counts_the_best_alone():
    actual = advantages.lead_of_best(jnp.array([[0.2, 0.9, 0.5], [1.0, 1.0, 0.0]]), jnp.ones((2, 3), bool))
    np.testing.assert_allclose(actual, [[0.0, 0.4, 0.0], [0.0, 0.0, 0.0]], rtol=1e-6)
