"""Per-token losses: bounds and couplings that the golden vectors do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms import objectives

OBJECTIVES = {
    "clipped": objectives.clipped(0.2, 0.3, 3.0),
    "sequence": objectives.sequence_clipped(0.2, 0.3),
    "sequence, token level": objectives.sequence_clipped(0.2, 0.3, token_level=True),
    "weighted": objectives.clipped_weight(),
    "gate": objectives.soft_gate(),
}


def total(objective, logprob, old, advantage):
    mask = jnp.ones(logprob.shape, bool)
    return objective.token_loss(logprob, old, advantage, mask)[0].sum()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_policy_the_gradient_is_that_of_reinforce(name):
    key = jax.random.split(jax.random.key(0), 2)
    logprob = -jax.random.exponential(key[0], (2, 3, 5))
    # One advantage for a response, so that the sequence ratio spreads it evenly.
    advantage = jnp.broadcast_to(jax.random.normal(key[1], (2, 3, 1)), logprob.shape)
    gradient = jax.grad(lambda x: total(OBJECTIVES[name], x, logprob, advantage))(logprob)
    np.testing.assert_allclose(gradient, -advantage, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_far_from_the_old_policy_everything_is_finite(name):
    logprob = jnp.array([[[-1e4, 0.0, -50.0]]])
    for old in (jnp.zeros((1, 1, 3)), jnp.full((1, 1, 3), -1e4)):
        for advantage in (jnp.ones((1, 1, 3)), -jnp.ones((1, 1, 3))):
            value, gradient = jax.value_and_grad(
                lambda x, old=old, a=advantage: total(OBJECTIVES[name], x, old, a)
            )(logprob)
            assert np.isfinite(float(value))
            assert np.all(np.isfinite(gradient))


def test_sequence_ratio_couples_the_tokens_of_one_response_only():
    old = jnp.zeros((1, 2, 3))
    logprob = old.at[0, 0, 0].set(-0.1)
    advantage = jnp.ones_like(old)
    loss = OBJECTIVES["sequence"].token_loss(logprob, old, advantage, jnp.ones(old.shape, bool))[0]
    np.testing.assert_allclose(loss[0, 0], -np.exp(-0.1 / 3), rtol=1e-6)
    np.testing.assert_allclose(loss[0, 1], -1.0, rtol=1e-6)


def test_dual_clip_caps_the_loss_of_bad_tokens():
    logprob, old, advantage = jnp.full((1, 1, 1), 3.0), jnp.zeros((1, 1, 1)), -jnp.ones((1, 1, 1))
    mask = jnp.ones((1, 1, 1), bool)
    capped, metrics = objectives.clipped(0.2, 0.2, 3.0).token_loss(logprob, old, advantage, mask)
    free, _ = objectives.clipped(0.2, 0.2).token_loss(logprob, old, advantage, mask)
    assert float(capped[0, 0, 0]) == pytest.approx(3.0)
    assert float(free[0, 0, 0]) == pytest.approx(np.exp(3.0), rel=1e-5)
    assert float(metrics["clip_dual"][0, 0, 0]) == 1.0


def test_log_ratios_beyond_twenty_have_no_gradient():
    old, advantage, mask = jnp.zeros((1, 1, 2)), -jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2), bool)
    objective = objectives.clipped(0.2, 0.2)
    logprob = jnp.array([[[19.0, 25.0]]])
    loss = objective.token_loss(logprob, old, advantage, mask)[0]
    np.testing.assert_allclose(loss[0, 0], np.exp([19.0, 20.0]), rtol=1e-5)
    gradient = jax.grad(lambda x: total(objective, x, old, advantage))(logprob)
    np.testing.assert_allclose(gradient[0, 0], [np.exp(19.0), 0.0], rtol=1e-5)
