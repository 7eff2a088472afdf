"""Attention over packed rows: both forms against a dense softmax under the rule of who reads whom."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on
from jax.sharding import Mesh, PartitionSpec

from mmrl.kernels.packed import (
    Span,
    block_pairs,
    most_pairs,
    packed_attention,
    segments,
    visible,
    visible_pairs,
)
from mmrl.kernels.packed_tpu import packed_attention_tpu
from mmrl.plan.aot import environment

FORMS = {
    "plain": packed_attention,
    "tpu": partial(packed_attention_tpu, interpret=True),
}

# Rows of 512 slots in blocks of 128.
LAYOUTS = {
    # two groups, one of which has a response of one token; the row ends with empty slots
    "groups": [Span(0, 60), Span(60, 100, 0), Span(100, 101, 0), Span(101, 330, 0), Span(330, 400),
               Span(400, 450, 4)],
    # all prompts first, as wide as a block and more; the last slot is used
    "prompts first": [Span(0, 128), Span(128, 290), Span(290, 300, 0), Span(300, 420, 1), Span(420, 512, 0)],
    # images, each read both ways; between them a gap
    "images": [Span(0, 200, 0), Span(200, 260, 1), Span(300, 500, 2)],
    "one sequence": [Span(0, 512)],
    "nothing": [],
}  # fmt: skip


def _arrays(rows=1, n=512, heads=2, group=3, width=16):
    shapes = [(rows, n, heads, group, width), *[(rows, n, heads, width)] * 2]
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _row(spans, n=512, block=128):
    """Ids and pairs of one row, with a leading axis."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[None], (segments(spans, n), block_pairs(spans, n, block))
    )


def _dense(query, key, value, ids):
    seen = jax.vmap(visible)(ids)
    score = jnp.einsum("bshqk,bthk->bhqst", query, key) * query.shape[-1] ** -0.5
    weight = jax.nn.softmax(jnp.where(seen[:, None, None], score, -1e30), axis=-1)
    return jnp.einsum("bhqst,bthk->bshqk", weight, value)


def _run(function, arrays, real):
    """Output where ``real``, and the gradients of a random sum over it."""
    real = jnp.asarray(real)[..., None, None, None]

    @jax.jit
    def run(*arrays):
        out, pull_back = jax.vjp(function, *arrays)
        return out * real, pull_back(jax.random.normal(jax.random.key(1), out.shape) * real)

    return run(*arrays)


def _assert_same(ours, theirs):
    for mine, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(mine, other, atol=3e-6 * max(np.abs(other).max(), 1e-30), rtol=0)


def _real(spans, n=512):
    return np.isin(np.arange(n), [slot for start, stop, _ in spans for slot in range(start, stop)])[None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name",
    [
        "groups",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in LAYOUTS if name != "groups"),
    ],
)
def test_equals_dense_softmax(form, name):
    spans, arrays = LAYOUTS[name], _arrays()
    ids, pairs = _row(spans)
    ours = _run(lambda *a: FORMS[form](*a, ids, pairs, block=128), arrays, _real(spans))
    _assert_same(ours, _run(lambda *a: _dense(*a, ids), arrays, _real(spans)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_one_call_are_apart(form):
    """Rows with unequal numbers of pairs, each as it is alone."""
    arrays = _arrays(rows=2)
    rows = [_row(LAYOUTS[name]) for name in ("groups", "images")]
    ids, pairs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
    real = np.concatenate([_real(LAYOUTS[name]) for name in ("groups", "images")])
    assert len(set(np.asarray(pairs.count))) == 2
    ours = _run(lambda *a: FORMS[form](*a, ids, pairs, block=128), arrays, real)
    _assert_same(ours, _run(lambda *a: _dense(*a, ids), arrays, real))


@pytest.mark.parametrize("form", FORMS)
def test_the_list_of_pairs_is_all_that_is_read(form):
    """Without a pair that is needed, the output is another; beyond the count, pairs mean nothing."""
    spans, arrays = LAYOUTS["groups"], _arrays()
    ids, pairs = _row(spans)
    whole = FORMS[form](*arrays, ids, pairs, block=128)
    (middle,) = np.flatnonzero(
        (np.asarray(pairs.by_query[0, 0]) == 2) & (np.asarray(pairs.by_query[0, 1]) == 1)
    )
    lost = pairs.by_query.at[0, 1, middle].set(2)
    assert np.abs(FORMS[form](*arrays, ids, replace(pairs, by_query=lost), block=128) - whole).max() > 0.01
    noise = pairs.by_query.at[..., int(pairs.count[0]) :].set(3)
    np.testing.assert_array_equal(FORMS[form](*arrays, ids, replace(pairs, by_query=noise), block=128), whole)


@pytest.mark.parametrize("form", ["tpu", pytest.param("plain", marks=pytest.mark.exhaustive)])
def test_finite_in_empty_slots(form):
    spans, arrays = LAYOUTS["images"], _arrays()
    ids, pairs = _row(spans)
    results = _run(lambda *a: FORMS[form](*a, ids, pairs, block=128), arrays, np.ones((1, 512)))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def _random_spans(rng, n):
    """A row as a packer makes it: prompts and their responses, now and then an image alone, and gaps."""
    spans, at = [], 0
    while True:
        sizes = [int(rng.integers(1, 150)) for _ in range(rng.integers(1, 5))]
        if at + sum(sizes) > n:
            return spans
        first = len(spans)
        alone = len(sizes) == 1 and rng.random() < 0.5
        for k, size in enumerate(sizes):
            spans.append(Span(at, at + size, first if k or alone else -1))
            at += size
        at += int(rng.integers(0, 3))


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_those_with_something_to_read(seed):
    n, block = 1024, 128
    spans = _random_spans(np.random.default_rng(seed), n)
    seen = np.asarray(visible(segments(spans, n)))
    real = _real(spans, n)[0]
    count = (seen & real[:, None]).reshape(n // block, block, n // block, block).sum(axis=(1, 3))
    np.testing.assert_array_equal(visible_pairs(spans, n, block), count)
    pairs = block_pairs(spans, n, block)
    query, key, flags = pairs.by_query[:, : pairs.count]
    expected = np.argwhere((count > 0) | np.eye(n // block, dtype=bool))
    np.testing.assert_array_equal(np.stack([query, key], axis=1), expected)
    np.testing.assert_array_equal((flags & 4) > 0, count[query, key] == block * block)
    np.testing.assert_array_equal((flags & 1) > 0, np.r_[True, query[1:] != query[:-1]])
    np.testing.assert_array_equal((flags & 2) > 0, np.r_[query[1:] != query[:-1], True])
    other = pairs.by_key[:, : pairs.count]
    order = np.lexsort((query, key))
    np.testing.assert_array_equal(other[:2], np.stack([query, key])[:, order])
    np.testing.assert_array_equal((other[2] & 1) > 0, np.r_[True, np.diff(other[1]) != 0])
    np.testing.assert_array_equal((other[2] & 2) > 0, np.r_[np.diff(other[1]) != 0, True])
    assert pairs.by_query.shape == (3, most_pairs(n, block))


def test_a_row_is_whole_blocks():
    with pytest.raises(ValueError, match="a row of 500 slots is not a whole number of blocks of 128"):
        block_pairs([], 500, 128)


@pytest.mark.slow
def test_on_four_devices():
    """The count of devices is fixed once jax has run, so a child runs the test below."""
    run_on(4, __file__, "-k", "within_shard_map and tpu")


@pytest.mark.exhaustive
def test_plain_form_on_four_devices():
    run_on(4, __file__, "-k", "within_shard_map and plain")


@pytest.mark.parametrize("form", FORMS)
def test_within_shard_map_equals_dense(form):
    """Rows over "data", each with its own number of pairs, heads over "tensor"."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: runs in the child of test_on_four_devices")
    arrays, names = _arrays(rows=2), ("groups", "images")
    ids, pairs = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves), *(_row(LAYOUTS[name]) for name in names)
    )
    real = np.concatenate([_real(LAYOUTS[name]) for name in names])
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    heads, rows = PartitionSpec("data", None, "tensor"), PartitionSpec("data")

    def sharded(*arrays):
        return jax.shard_map(
            lambda q, k, v, ids, pairs: FORMS[form](q, k, v, ids, pairs, block=128),
            mesh=mesh,
            in_specs=(heads, heads, heads, rows, rows),
            out_specs=heads,
            check_vma=False,
        )(*arrays, ids, pairs)

    _assert_same(_run(sharded, arrays, real), _run(lambda *a: _dense(*a, ids), arrays, real))


_COMPILE = """
import sys
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from mmrl.kernels.packed import Span, block_pairs, segments
from mmrl.kernels.packed_tpu import packed_attention_tpu

n, block, h, q, k = 16384, 512, 4, 7, 128
topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
place = SingleDeviceSharding(topology.devices[0])


def stand_in(shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((1, *shape), dtype, sharding=place)


def run(query, key, value, direction, ids, pairs):
    out, pull_back = jax.vjp(lambda *a: packed_attention_tpu(*a, ids, pairs, block=block), query, key, value)
    return out, *pull_back(direction)


row = (segments([Span(0, n)], n), block_pairs([Span(0, n)], n, block))
ids, pairs = jax.tree.map(lambda leaf: stand_in(jnp.shape(leaf), jnp.int32), row)
query, key = stand_in((n, h, q, k)), stand_in((n, h, k))
compiled = jax.jit(run).trace(query, key, key, query, ids, pairs).lower(lowering_platforms=("tpu",)).compile()
assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
print(f"{sys.argv[1]}: {temporaries:.0f} MiB of temporaries")
assert temporaries < 768, temporaries  # the scores of one head would be 1,024 in float32
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_compiles_for_tpu(topology):
    """Values and gradients of a row of 16,384 slots, 28 query and 4 key/value heads of 128."""
    child = subprocess.run(
        [sys.executable, "-c", _COMPILE, topology],
        env=os.environ | environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout[-4000:] + child.stderr[-4000:]
