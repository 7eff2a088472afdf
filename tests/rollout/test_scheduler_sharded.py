"""Episodes on a mesh of eight devices, with fewer prompt slots than that, are those of one device."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from devices import run_on
from scripted import assert_same, make_world, play, shape_of

from mmrl.mesh import AXES, make_mesh, shardings
from mmrl.models.family import param_specs
from mmrl.rollout import engine

DEVICES = 8


@pytest.mark.exhaustive
def test_on_eight_devices():
    run_on(DEVICES, __file__, "-k", "mesh")


@pytest.mark.exhaustive
def test_a_mesh_changes_nothing(policy):
    """DecodeState that are admitted one by one, copied, and read in; contexts of their own."""
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices: runs in the child of test_on_eight_devices")
    jax.config.update("jax_disable_most_optimizations", True)
    world = make_world(policy)
    rng = np.random.default_rng(3)
    groups = [(prompt, rng.integers(0, 48, 1 + prompt % 3).tolist()) for prompt in (0, 1, 2, 3, 1, 2)]
    expected = play(world, groups, shape_of(3, 1, 5))
    mesh = make_mesh(dict(zip(AXES, (1, 2, 1, 2, 2), strict=True)))
    config = world.policy.config
    params = jax.device_put(world.policy.params, shardings(param_specs(config), mesh))
    with jax.set_mesh(mesh):
        weights = jax.jit(engine.decoding_weights, static_argnums=1)(params, config)
        played = play(replace(world, params=weights), groups, shape_of(3, 1, 5))
    for slot, one in played.items():
        assert_same(one, expected[slot], str(slot))
