"""Flash attention: interpreted against the plain forms, in values and gradients; and compiled for TPUs."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on
from jax.sharding import Mesh, PartitionSpec

from mmrl.kernels import flash
from mmrl.kernels.attention import self_attention
from mmrl.kernels.flash import flash_images
from mmrl.plan.aot import environment

KEYS = ("query", "key", "value")


def _value_and_gradient(function, arrays, real):
    """Output where ``real``, and the gradients of a random sum over it."""
    direction = jax.random.normal(jax.random.key(1), arrays["query"].shape) * real

    @jax.jit
    def run(arrays):
        out, pull_back = jax.vjp(lambda arrays: function(**arrays), arrays)
        return out * real, pull_back(direction)[0]

    return run(arrays)


def _assert_same(ours, theirs):
    for mine, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 * np.abs(other).max(), rtol=0)


def _images(n, h, k):
    arrays = jax.random.normal(jax.random.key(0), (3, 2, n, h, k))
    image = jnp.stack([jnp.arange(n) // 60, jnp.where(jnp.arange(n) < n - 30, 0, -1)])
    return dict(zip(KEYS, arrays, strict=True)), image.at[0, 40:50].set(-1)


@pytest.mark.parametrize(
    ("n", "h", "k"), [(128, 2, 80), pytest.param(192, 1, 16, marks=pytest.mark.exhaustive)]
)
def test_images_equal_plain(n, h, k):
    arrays, image = _images(n, h, k)
    real = (image >= 0)[..., None, None]
    same = (image[:, :, None] == image[:, None]) & (image >= 0)[:, None]
    ours = _value_and_gradient(lambda **a: flash_images(**a, image=image, interpret=True), arrays, real)
    theirs = _value_and_gradient(lambda **a: self_attention(**a, mask=same), arrays, real)
    _assert_same(ours, theirs)


def test_images_over_several_blocks(monkeypatch):
    """With blocks of 128, rows cross whole, partial and skipped blocks."""
    monkeypatch.setattr(flash, "_BLOCK", 128)
    test_images_equal_plain(300, 1, 80)


def test_images_are_finite_in_empty_slots():
    arrays, image = _images(192, 1, 16)
    image = image.at[1].set(-1)
    results = _value_and_gradient(lambda **a: flash_images(**a, image=image, interpret=True), arrays, 1)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


@pytest.mark.exhaustive
def test_on_four_devices():
    """The count of devices is fixed once jax has run, so a child runs the test below."""
    run_on(4, __file__, "-k", "within_shard_map")


def test_within_shard_map_equals_whole():
    """Images over "data", heads over "tensor": values and gradients are those of one device."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: runs in the child of test_on_four_devices")
    arrays, image = _images(192, 2, 16)
    real = (image >= 0)[..., None, None]
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    heads, rows = PartitionSpec("data", None, "tensor"), PartitionSpec("data")

    def sharded(query, key, value):
        return jax.shard_map(
            lambda *a: flash_images(*a, interpret=True),
            mesh=mesh,
            in_specs=(heads, heads, heads, rows),
            out_specs=heads,
            check_vma=False,
        )(query, key, value, image)

    ours = _value_and_gradient(sharded, arrays, real)
    theirs = _value_and_gradient(lambda **a: flash_images(**a, image=image, interpret=True), arrays, real)
    _assert_same(ours, theirs)


_COMPILE = """
import sys
import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mmrl.kernels.flash import flash_images

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = Mesh(np.array(topology.devices).reshape(1, 4), ("data", "tensor"))
b, n = 1, 12288


def gradient(function, specs, shapes):
    # Values and gradients of bfloat16 arrays, heads cut over "tensor", compiled for the slice.
    cut = jax.shard_map(function, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)

    def run(direction, *arrays):
        floats = sum(a.dtype == "bfloat16" for a in arrays)
        out, pull_back = jax.vjp(lambda *a: cut(*a, *arrays[floats:]), *arrays[:floats])
        return out, pull_back(direction)

    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(shapes, specs)
    ]
    compiled = jax.jit(run).trace(arrays[0], *arrays).lower(lowering_platforms=("tpu",)).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2, "one kernel forward, one backward"
    assert "all-reduce" not in text and "all-gather" not in text, "no communication"
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


heads, rows = P("data", None, "tensor"), P("data")
patches = ((b, n, 16, 80), "bfloat16")
images = gradient(flash_images, [heads] * 3 + [rows], [patches] * 3 + [((b, n), "int32")])
print(f"{sys.argv[1]}: {images:.0f} MiB of temporaries")
assert images < 300, images  # MiB; the scores alone would be 2300 in float32
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]")
@pytest.mark.parametrize(
    "topology",
    [
        "v5e:2x2",
        "v5p:2x2x1",
        "v6e:2x2",
    ],
)
def test_compiles_for_tpu(topology):
    """Values and gradients at the sizes of a 7B model, heads over four chips; no array of scores."""
    child = subprocess.run(
        [sys.executable, "-c", _COMPILE, topology],
        env=os.environ | environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout[-4000:] + child.stderr[-4000:]
