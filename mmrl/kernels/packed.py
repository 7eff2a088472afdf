"""Attention over packed rows: sequences of any lengths lie one after another, and responses share a prompt.

A row has ``n`` slots. Every sequence in it (a prompt, a response, an image) is a *span* of slots. A slot
reads itself and the earlier slots of its span, and besides all of one other span, its *context*: a response
reads its prompt. A span that is its own context is read both ways, as the patches of an image are.

The work is a list of the pairs of blocks in which some query reads some key, made on the host, where the
packing is known. It is data: a row of other lengths compiles nothing. `packed_attention` is for every device,
`mmrl.kernels.packed_tpu` has kernels for TPU. Letters as in `mmrl.kernels.attention`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mmrl.kernels.attention import MASKED

# Flags of a pair of blocks: the first and the last of the block that its list is sorted by; or every query
# reads every key.
FIRST, LAST, WHOLE = 1, 2, 4


class Span(NamedTuple):
    """Slots of one sequence in a row."""

    start: int
    stop: int
    context: int = -1  # index of the span that is read besides, or of the span itself; -1 for none


@struct.dataclass
class Segments:
    """The span of each slot of a row, by its index.

    A query reads a key of the same ``span`` that does not come after it, or one whose ``context`` is what the
    query ``reads``.
    """

    span: Int[Array | np.ndarray, "*b n"]
    reads: Int[Array | np.ndarray, "*b n"]  # -1 for nothing besides the own span
    context: Int[Array | np.ndarray, "*b n"]  # the span if others read it whole, else -2


@struct.dataclass
class BlockPairs:
    """Pairs of a block of queries and a block of keys in which some query reads some key.

    Each list has the query block, the key block and flags; what lies beyond ``count`` means nothing. Every
    block of the row is in both lists.
    """

    by_query: Int[Array | np.ndarray, "*b 3 l"]  # sorted by query block, then by key block
    by_key: Int[Array | np.ndarray, "*b 3 l"]  # sorted by key block, then by query block
    count: Int[Array | np.ndarray, "*b"]


def row_length(least: int) -> int:
    """Slots of a row of at least so many: a whole number of blocks, and one at least."""
    return max(1, -(-least // block_of(least))) * block_of(least)


def block_of(n: int) -> int:
    """Slots of a block in rows of ``n``: as few as compute little that nobody reads, as many as run well."""
    return 512 if n >= 4096 else 128 if n >= 1024 else 32


def segments(spans: Sequence[Span], n: int) -> Segments:
    """Segment ids of a row of ``n`` slots: the own one, the one it reads, the one it offers (numpy, int32).

    A slot outside all spans has a span of its own.
    """
    span = -2 - np.arange(n, dtype=np.int32)
    reads, context = np.full(n, -1, np.int32), np.full(n, -2, np.int32)
    shared = {each.context for each in spans}
    for index, (start, stop, other) in enumerate(spans):
        span[start:stop] = index
        reads[start:stop] = other
        if index in shared:
            context[start:stop] = index
        if index == other:  # read both ways through its context: not twice
            span[start:stop] = -2 - np.arange(start, stop)
    return Segments(span, reads, context)


def block_pairs(spans: Sequence[Span], n: int, block: int, most: int | None = None) -> BlockPairs:
    """The pairs of blocks of a row (numpy, int32), in lists of length ``most``, by default `most_pairs`.

    Raises:
      ValueError: the row is not a whole number of blocks.
    """
    visible = visible_pairs(spans, n, block)
    needed = needed_pairs(visible)
    lists = []
    for axis in (0, 1):
        query, key = np.nonzero(needed)
        if axis:
            order = np.lexsort((query, key))
            query, key = query[order], key[order]
        changes = np.flatnonzero(np.diff((query, key)[axis])) + 1
        flags = np.where(visible[query, key] == block * block, WHOLE, 0)
        flags[np.r_[0, changes]] |= FIRST
        flags[np.r_[changes - 1, len(query) - 1]] |= LAST
        pairs = np.zeros((3, most or most_pairs(n, block)), np.int32)
        pairs[:, : len(query)] = query, key, flags
        lists.append(pairs)
    return BlockPairs(by_query=lists[0], by_key=lists[1], count=np.array(needed.sum(), np.int32))


def most_pairs(n: int, block: int) -> int:
    """The largest number of pairs of blocks in a row of ``n`` slots."""
    return (n // block) ** 2


def needed_pairs(visible: Int[np.ndarray, "q k"]) -> Bool[np.ndarray, "q k"]:
    """The pairs of blocks that are computed: those with something visible, and each block with itself."""
    return (visible > 0) | np.eye(len(visible), dtype=bool)


def visible_pairs(spans: Sequence[Span], n: int, block: int) -> Int[np.ndarray, "q k"]:
    """How many pairs of a query and a key it reads lie in each pair of blocks (of queries, of keys)."""
    if n % block:
        raise ValueError(f"a row of {n} slots is not a whole number of blocks of {block}")
    edges = np.arange(0, n + 1, block)
    visible = np.zeros((n // block, n // block), np.int64)

    def slots(start: int, stop: int) -> np.ndarray:
        return np.maximum(np.minimum(stop, edges[1:]) - np.maximum(start, edges[:-1]), 0)

    for index, (start, stop, context) in enumerate(spans):
        queries = slots(start, stop)
        if context >= 0:
            visible += np.outer(queries, slots(*spans[context][:2]))
        if context != index:
            visible += np.tril(np.outer(queries, queries), -1)
            visible += np.diag(queries * (queries + 1) // 2)
    return visible


def visible(
    segments: Segments, queries: slice | None = None, keys: slice | None = None
) -> Bool[Array, "s t"]:
    """Whether each query of a row reads each key: the rule of `Segments`, dense."""
    order = jnp.arange(segments.span.shape[-1])
    of, to = (slice(None) if part is None else part for part in (queries, keys))
    own = (segments.span[of, None] == segments.span[to]) & (order[of, None] >= order[to])
    return own | (segments.reads[of, None] == segments.context[to])


def packed_attention(
    query: Float[Array, "b n h q k"],
    key: Float[Array, "b n h k"],
    value: Float[Array, "b n h k"],
    segments: Segments,
    pairs: BlockPairs,
    *,
    block: int,
) -> Float[Array, "b n h q k"]:
    """Block-sparse attention within rows by segment ids, responses sharing a prompt: no scores are held.

    The softmax is taken in float32. What empty slots give is finite and means nothing.

    Args:
      query, key, value: of ``b`` rows.
      segments: of each row, ``b n``.
      pairs: of each row, in blocks of ``block`` slots.
      block: slots of a block of queries, and of keys; divides ``n``.
    """
    return over_rows(partial(_attend, block), query, key, value, segments, pairs)


def over_rows(
    attend: Callable[..., Float[Array, "h q n k"]],
    query: Float[Array, "b n h q k"],
    key: Float[Array, "b n h k"],
    value: Float[Array, "b n h k"],
    segments: Segments,
    pairs: BlockPairs,
) -> Float[Array, "b n h q k"]:
    """Attention of each row in turn, heads first, with scaled queries."""
    scale = query.shape[-1] ** -0.5
    rows = [
        attend(
            jnp.einsum("nhqk->hqnk", query[b] * scale),
            jnp.einsum("nhk->hnk", key[b]),
            jnp.einsum("nhk->hnk", value[b]),
            jax.tree.map(lambda leaf, b=b: leaf[b], segments),
            jax.tree.map(lambda leaf, b=b: leaf[b], pairs),
        )
        for b in range(query.shape[0])
    ]
    return jnp.einsum("bhqnk->bnhqk", jnp.stack(rows))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    block: int, query: Array, key: Array, value: Array, segments: Segments, pairs: BlockPairs
) -> Array:
    return _forward(block, query, key, value, segments, pairs)[0]


def _forward(
    block: int,
    query: Float[Array, "h q n k"],
    key: Float[Array, "h n k"],
    value: Float[Array, "h n k"],
    segments: Segments,
    pairs: BlockPairs,
) -> tuple[Array, tuple]:
    """One row, with its sums normalised as they come (arXiv:2205.14135, algorithm 1), and residuals."""

    def add(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        i, j = pairs.by_query[0, index] * block, pairs.by_query[1, index] * block
        top, total, out = (jax.lax.dynamic_slice_in_dim(part, i, block, 2) for part in carry)
        score, values = _scores(query, key, segments, i, j, block), _slots(value, j, block)
        higher = jnp.maximum(top, score.max(axis=-1))
        weight, shrink = jnp.exp(score - higher[..., None]), jnp.exp(top - higher)
        total = total * shrink + weight.sum(axis=-1)
        more = jnp.einsum(
            "hqst,htk->hqsk", weight.astype(value.dtype), values, preferred_element_type=jnp.float32
        )
        done = (higher, total, out * shrink[..., None] + more)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(part, new, i, 2)
            for part, new in zip(carry, done, strict=True)
        )

    empty = jnp.zeros(query.shape[:3], jnp.float32)
    start = (empty + MASKED, empty, jnp.zeros(query.shape, jnp.float32))
    top, total, out = jax.lax.fori_loop(0, pairs.count, add, start)
    out = (out / total[..., None]).astype(query.dtype)
    return out, (query, key, value, segments, pairs, out, top + jnp.log(total))


def _backward(block: int, residuals: tuple, gradient: Float[Array, "h q n k"]) -> tuple:
    """Gradients of queries, keys and values, from scores computed anew (arXiv:2205.14135, algorithm 4)."""
    query, key, value, segments, pairs, out, log_total = residuals
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    along = product("hqnk,hqnk->hqn", out, gradient)

    def add(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        i, j = pairs.by_query[0, index] * block, pairs.by_query[1, index] * block
        queries, given, total, inner = (
            jax.lax.dynamic_slice_in_dim(part, i, block, 2) for part in (query, gradient, log_total, along)
        )
        keys, values = _slots(key, j, block), _slots(value, j, block)
        weight = jnp.exp(_scores(query, key, segments, i, j, block) - total[..., None])
        of_weight = product("hqsk,htk->hqst", given, values)
        of_score = (weight * (of_weight - inner[..., None])).astype(query.dtype)
        more = (
            product("hqst,htk->hqsk", of_score, keys),
            product("hqst,hqsk->htk", of_score, queries),
            product("hqst,hqsk->htk", weight.astype(given.dtype), given),
        )
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(
                part, jax.lax.dynamic_slice_in_dim(part, at, block, axis) + new, at, axis
            )
            for part, new, at, axis in zip(carry, more, (i, j, j), (2, 1, 1), strict=True)
        )

    start = tuple(jnp.zeros(part.shape, jnp.float32) for part in (query, key, value))
    found = jax.lax.fori_loop(0, pairs.count, add, start)
    return *(new.astype(part.dtype) for new, part in zip(found, (query, key, value), strict=True)), None, None


def _scores(query: Array, key: Array, segments: Segments, i: Array, j: Array, block: int) -> Array:
    """Scores ``h q s t`` of the queries from slot ``i`` and the keys from slot ``j`` on, float32, masked."""
    queries = jax.lax.dynamic_slice_in_dim(query, i, block, 2)
    score = jnp.einsum("hqsk,htk->hqst", queries, _slots(key, j, block), preferred_element_type=jnp.float32)
    of, to = (jax.tree.map(lambda leaf, at=at: _slots(leaf[None], at, block)[0], segments) for at in (i, j))
    order = jnp.arange(block)
    own = (of.span[:, None] == to.span) & (i + order[:, None] >= j + order)
    return jnp.where(own | (of.reads[:, None] == to.context), score, MASKED)


def _slots(x: Array, start: Array, block: int) -> Array:
    """A block of slots of axis 1."""
    return jax.lax.dynamic_slice_in_dim(x, start, block, 1)


_attend.defvjp(_forward, _backward)
