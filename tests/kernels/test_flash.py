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
from mmrl.kernels.attention import self_attention, two_source_attention
from mmrl.kernels.flash import flash_causal, flash_images
from mmrl.plan.aot import environment

KEYS = ("query", "key", "value", "prefix_key", "prefix_value")


def _responses(b=2, g=2, s=128, h=1, q=2, k=128, p=128):
    shapes = [(b, g, s, h, q, k), *[(b, g, s, h, k)] * 2, *[(b, p, h, k)] * 2][: 5 if p else 3]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    real = s - 7 * jnp.arange(b * g).reshape(b, g)
    masks = {"mask": jnp.arange(s) < real[..., None]}
    if p:
        masks["prefix_mask"] = jnp.arange(p) < (p - 11 * jnp.arange(b))[:, None]
    return dict(zip(KEYS, arrays, strict=False)), masks


def _plain(query, key, value, mask, prefix_key=None, prefix_value=None, prefix_mask=None):
    order = jnp.arange(mask.shape[-1])
    causal = (order[:, None] >= order) & mask[..., None, :]
    return two_source_attention(query, key, value, causal, prefix_key, prefix_value, prefix_mask)


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


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"p": 0, "g": 1, "s": 100},
        {"s": 70, "p": 90, "h": 2, "q": 3, "k": 16},
        {"g": 3, "b": 1, "s": 130, "p": 200},
    ],
    ids=["aligned", "prefill", "unaligned", "group"],
)
def test_causal_equals_plain(shape):
    arrays, masks = _responses(**shape)
    real = masks["mask"][..., None, None, None]
    ours = _value_and_gradient(lambda **a: flash_causal(**a, **masks, interpret=True), arrays, real)
    theirs = _value_and_gradient(lambda **a: _plain(**a, **masks), arrays, real)
    _assert_same(ours, theirs)


def test_causal_over_several_blocks(monkeypatch):
    """With blocks of 128, rows cross whole, partial and skipped blocks."""
    monkeypatch.setattr(flash, "_BLOCK", 128)
    test_causal_equals_plain({"b": 1, "s": 300, "p": 200, "q": 1})


@pytest.mark.exhaustive
def test_gradient_of_the_prefix_is_the_sum_over_the_group():
    arrays, masks = _responses(b=1, g=3)
    real = masks["mask"][..., None, None, None]
    _, shared = _value_and_gradient(lambda **a: flash_causal(**a, **masks, interpret=True), arrays, real)
    direction = jax.random.normal(jax.random.key(1), arrays["query"].shape) * real
    total = {"prefix_key": 0.0, "prefix_value": 0.0}
    for member in range(3):
        alone = {n: a[:, member : member + 1] if "prefix" not in n else a for n, a in arrays.items()}
        mask = masks | {"mask": masks["mask"][:, member : member + 1]}
        pull_back = jax.vjp(lambda a, m=mask: flash_causal(**a, **m, interpret=True), alone)[1]
        gradient = pull_back(direction[:, member : member + 1])[0]
        total = {name: total[name] + gradient[name] for name in total}
    _assert_same({name: shared[name] for name in total}, total)


@pytest.mark.exhaustive
def test_causal_is_finite_at_padding():
    """Also where nothing at all is real, and for gradients that come from padded rows."""
    arrays, masks = _responses(s=70, p=90)
    masks = {"mask": masks["mask"].at[0].set(False), "prefix_mask": masks["prefix_mask"].at[1].set(False)}
    results = _value_and_gradient(lambda **a: flash_causal(**a, **masks, interpret=True), arrays, 1)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def test_causal_does_not_read_padding():
    arrays, masks = _responses(s=70, p=90)
    real, real_prefix = masks["mask"][..., None, None], masks["prefix_mask"][..., None, None]
    before = flash_causal(**arrays, **masks, interpret=True)
    for name in ("key", "value"):
        arrays[name] = jnp.where(real, arrays[name], 1e4)
        arrays[f"prefix_{name}"] = jnp.where(real_prefix, arrays[f"prefix_{name}"], 1e4)
    after = flash_causal(**arrays, **masks, interpret=True)
    np.testing.assert_array_equal(before * real[..., None], after * real[..., None])


def _images(n, h, k):
    arrays = jax.random.normal(jax.random.key(0), (3, 2, n, h, k))
    image = jnp.stack([jnp.arange(n) // 60, jnp.where(jnp.arange(n) < n - 30, 0, -1)])
    return dict(zip(KEYS, arrays, strict=False)), image.at[0, 40:50].set(-1)


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
    """Prompts over "data", heads over "tensor": values and gradients are those of one device."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: runs in the child of test_on_four_devices")
    arrays, masks = _responses(h=2, s=70, p=90, q=1, k=16)
    real = masks["mask"][..., None, None, None]
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    own, prefix = PartitionSpec("data", None, None, "tensor"), PartitionSpec("data", None, "tensor")
    rows = PartitionSpec("data")

    def sharded(query, key, value, prefix_key, prefix_value):
        return jax.shard_map(
            lambda *a: flash_causal(*a, interpret=True),
            mesh=mesh,
            in_specs=(own, own, own, rows, prefix, prefix, rows),
            out_specs=own,
            check_vma=False,
        )(query, key, value, masks["mask"], prefix_key, prefix_value, masks["prefix_mask"])

    ours = _value_and_gradient(sharded, arrays, real)
    theirs = _value_and_gradient(lambda **a: flash_causal(**a, **masks, interpret=True), arrays, real)
    _assert_same(ours, theirs)


_COMPILE = """
import sys
import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mmrl.kernels.flash import flash_causal, flash_images

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = Mesh(np.array(topology.devices).reshape(1, 4), ("data", "tensor"))
b, g, s, h, q, k, p, n = 1, 8, 2048, 4, 7, 128, 4096, 12288


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


own, prefix, rows = P("data", None, None, "tensor"), P("data", None, "tensor"), P("data")
query, key, shared = [(shape, "bfloat16") for shape in ((b, g, s, h, q, k), (b, g, s, h, k), (b, p, h, k))]
train = gradient(
    lambda q, k, v, pk, pv, m, pm: flash_causal(q, k, v, m, pk, pv, pm),
    [own] * 3 + [prefix] * 2 + [rows] * 2,
    [query, key, key, shared, shared, ((b, g, s), bool), ((b, p), bool)],
)
patches = ((b, n, 16, 80), "bfloat16")
images = gradient(flash_images, [prefix] * 3 + [rows], [patches] * 3 + [((b, n), "int32")])
print(f"{sys.argv[1]}: {train:.0f} and {images:.0f} MiB of temporaries")
assert train < 300, train  # MiB; the scores alone would be 1300 in float32
assert images < 300, images  # of 2300
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
