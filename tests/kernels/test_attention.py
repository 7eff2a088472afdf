"""Attention kernels against softmax over concatenated keys, in values and gradients."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.kernels.attention import self_attention, two_source_attention
from mmrl.plan.aot import environment

B, G, S, T, P, H, Q, K = 2, 3, 4, 5, 6, 2, 3, 8


def _inputs(prefix):
    shapes = {"query": (B, G, S, H, Q, K), "own_key": (B, G, T, H, K), "own_value": (B, G, T, H, K)}
    if prefix:
        shapes |= {"prefix_key": (B, P, H, K), "prefix_value": (B, P, H, K)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 2 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _masks(prefix):
    own = jax.random.bernoulli(jax.random.key(1), 0.6, (B, G, S, T))
    own = own.at[0, 1, 2].set(False).at[1, 0, 0].set(False)
    masks = {"own_mask": own}
    if prefix:
        # All of the second prompt's prefix is padding: its first response has a query with nothing to read.
        masks["prefix_mask"] = jnp.arange(P) < jnp.array([[4], [0]])
    return masks


def _twin(query, own_key, own_value, own_mask, prefix_key=None, prefix_value=None, prefix_mask=None):
    def join(own, prefix):
        if prefix is None:
            return own
        return jnp.concatenate([own, jnp.broadcast_to(prefix[:, None], (B, G, *prefix.shape[1:]))], axis=2)

    key, value = join(own_key, prefix_key), join(own_value, prefix_value)
    mask = own_mask
    if prefix_mask is not None:
        mask = jnp.concatenate([mask, jnp.broadcast_to(prefix_mask[:, None, None], (B, G, S, P))], axis=-1)
    mask = mask[:, :, :, None, None]
    score = jnp.where(mask, jnp.einsum("bgshqk,bgthk->bgshqt", query, key) / K**0.5, -1e9)
    return jnp.einsum("bgshqt,bgthk->bgshqk", jax.nn.softmax(score, axis=-1) * mask, value)


def _value_and_gradient(function, inputs, masks):
    direction = jax.random.normal(jax.random.key(2), (B, G, S, H, Q, K), jnp.float32)
    direction = direction.astype(inputs["query"].dtype)

    @jax.jit
    def run(inputs):
        out, pull_back = jax.vjp(lambda inputs: function(**inputs, **masks), inputs)
        return out, pull_back(direction)[0]

    return run(inputs)


def _in_64_bits(inputs):
    return {name: np.asarray(x, np.float64) for name, x in inputs.items()}


@pytest.mark.parametrize("prefix", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_equals_softmax_over_all_keys(prefix):
    inputs, masks = _inputs(prefix), _masks(prefix)
    ours, our_gradient = _value_and_gradient(two_source_attention, inputs, masks)
    with jax.enable_x64(True):  # of two results in float32, each has rounding of its own
        theirs, their_gradient = _value_and_gradient(_twin, _in_64_bits(inputs), masks)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    for name in inputs:
        np.testing.assert_allclose(our_gradient[name], their_gradient[name], atol=5e-6, err_msg=name)


@pytest.mark.parametrize("prefix", [False, True])
def test_nothing_to_read_gives_zeros_and_no_gradient(prefix):
    inputs, masks = _inputs(prefix), _masks(prefix)
    out, gradient = _value_and_gradient(two_source_attention, inputs, masks)
    np.testing.assert_array_equal(out[1, 0, 0], 0)
    np.testing.assert_array_equal(gradient["query"][1, 0, 0], 0)
    assert all(jnp.isfinite(g).all() for g in gradient.values())


def test_masked_keys_are_not_read():
    inputs, masks = _inputs(True), _masks(True)
    masks["own_mask"] = masks["own_mask"].at[..., 3].set(False)
    unread = jnp.arange(T)[:, None, None] == 3
    before = two_source_attention(**inputs, **masks)
    for name in ("own_key", "own_value"):
        inputs[name] = jnp.where(unread, 1e4, inputs[name])
    for name in ("prefix_key", "prefix_value"):
        inputs[name] = jnp.where(masks["prefix_mask"][..., None, None], inputs[name], 1e4)
    np.testing.assert_array_equal(two_source_attention(**inputs, **masks), before)


def test_large_scores_do_not_overflow():
    inputs, masks = _inputs(True), _masks(True)
    inputs["query"] = inputs["query"] * 1e4
    out, gradient = _value_and_gradient(two_source_attention, inputs, masks)
    assert jnp.isfinite(out).all()
    assert all(jnp.isfinite(g).all() for g in gradient.values())


@pytest.mark.exhaustive
def test_self_attention_equals_softmax():
    query, key, value = jax.random.normal(jax.random.key(3), (3, B, T, H, K))
    mask = jax.random.bernoulli(jax.random.key(4), 0.5, (B, T, T)).at[0, 2].set(False).at[:, 0, 0].set(True)

    def twin(query, key, value):
        score = jnp.einsum("bthk,buhk->bhtu", query, key) / K**0.5
        weight = jax.nn.softmax(jnp.where(mask[:, None], score, -1e9), axis=-1) * mask[:, None]
        return jnp.einsum("bhtu,buhk->bthk", weight, value)

    def ours(query, key, value):
        return self_attention(query, key, value, mask)

    arguments = (query, key, value)
    np.testing.assert_allclose(ours(*arguments), twin(*arguments), atol=2e-6)
    np.testing.assert_array_equal(ours(*arguments)[0, 2], 0)
    gradients = [jax.grad(lambda a, f=f: (f(*a) ** 2).sum())(arguments) for f in (ours, twin)]
    for mine, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, other, atol=5e-6)


_DECODE = """
import sys
import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from mmrl.kernels.attention import two_source_attention

device = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices[0]
b, g, h, q, p, t, k = 4, 8, 4, 7, 4096, 2048, 128
own, prefix = (b, g, t, h, k), (b, p, h, k)
shapes = [(b, g, 1, h, q, k), own, own, (b, g, 1, t), prefix, prefix, (b, p)]
arguments = [
    jax.ShapeDtypeStruct(shape, bool if i in (3, 6) else "bfloat16", sharding=SingleDeviceSharding(device))
    for i, shape in enumerate(shapes)
]
compiled = jax.jit(two_source_attention).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
memory = compiled.memory_analysis().temp_size_in_bytes
copies = b * g * p * h * k * 2  # of the prefix's keys, one for each response
scores = b * g * h * q * (p + t) * 4
assert memory < 1.5 * scores < copies / 3, (memory, scores, copies)
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1"])
def test_decoding_does_not_repeat_the_prefix(topology):
    """One token a response at the sizes of a 7B model: temporaries are scores, not copies of the prefix."""
    child = subprocess.run(
        [sys.executable, "-c", _DECODE, topology],
        env=os.environ | environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-4000:]
