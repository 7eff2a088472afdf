"""Sharding rules: what is cut over what, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from mmrl import mesh as meshes
from mmrl.config import Config, RolloutConfig, TrainConfig
from mmrl.mesh import (
    ACTIVATIONS,
    AXES,
    DECODING,
    WEIGHTS,
    check_devices,
    constrain,
    make_mesh,
    shard_batch,
    shard_map_kernel,
    sharded_over,
    spec,
)
from mmrl.models.published import published
from mmrl.open import sharding_warnings

SIZES = {"replica": 2, "data": 1, "fsdp": 4, "expert": 2, "tensor": 2}


@pytest.fixture
def one():
    return make_mesh({}, jax.devices()[:1])


def test_weights_move_from_training_to_decoding():
    axes, shape = ("layers", "embed", "heads", None), (3, 8, 16, 6)
    assert spec(axes, shape, WEIGHTS, SIZES) == P(None, ("fsdp", "expert"), "tensor", None)
    assert spec(axes, shape, DECODING, SIZES) == P(None, None, "tensor", None)
    axes, shape = ("layers", "experts", "expert_embed", "mlp"), (3, 6, 8, 16)
    assert spec(axes, shape, WEIGHTS, SIZES) == P(None, "expert", "fsdp", "tensor")
    assert spec(axes, shape, DECODING, SIZES) == P(None, "expert", None, "tensor")


def test_a_batch_is_cut_over_what_divides_it():
    def cut(rows):
        return spec(("batch", None), (rows, 3), ACTIVATIONS, SIZES)[0]

    assert cut(16) == ("replica", "data", "fsdp", "expert")
    assert cut(8) == ("replica", "data", "fsdp")
    assert cut(2) == ("replica", "data")
    assert cut(3) is None


def test_two_claims_on_one_axis_are_refused():
    with pytest.raises(ValueError, match=r"'heads' and 'mlp' .* both cut over the mesh axis 'tensor'"):
        spec(("heads", "mlp"), (4, 4), WEIGHTS, SIZES)


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ({}, 1, (1, 1, 1, 1, 1)),
        ({"fsdp": -1, "tensor": 2}, 8, (1, 1, 4, 1, 2)),
        ({"data": 2, "expert": 4}, 8, (1, 2, 1, 4, 1)),
    ],
)
def test_one_size_may_be_left_open(sizes, devices, expected):
    assert meshes._filled([sizes.get(axis, 1) for axis in AXES], devices) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 3, "fsdp": -1}, "does not fit 8 devices: the sizes must multiply to 8"),
        ({"tensor": 4}, "does not fit 8 devices"),
        ({"fsdp": -1, "data": -1}, "one of them may be -1"),
        ({"fsdp": 0}, "sizes are 1 or more"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        meshes._filled([sizes.get(axis, 1) for axis in AXES], 8)


def test_nothing_is_constrained_without_a_mesh():
    x = jnp.ones((4, 2))
    assert constrain(x, "batch", None) is x
    assert sharded_over(x, "batch", None) == ((), ())
    assert shard_map_kernel(lambda x: x, [("batch", None)], like=0)(x) is x


def test_host_arrays_keep_their_rows(one):
    tree = {"x": np.arange(6).reshape(3, 2), "mask": np.array([True, False, True])}
    placed = shard_batch(tree, one)
    assert placed["x"].sharding.mesh == one
    jax.tree.map(np.testing.assert_array_equal, placed, tree)


def test_what_a_mesh_does_not_divide_is_said():
    sizes = replace(published("7b"), layers=1)
    mesh = AbstractMesh((1, 1, 1024, 1, 4), AXES)
    config = Config(train=TrainConfig(update_prompts=1024), rollout=RolloutConfig(prompts=1000))
    batch, text, vision = sharding_warnings(config, sizes, mesh)
    assert "config.rollout.prompts=1000 is no multiple of 1024" in batch
    assert "config.mesh.fsdp=1024 does not divide the width (3584)" in text
    assert "does not divide the width of the vision tower (1280)" in vision
    config = Config(train=TrainConfig(update_prompts=1024), rollout=RolloutConfig(prompts=1024))
    assert sharding_warnings(config, sizes, AbstractMesh((1, 8, 64, 2, 4), AXES)) == []


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ("cuda", AssertionError(), r"JAX_PLATFORMS=cuda cannot be used .*pip install \"jax\[cuda13\]\""),
        ("tpu", RuntimeError("No TPU found\nmore"), r"\(No TPU found\): pip install \"jax\[tpu\]\""),
        ("rocm", RuntimeError("not known"), r"JAX_PLATFORMS=rocm cannot be used \(not known\): unset it"),
    ],
)
def test_a_platform_that_is_missing_is_one_line_with_the_fix(monkeypatch, asked, error, said):
    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(ValueError, match=said) as caught:
        check_devices()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "mark", "said"),
    [
        ("", "/dev/nvidia0", 'pip install "jax[cuda13]"'),
        ("", "/dev/accel0", 'pip install "jax[tpu]"'),
        ("cpu", "/dev/nvidia0", None),
        ("", "/dev/null0", None),
    ],
)
def test_an_accelerator_that_is_not_used_is_told_of(monkeypatch, asked, mark, said):
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr("os.path.exists", lambda path: path == mark)
    found = check_devices()
    assert (found is None) if said is None else (said in found and "\n" not in found)
