"""Vocabulary statistics with tokens and vocabulary cut over a mesh, against the plain formulas."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from mmrl.kernels.vocab import BANNED, log_distribution, token_statistics, top_tokens

DEVICES = 8
MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]
T, D, V, TEMPERATURE = 40, 16, 96, 0.7
BANS = {"some": np.arange(V) % 7 == 3, "half": np.arange(V) < V // 2}  # the half is whole shards
STATES = ("hidden", "corrupted_hidden")


def named(shape):
    return "x".join(map(str, shape))


@pytest.fixture(scope="module")
def mesh_of():
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices: runs in the child of test_on_eight_devices")

    def make(shape):
        devices = np.array(jax.devices()[:DEVICES]).reshape(shape)
        return Mesh(devices, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

    return make


@pytest.mark.slow
def test_on_eight_devices():
    """The count of devices is fixed once jax has run, so a child runs the tests below, on one mesh each."""
    run_on(DEVICES, __file__, "-k", "4x2 or unchecked")


@pytest.mark.exhaustive
def test_other_meshes_of_eight_devices():
    run_on(DEVICES, __file__, "-k", "not 4x2")


def draw(bans, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    bias = jnp.where(BANS[bans], BANNED, 0.0)
    moving = {
        "hidden": jax.random.normal(keys[0], (T, D)),
        "corrupted_hidden": jax.random.normal(keys[1], (T, D)),
        "table": jax.random.normal(keys[2], (V, D)) * D**-0.5,
    }
    moving = {name: value.astype(dtype) for name, value in moving.items()}
    tokens = jax.random.categorical(keys[3], jnp.broadcast_to(bias, (T, V)))
    return moving, tokens, bias, jax.random.normal(keys[4], (5, T))


def plain(moving, tokens, bias):
    p = log_distribution(moving["hidden"], moving["table"], bias, TEMPERATURE)
    q = log_distribution(moving["corrupted_hidden"], moving["table"], bias, TEMPERATURE)
    return {
        "logprob": p[jnp.arange(T), tokens],
        "entropy": -(jnp.exp(p) * p).sum(-1),
        "corrupted": q[jnp.arange(T), tokens],
        "perception": (jnp.exp(p) * (p - q)).sum(-1),
        "reverse_perception": (jnp.exp(q) * (q - p)).sum(-1),
    }


def specs(moving):
    return {name: P("data") if name in STATES else P("tensor") for name in moving}


def sharded(mesh, chunk, corrupted_gradient=True):
    """`token_statistics` in a shard_map, asked for everything."""

    def statistics(moving, tokens, bias):
        return token_statistics(
            **moving,
            tokens=tokens,
            bias=bias,
            temperature=TEMPERATURE,
            entropy=True,
            perception=True,
            reverse_perception=True,
            corrupted_gradient=corrupted_gradient,
            chunk=chunk,
            vocab_axis="tensor",
            token_axes=("data",),
        )

    def run(moving, tokens, bias):
        in_specs = (specs(moving), P("data"), P("tensor"))
        return jax.shard_map(statistics, mesh=mesh, in_specs=in_specs, out_specs=P("data"))(
            moving, tokens, bias
        )

    return run


def with_gradient(function, weight):
    """Jitted: the statistics, and the gradient of their sum weighed by ``weight`` (one row a statistic)."""

    def total(moving, tokens, bias):
        out = function(moving, tokens, bias)
        return sum((out[name] * w).sum() for name, w in zip(sorted(out), weight, strict=True)), out

    return jax.jit(jax.grad(total, has_aux=True))


def assert_close(ours, theirs, atol):
    assert set(ours) == set(theirs)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize(("chunk", "bans"), [(6, "some"), (64, "half")])  # a token takes two of a chunk
@pytest.mark.parametrize("shape", MESHES, ids=named)
def test_values_and_gradients(mesh_of, shape, chunk, bans):
    moving, tokens, bias, weight = draw(bans)
    gradient, values = with_gradient(sharded(mesh_of(shape), chunk), weight)(moving, tokens, bias)
    expected_gradient, expected = with_gradient(plain, weight)(moving, tokens, bias)
    assert_close(values, expected, 1e-5)
    assert_close(gradient, expected_gradient, 1e-5)


@pytest.mark.parametrize("shape", [(4, 2), (1, 8)], ids=named)
def test_constant_corrupted_distribution(mesh_of, shape):
    moving, tokens, bias, weight = draw("some")
    run = with_gradient(sharded(mesh_of(shape), 6, corrupted_gradient=False), weight)
    gradient, _ = run(moving, tokens, bias)

    def constant(live, tokens, bias):
        """q is read from arrays that do not move."""
        p = plain({**live, "corrupted_hidden": moving["corrupted_hidden"]}, tokens, bias)
        log_p = log_distribution(live["hidden"], live["table"], bias, TEMPERATURE)
        log_q = log_distribution(moving["corrupted_hidden"], moving["table"], bias, TEMPERATURE)
        p["corrupted"] = log_q[jnp.arange(T), tokens]
        p["perception"] = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
        p["reverse_perception"] = (jnp.exp(log_q) * (log_q - log_p)).sum(-1)
        return p

    expected, _ = with_gradient(constant, weight)(moving, tokens, bias)
    np.testing.assert_array_equal(gradient["corrupted_hidden"], 0)
    assert_close(gradient, {**expected, "corrupted_hidden": jnp.zeros((T, D))}, 1e-5)


@pytest.mark.parametrize("shape", [(4, 2), (1, 8)], ids=named)
def test_no_device_holds_its_tokens_by_its_vocabulary(mesh_of, shape):
    tokens, vocabulary = 320 * shape[0], 256 * shape[1]
    moving = {"hidden": jnp.ones((tokens, 4)), "corrupted_hidden": jnp.ones((tokens, 4))}
    moving["table"] = jnp.ones((vocabulary, 4))
    run = with_gradient(sharded(mesh_of(shape), 64), jnp.ones((5, tokens)))
    text = run.lower(moving, jnp.zeros(tokens, jnp.int32), jnp.zeros(vocabulary)).compile().as_text()
    shapes = [tuple(map(int, found.split(","))) for found in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)]
    assert (64, 256) in shapes
    assert max(map(np.prod, shapes)) == 64 * 256  # of 320 * 256


@pytest.mark.parametrize("shape", MESHES, ids=named)
@pytest.mark.parametrize("k", [5, 20])  # 20 is more than a shard of eight has
def test_top_tokens(mesh_of, shape, k):
    moving, _, bias, _ = draw("half")
    find = partial(top_tokens, k=k, temperature=TEMPERATURE, vocab_axis="tensor", chunk=3)
    in_specs = (P("data"), P("tensor"), P("tensor"))
    run = jax.shard_map(find, mesh=mesh_of(shape), in_specs=in_specs, out_specs=P("data"))
    ids, logprobs = jax.jit(run)(moving["hidden"], moving["table"], bias)
    log_p = log_distribution(moving["hidden"], moving["table"], bias, TEMPERATURE)
    expected, expected_ids = jax.lax.top_k(log_p, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(logprobs, expected, atol=1e-5, rtol=0)


def test_unchecked_shard_map_is_refused(mesh_of):
    moving, tokens, bias, _ = draw("some")
    statistics = partial(token_statistics, vocab_axis="tensor", token_axes=("data",))
    run = jax.shard_map(
        statistics,
        mesh=mesh_of((4, 2)),
        in_specs=(P("data"), P("tensor"), P("data"), P("tensor")),
        out_specs=P("data"),
        check_vma=False,
    )
    with pytest.raises(ValueError, match="check_vma"):
        run(moving["hidden"], moving["table"], tokens, bias)
