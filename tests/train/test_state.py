"""Weights that are trained and weights that are frozen."""

import jax
import jax.numpy as jnp
import optax
import pytest

from mmrl.train.state import initial_state, merge_params, split_params

PARAMS = {
    "vision": {"w": jnp.ones(2), "b": jnp.ones(1)},
    "visionary": jnp.ones(2),
    "layers": {"w": jnp.ones(2)},
}


@pytest.mark.parametrize("freeze", [(), ("vision",), ("vision/w", "layers")])
def test_parts_are_put_together_again(freeze):
    trainable, frozen = split_params(PARAMS, freeze)
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(frozen)) == 4
    merged = merge_params(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (merged, PARAMS)), strict=True))


def test_frozen_weights_have_no_moments():
    state = initial_state(PARAMS, optax.adam(0.1), ("vision",))
    assert state.frozen.keys() == {"vision"}
    assert state.trainable.keys() == {"visionary", "layers"}
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.trainable))
    assert state.params == PARAMS


@pytest.mark.parametrize(
    ("freeze", "why"),
    [
        (("vison",), "no weight is under 'vison'"),
        (("vision", "visionary", "layers"), "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(freeze, why):
    with pytest.raises(ValueError, match=why):
        split_params(PARAMS, freeze)
