"""Schedules and frozen parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.config import OptimizerConfig
from mmrl.train.optimizer import learning_rate, make_optimizer

PARAMS = {"vision": {"w": jnp.ones(2)}, "visionary": jnp.ones(2), "layers": {"w": jnp.ones(2)}}


def rates(updates=10, **options):
    schedule = learning_rate(OptimizerConfig(learning_rate=1.0, **options), updates)
    return [round(float(schedule(step)), 6) for step in range(updates)]


def test_schedules():
    assert rates() == [1.0] * 10
    assert rates(warmup_updates=4)[:6] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = rates(schedule="cosine")
    np.testing.assert_allclose(cosine, [0.5 * (1 + np.cos(np.pi * k / 10)) for k in range(10)], atol=1e-6)


def test_frozen_parts_stay():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, freeze=("vision",)), PARAMS, 10)
    changes, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(changes["vision"]["w"], 0)
    assert (changes["visionary"] < 0).all()
    assert (changes["layers"]["w"] < 0).all()


def test_a_prefix_without_weights_is_an_error():
    with pytest.raises(ValueError, match="no weight is under 'vison'"):
        make_optimizer(OptimizerConfig(freeze=("vison",)), PARAMS, 10)
