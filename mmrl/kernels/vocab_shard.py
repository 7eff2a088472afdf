"""Statistics of next-token distributions within one shard of the vocabulary, with hand-written gradients.

A shard's rows of the unembedding give a distribution of their own: the softmax over those rows alone. Its
statistics need nothing from the other shards, so no loop here holds a collective; `mmrl.kernels.vocab` puts
the shards together after the loops.

Forward and backward, tokens are taken in chunks, and the backward pass makes a chunk's logits anew. Both
branches of a chunk, image present and corrupted, are stacked for one product with the table, which is thus
read half as often. The table's gradient is summed over chunks in float32: for a float32 table that sum is the
result itself, for a bfloat16 one it is the largest array here. A second loop, over rows of the table, would
need no such sum, at the price of making the logits a third time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rows = dict[str, Array]  # by name, one number per token: float32 [t]


@dataclass(frozen=True)
class StatisticsRequest:
    """Statistics to compute besides the normalizers and the logits of the tokens; static under jit."""

    temperature: float
    entropy: bool
    perception: bool
    reverse_perception: bool
    corrupted_gradient: bool
    chunk: int  # tokens


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def shard_statistics(
    wanted: StatisticsRequest,
    hidden: Float[Array, "t d"],
    corrupted_hidden: Float[Array, "t d"] | None,
    table: Float[Array, "v d"],
    bias: Float[Array, "v"],
    rows: Int[Array, "t"],
    count: Int[Array, ""],
) -> Rows:
    """Per-token statistics of the softmax over this shard's rows.

    Args:
      wanted: what to compute.
      hidden: states, image present: the distribution p.
      corrupted_hidden: states, image corrupted: the distribution q; or None.
      table: rows of the unembedding.
      bias: of each row, added to the logits; a constant.
      rows: the row of each token, any number outside 0..v-1 if another shard has it.
      count: tokens that are wanted, the first ones. Chunks beyond them are not computed, and have zeros.

    Returns:
      "p_top" (the largest logit), "p_log_total" (log of the sum of exp(logit - top)), "p_logit" (of the
      token, 0 if another shard has it), as asked "entropy" of p; with q also "q_top", "q_log_total",
      "q_logit" and as asked "perception", KL(p || q), and "reverse_perception", KL(q || p).

    The gradient is in the hidden states and the table. That of "top" is left to "log_total": it is right for
    functions of the normalizer top + log_total. The two stay apart because their sum would be rounded to the
    precision of the logits, and every probability with it.
    """
    return _forward(wanted, hidden, corrupted_hidden, table, bias, rows, count)[0]


def token_chunks(
    tokens: int,
    chunk: int,
    step: Callable[[Callable[[Any], Any]], Rows],
    like: Array,
    count: int | Int[Array, ""] | None = None,
) -> Rows:
    """Run ``step`` over chunks of the first ``count`` tokens and lay its results ``[chunk ...]`` end to end.

    ``step`` gets a function that takes a chunk's part of every array in a tree. Where ``chunk`` does not
    divide, the last chunk overlaps the one before, and what both make is written twice: nothing is padded.
    ``like`` is an array that varies over the mesh axes which the results vary over. Without a ``count`` all
    ``tokens`` are taken.
    """
    chunk = min(chunk, tokens)

    def part_at(index: int | Array) -> Callable[[Any], Any]:
        return partial(_slice, start=index * chunk, size=chunk)

    def body(index: Array, out: Rows) -> Rows:
        return {
            name: jax.lax.dynamic_update_slice_in_dim(out[name], value, index * chunk, 0)
            for name, value in step(part_at(index)).items()
        }

    shapes = jax.eval_shape(lambda: step(part_at(0)))
    empty = {name: jnp.zeros_like(like, x.dtype, shape=(tokens, *x.shape[1:])) for name, x in shapes.items()}
    return _over_chunks(tokens if count is None else count, chunk, body, empty)


def _over_chunks(count: Any, chunk: int, body: Callable[[Array, Any], Any], start: Any) -> Any:
    with jax.named_scope(f"chunks_of_{chunk}"):
        return jax.lax.fori_loop(0, -(-count // chunk), body, start)


def shard_logits(
    hidden: Float[Array, "t d"], table: Float[Array, "v d"], bias: Float[Array, "v"], temperature: float
) -> Float[Array, "t v"]:
    """Logits in float32, of a product in the type of ``hidden`` and ``table``."""
    product = jnp.einsum("td,vd->tv", hidden, table, preferred_element_type=jnp.float32)
    return product / temperature + bias


def _branches(states: Array, corrupted: Array | None, *table_bias_temperature: Any) -> tuple:
    """The states of a chunk, stacked; the logits p of the first branch; and q of the second, or None."""
    if corrupted is None:
        return states, shard_logits(states, *table_bias_temperature), None
    count = states.shape[0]
    states = jnp.concatenate([states, corrupted])
    logits = shard_logits(states, *table_bias_temperature)
    return states, logits[:count], logits[count:]


def _statistics(wanted: StatisticsRequest, p: Array, q: Array | None, rows: Array) -> Rows:
    own = rows[:, None] == jnp.arange(p.shape[-1])

    def normalized(logits: Array, name: str) -> Array:
        out[f"{name}_top"] = logits.max(axis=-1)
        shifted = logits - out[f"{name}_top"][:, None]
        out[f"{name}_log_total"] = jnp.log(jnp.exp(shifted).sum(axis=-1))
        out[f"{name}_logit"] = jnp.where(own, logits, 0.0).sum(axis=-1)
        return shifted - out[f"{name}_log_total"][:, None]

    out: Rows = {}
    log_p = normalized(p, "p")
    if wanted.entropy:
        out["entropy"] = -(jnp.exp(log_p) * log_p).sum(axis=-1)
    if q is not None:
        log_q = normalized(q, "q")
        if wanted.perception:
            out["perception"] = (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        if wanted.reverse_perception:
            out["reverse_perception"] = (jnp.exp(log_q) * (log_q - log_p)).sum(axis=-1)
    return out


def _slopes(
    wanted: StatisticsRequest, p: Array, q: Array | None, own: Array, out: Rows, weight: Rows
) -> tuple[Array, Array | None]:
    """Gradient of sum(weight * out) in the logits ``p`` and ``q`` [t v], the latter None if it is not wanted.

    ``own`` marks the logit of each token.
    """
    out = {name: value[:, None] for name, value in out.items()}
    weight = {name: value[:, None] for name, value in weight.items()}
    log_p = p - out["p_top"] - out["p_log_total"]
    prob_p = jnp.exp(log_p)
    slope = weight["p_log_total"] * prob_p + jnp.where(own, weight["p_logit"], 0.0)
    if wanted.entropy:
        slope -= weight["entropy"] * prob_p * (log_p + out["entropy"])
    if q is None:
        return slope, None
    log_q = q - out["q_top"] - out["q_log_total"]
    prob_q, gap = jnp.exp(log_q), log_p - log_q
    if wanted.perception:
        slope += weight["perception"] * prob_p * (gap - out["perception"])
    if wanted.reverse_perception:
        slope += weight["reverse_perception"] * (prob_p - prob_q)
    if not wanted.corrupted_gradient:
        return slope, None
    other = weight["q_log_total"] * prob_q + jnp.where(own, weight["q_logit"], 0.0)
    if wanted.perception:
        other += weight["perception"] * (prob_q - prob_p)
    if wanted.reverse_perception:
        other -= weight["reverse_perception"] * prob_q * (gap + out["reverse_perception"])
    return slope, other


def _forward(
    wanted: StatisticsRequest,
    hidden: Array,
    corrupted: Array | None,
    table: Array,
    bias: Array,
    rows: Array,
    count: Array,
) -> tuple[Rows, tuple]:
    product = table.astype(hidden.dtype)

    def step(part: Callable[[Any], Any]) -> Rows:
        _, p, q = _branches(part(hidden), part(corrupted), product, bias, wanted.temperature)
        return _statistics(wanted, p, q, part(rows))

    out = token_chunks(rows.shape[0], wanted.chunk, step, like=rows, count=count)
    return out, (hidden, corrupted, table, bias, rows, count, out)


def _backward(wanted: StatisticsRequest, residuals: tuple, weight: Rows) -> tuple:
    hidden, corrupted, table, bias, rows, count, out = residuals
    product, tokens = table.astype(hidden.dtype), rows.shape[0]
    chunk = min(wanted.chunk, tokens)

    def body(index: Array, total: tuple) -> tuple:
        start = jnp.minimum(index * chunk, tokens - chunk)
        part = partial(_slice, start=start, size=chunk)
        states, p, q = _branches(part(hidden), part(corrupted), product, bias, wanted.temperature)
        own = part(rows)[:, None] == jnp.arange(p.shape[-1])
        # The last chunk may overlap the one before: what that one has added has weight 0 here.
        fresh = start + jnp.arange(chunk) >= index * chunk
        live = jax.tree.map(lambda x: jnp.where(fresh, x, 0.0), part(weight))
        slopes = [slope for slope in _slopes(wanted, p, q, own, part(out), live) if slope is not None]
        slope = (jnp.concatenate(slopes) / wanted.temperature).astype(hidden.dtype)
        of_table, *of_states = total
        of_table += _product("tv,td->vd", slope, states[: slope.shape[0]])
        change = jnp.split(_product("tv,vd->td", slope, product).astype(hidden.dtype), len(of_states))
        added = [
            jax.lax.dynamic_update_slice_in_dim(x, part(x) + y, start, 0)
            for x, y in zip(of_states, change, strict=True)
        ]
        return of_table, *added

    moving = (hidden, corrupted) if wanted.corrupted_gradient else (hidden,)
    zeros = (jnp.zeros_like(table, jnp.float32), *jax.tree.map(jnp.zeros_like, moving))
    of_table, of_hidden, *of_corrupted = _over_chunks(count, chunk, body, zeros)
    of_corrupted = of_corrupted[0] if of_corrupted else None
    return of_hidden, of_corrupted, of_table.astype(table.dtype), None, None, None


def _product(axes: str, x: Array, y: Array) -> Array:
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _slice(tree: Any, start: int | Array, size: int) -> Any:
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), tree)


shard_statistics.defvjp(_forward, _backward)
