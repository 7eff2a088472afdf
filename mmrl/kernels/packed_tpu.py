"""Attention over packed rows as Pallas kernels for TPU: `mmrl.kernels.packed` says what is computed.

The grid goes through the list of block pairs, whose length is data: of each key/value head, one step a pair.
All queries of that head are in a step, so that keys, values and the mask are there once for all of them.
Forward and the queries' gradient go by blocks of queries, the gradients of keys and values by blocks of keys;
what a block gathers stays in vector memory until its last pair. ``interpret`` runs the kernels as plain JAX.

Functions of the arrays of one device, to be called inside `jax.shard_map` with ``check_vma=False``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mmrl.kernels.attention import MASKED
from mmrl.kernels.packed import FIRST, LAST, WHOLE, BlockPairs, Segments, over_rows

_LANES, _SUBLANES = 128, 8
_VMEM_BYTES = 64 * 2**20

_ABT = (((1,), (1,)), ((), ()))  # a @ b.T
_AB = (((1,), (0,)), ((), ()))  # a @ b
_dot = partial(lax.dot_general, preferred_element_type=jnp.float32)


class _Sizes(NamedTuple):
    """Sizes of one call: key/value heads, query heads of each, slots, head width, slots of a block."""

    heads: int
    group: int
    n: int
    width: int
    block: int


def packed_attention_tpu(
    query: Float[Array, "b n h q k"],
    key: Float[Array, "b n h k"],
    value: Float[Array, "b n h k"],
    segments: Segments,
    pairs: BlockPairs,
    *,
    block: int,
    interpret: bool = False,
) -> Float[Array, "b n h q k"]:
    """As `mmrl.kernels.packed.packed_attention`, with ``block`` a multiple of 128 and ``q`` up to 8."""
    width = query.shape[-1]

    def attend(query: Array, key: Array, value: Array, *ids: Segments | BlockPairs) -> Array:
        padded = [
            jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, -width % _LANES)]) for part in (query, key, value)
        ]
        return _attend(block, interpret, *padded, *ids)[..., :width]

    return over_rows(attend, query, key, value, segments, pairs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    block: int, interpret: bool, query: Array, key: Array, value: Array, segments: Segments, pairs: BlockPairs
) -> Array:
    return _forward(block, interpret, query, key, value, segments, pairs)[0]


def _forward(
    block: int,
    interpret: bool,
    query: Float[Array, "h q n k"],
    key: Float[Array, "h n k"],
    value: Float[Array, "h n k"],
    segments: Segments,
    pairs: BlockPairs,
) -> tuple[Array, tuple]:
    heads, group, n, width = query.shape
    sizes = _Sizes(heads, group, n, width, block)
    out, log_total = _call(
        _forward_kernel,
        sizes,
        pairs.by_query,
        pairs.count,
        [(query, "query"), (key, "key"), (value, "key"), *_ids(segments, n)],
        [(_like(query), "query"), (jax.ShapeDtypeStruct((heads, n, _LANES), jnp.float32), "statistic")],
        [(group, block, _LANES), (group, block, _LANES), (group, block, width)],
        interpret,
    )
    return out, (query, key, value, segments, pairs, out, log_total)


def _backward(block: int, interpret: bool, residuals: tuple, gradient: Float[Array, "h q n k"]) -> tuple:
    query, key, value, segments, pairs, out, log_total = residuals
    heads, group, n, width = query.shape
    sizes = _Sizes(heads, group, n, width, block)
    along = jnp.einsum("hqnk,hqnk->hnq", out, gradient, preferred_element_type=jnp.float32)
    along = jnp.pad(along, ((0, 0), (0, 0), (0, _LANES - group)))
    inputs = [(query, "query"), (key, "key"), (value, "key")]
    (of_query,) = _call(
        _query_kernel,
        sizes,
        pairs.by_query,
        pairs.count,
        [*inputs, *_ids(segments, n), (gradient, "query"), (log_total, "statistic"), (along, "statistic")],
        [(_like(query), "query")],
        [(group, block, width)],
        interpret,
    )
    # Keys stand in the rows of what follows, queries in its columns.
    log_total, along = (part[..., :_SUBLANES].swapaxes(1, 2) for part in (log_total, along))
    of_key, of_value = _call(
        _key_kernel,
        sizes,
        pairs.by_key,
        pairs.count,
        [
            *inputs,
            *_ids(segments, n, keys_in_rows=True),
            (gradient, "query"),
            (log_total, "statistic_row"),
            (along, "statistic_row"),
        ],
        [(_like(key), "key"), (_like(value), "key")],
        [(block, width), (block, width)],
        interpret,
    )
    return of_query, of_key, of_value, None, None


_attend.defvjp(_forward, _backward)


def _ids(segments: Segments, n: int, keys_in_rows: bool = False) -> list[tuple[Array, str]]:
    """Span and what is read of queries, span and context of keys: one side along rows, one along columns."""
    span, reads, context = (jnp.asarray(ids) for ids in (segments.span, segments.reads, segments.context))
    of_sides = {"query": (span, reads), "key": (span, context)}
    in_rows = "key" if keys_in_rows else "query"
    return [
        (jnp.broadcast_to(ids[:, None], (n, _LANES)), f"{side}_rows")
        if side == in_rows
        else (jnp.broadcast_to(ids[None], (_SUBLANES, n)), f"{side}_columns")
        for side, of_side in of_sides.items()
        for ids in of_side
    ]


def _call(
    kernel: Callable[..., None],
    sizes: _Sizes,
    pairs: Array | np.ndarray,
    count: Array | np.ndarray,
    inputs: list[tuple[Array, str]],
    outputs: list[tuple[jax.ShapeDtypeStruct, str]],
    scratch: list[tuple[int, ...]],
    interpret: bool,
) -> tuple[Array, ...]:
    """Run a kernel over the pairs; each array comes with the kind of block that it is cut into."""
    heads, group, _, width, block = sizes
    kinds = {
        "query": pl.BlockSpec((None, group, block, width), lambda h, p, pairs: (h, 0, pairs[0, p], 0)),
        "key": pl.BlockSpec((None, block, width), lambda h, p, pairs: (h, pairs[1, p], 0)),
        "statistic": pl.BlockSpec((None, block, _LANES), lambda h, p, pairs: (h, pairs[0, p], 0)),
        "statistic_row": pl.BlockSpec((None, _SUBLANES, block), lambda h, p, pairs: (h, 0, pairs[0, p])),
        "query_rows": pl.BlockSpec((block, _LANES), lambda h, p, pairs: (pairs[0, p], 0)),
        "key_rows": pl.BlockSpec((block, _LANES), lambda h, p, pairs: (pairs[1, p], 0)),
        "query_columns": pl.BlockSpec((_SUBLANES, block), lambda h, p, pairs: (0, pairs[0, p])),
        "key_columns": pl.BlockSpec((_SUBLANES, block), lambda h, p, pairs: (0, pairs[1, p])),
    }
    return pl.pallas_call(
        partial(kernel, sizes=sizes),
        name=kernel.__name__.strip("_"),
        interpret=interpret,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(heads, jnp.asarray(count)),
            in_specs=[kinds[kind] for _, kind in inputs],
            out_specs=[kinds[kind] for *_, kind in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[output for output, _ in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
        ),
    )(pairs, *(array for array, _ in inputs))


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _forward_kernel(
    pairs, query, key, value, span_q, reads, span_k, context, out, log_total, *scratch, sizes
):
    """Softmax attention; sums over the block pairs of a block of queries are normalised as they come."""
    top, total, gathered = scratch
    block, width = sizes.block, sizes.width
    i, j, flags = (pairs[row, pl.program_id(1)] for row in range(3))

    @pl.when(flags & FIRST != 0)
    def start():
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        gathered[...] = jnp.zeros_like(gathered)

    def add(seen):
        def of_head(g, _):
            score = _masked(_dot(query[g], key[...], _ABT), seen)
            before = top[g]
            higher = jnp.maximum(before, score.max(axis=-1, keepdims=True))
            weight = jnp.exp(score - _over(higher, block))
            shrink = jnp.exp(before - higher)
            top[g] = higher
            total[g] = total[g] * shrink + weight.sum(axis=-1, keepdims=True)
            gathered[g] = gathered[g] * _over(shrink, width) + _dot(
                weight.astype(value.dtype), value[...], _AB
            )

        lax.fori_loop(0, sizes.group, of_head, None)

    _masked_or_whole(flags, add, lambda: _visible((span_q, reads), (span_k, context), i, j, block))

    @pl.when(flags & LAST != 0)
    def finish():
        lane = lax.broadcasted_iota(jnp.int32, (block, _LANES), 1)
        logs = jnp.zeros((block, _LANES), jnp.float32)
        for g in range(sizes.group):
            out[g] = (gathered[g] / _over(total[g], width)).astype(out.dtype)
            logs = jnp.where(lane == g, top[g] + jnp.log(total[g]), logs)  # the lane is the head
        log_total[...] = logs


def _query_kernel(pairs, query, key, value, span_q, reads, span_k, context, *rest, sizes):
    """The queries' gradient."""
    given, log_total, along, out, gathered = rest
    i, j, flags = (pairs[row, pl.program_id(1)] for row in range(3))

    @pl.when(flags & FIRST != 0)
    def start():
        gathered[...] = jnp.zeros_like(gathered)

    def add(seen):
        def of_head(g, _):
            score = _masked(_dot(query[g], key[...], _ABT), seen)
            weight = jnp.exp(score - _lane(log_total, g))
            of_weight = _dot(given[g], value[...], _ABT)
            of_score = weight * (of_weight - _lane(along, g))
            gathered[g] += _dot(of_score.astype(key.dtype), key[...], _AB)

        lax.fori_loop(0, sizes.group, of_head, None)

    _masked_or_whole(flags, add, lambda: _visible((span_q, reads), (span_k, context), i, j, sizes.block))

    @pl.when(flags & LAST != 0)
    def finish():
        out[...] = gathered[...].astype(out.dtype)


def _key_kernel(pairs, query, key, value, span_q, reads, span_k, context, *rest, sizes):
    """The gradients of keys and values; scores stand with keys in rows."""
    given, log_total, along, key_out, value_out, of_key, of_value = rest
    i, j, flags = (pairs[row, pl.program_id(1)] for row in range(3))

    @pl.when(flags & FIRST != 0)
    def start():
        of_key[...] = jnp.zeros_like(of_key)
        of_value[...] = jnp.zeros_like(of_value)

    def add(seen):
        def of_head(g, _):
            score = _masked(_dot(key[...], query[g], _ABT), seen)
            weight = jnp.exp(score - log_total[pl.ds(g, 1), :])
            of_value[...] += _dot(weight.astype(given.dtype), given[g], _AB)
            of_weight = _dot(value[...], given[g], _ABT)
            of_score = weight * (of_weight - along[pl.ds(g, 1), :])
            of_key[...] += _dot(of_score.astype(query.dtype), query[g], _AB)

        lax.fori_loop(0, sizes.group, of_head, None)

    _masked_or_whole(
        flags, add, lambda: _visible((span_q, reads), (span_k, context), i, j, sizes.block, keys_in_rows=True)
    )

    @pl.when(flags & LAST != 0)
    def finish():
        key_out[...] = of_key[...].astype(key_out.dtype)
        value_out[...] = of_value[...].astype(value_out.dtype)


def _masked_or_whole(flags: Array, add: Callable[[Array | None], None], seen: Callable[[], Array]) -> None:
    """``add`` without a mask where every query reads every key; the mask is not made there."""
    pl.when(flags & WHOLE != 0)(lambda: add(None))
    pl.when(flags & WHOLE == 0)(lambda: add(seen()))


def _masked(score: Array, seen: Array | None) -> Array:
    return score if seen is None else jnp.where(seen, score, MASKED)


def _visible(of_queries, of_keys, i: Array, j: Array, block: int, keys_in_rows: bool = False) -> Array:
    """Whether a query reads a key, in a block of each: queries in rows, or keys."""
    query_axis = int(keys_in_rows)

    def wide(ids, in_rows: bool) -> Array:
        return _over(ids[...], block) if in_rows else ids[:1]

    span_q, reads = (wide(ids, not keys_in_rows) for ids in of_queries)
    span_k, context = (wide(ids, keys_in_rows) for ids in of_keys)
    query = i * block + lax.broadcasted_iota(jnp.int32, (block, block), query_axis)
    key = j * block + lax.broadcasted_iota(jnp.int32, (block, block), 1 - query_axis)
    return ((span_q == span_k) & (key <= query)) | (reads == context)


def _over(x: Array, width: int) -> Array:
    """Columns that are all equal, ``width`` of them in place of a register's."""
    return jnp.tile(x, (1, width // _LANES))


def _lane(statistic, g: Array) -> Array:
    """The column of head ``g``, whose place is not known to the compiler."""
    lane = lax.broadcasted_iota(jnp.int32, statistic.shape, 1)
    return jnp.where(lane == g, statistic[...], 0.0).sum(axis=-1, keepdims=True)
