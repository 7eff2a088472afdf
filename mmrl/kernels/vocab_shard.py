"""Statistics of next-token distributions within one shard of the vocabulary, with hand-written gradients.

A shard's rows of the unembedding give a distribution of their own: the softmax over those rows alone. Its
statistics need nothing from the other shards, so no loop here holds a collective; `mmrl.kernels.vocab` puts the
shards together after the loops.

Forward, tokens are taken in chunks. Backward there are two loops, each making the logits anew: over chunks of
tokens for the gradient of the hidden states, over tiles of the vocabulary for that of the table. So every row
of a gradient is finished, in float32, where it is first touched: there is no float32 accumulator of the table's
size, which would be the largest array of all. The price is one more product per branch than a single loop needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rows = dict[str, Array]  # by name, one number per token: float32 [t]
LANES = 128  # tiles of the vocabulary are cut to the vector width of a TPU


@dataclass(frozen=True)
class Wanted:
    """What to compute besides the normalizers and the logits of the tokens; static under jit."""

    temperature: float
    entropy: bool
    perception: bool
    reverse_perception: bool
    corrupted_gradient: bool
    chunk: int


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def shard_statistics(
    wanted: Wanted,
    hidden: Float[Array, "t d"],
    corrupted_hidden: Float[Array, "t d"] | None,
    table: Float[Array, "v d"],
    bias: Float[Array, "v"],
    rows: Int[Array, "t"],
) -> Rows:
    """Per-token statistics of the softmax over this shard's rows.

    Args:
      wanted: what to compute.
      hidden: states, image present: the distribution p.
      corrupted_hidden: states, image corrupted: the distribution q; or None.
      table: rows of the unembedding.
      bias: of each row, added to the logits; a constant.
      rows: the row of each token, any number outside 0..v-1 if another shard has it.

    Returns:
      "p_top" (the largest logit), "p_log_total" (log of the sum of exp(logit - top)), "p_logit" (of the token, 0
      if another shard has it), as asked "entropy" of p; with q also "q_top", "q_log_total", "q_logit" and as
      asked "perception", KL(p || q), and "reverse_perception", KL(q || p).

    The gradient is in the hidden states and the table. That of "top" is left to "log_total": it is right for
    functions of the normalizer top + log_total. The two stay apart because their sum would be rounded to the
    precision of the logits, and every probability with it.
    """
    return _forward(wanted, hidden, corrupted_hidden, table, bias, rows)[0]


def token_chunks(
    count: int, chunk: int, step: Callable[[Callable[[Array], Array]], dict[str, Array]], like: Array
) -> dict[str, Array]:
    """Run ``step`` over chunks of ``count`` tokens and lay its results, ``[chunk ...]``, end to end.

    ``step`` gets a function that takes a chunk's part of an array. Where ``chunk`` does not divide, the last
    chunk overlaps the one before, and what both make is written twice: nothing need be padded. ``like`` is an
    array that varies over the mesh axes which the results vary over.
    """
    chunk = min(chunk, count)

    def at(index: Array, array: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(array, index * chunk, chunk)

    shapes = jax.eval_shape(lambda: step(lambda array: at(jnp.int32(0), array)))
    empty = {
        name: jnp.zeros_like(like, one.dtype, shape=(count, *one.shape[1:])) for name, one in shapes.items()
    }

    def body(index: Array, out: dict[str, Array]) -> dict[str, Array]:
        made = step(partial(at, index))
        return {
            name: jax.lax.dynamic_update_slice_in_dim(out[name], value, index * chunk, 0)
            for name, value in made.items()
        }

    return jax.lax.fori_loop(0, -(-count // chunk), body, empty)


def shard_logits(
    hidden: Float[Array, "t d"], table: Float[Array, "v d"], bias: Float[Array, "v"], temperature: float
) -> Float[Array, "t v"]:
    """Logits in float32; the product is taken in the type of ``hidden``."""
    product = jnp.einsum("td,vd->tv", hidden, table, preferred_element_type=jnp.float32)
    return product / temperature + bias


def _statistics(wanted: Wanted, p: Array, q: Array | None, rows: Array) -> Rows:
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
    wanted: Wanted, p: Array, q: Array | None, own: Array, out: Rows, weight: Rows
) -> tuple[Array, Array | None]:
    """Gradient of sum(weight * out) in the logits ``p`` and ``q`` [t v], the latter None if it is not wanted.

    ``own`` marks the logit of each token. ``p`` and ``q`` may be some columns of the shard only.
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
    wanted: Wanted,
    hidden: Array,
    corrupted: Array | None,
    table: Array,
    bias: Array,
    rows: Array,
) -> tuple[Rows, tuple]:
    product = table.astype(hidden.dtype)

    def step(part: Callable[[Array], Array]) -> Rows:
        p = shard_logits(part(hidden), product, bias, wanted.temperature)
        q = None if corrupted is None else shard_logits(part(corrupted), product, bias, wanted.temperature)
        return _statistics(wanted, p, q, part(rows))

    out = token_chunks(rows.shape[0], wanted.chunk, step, like=rows)
    return out, (hidden, corrupted, table, bias, rows, out)


def _backward(wanted: Wanted, residuals: tuple, weight: Rows) -> tuple:
    states = _hidden_gradients(wanted, residuals, weight)
    return states["hidden"], states.get("corrupted"), _table_gradient(wanted, residuals, weight), None, None


def _hidden_gradients(wanted: Wanted, residuals: tuple, weight: Rows) -> dict[str, Array]:
    hidden, corrupted, table, bias, rows, out = residuals
    product = table.astype(hidden.dtype)

    def step(part: Callable[[Array], Array]) -> dict[str, Array]:
        p = shard_logits(part(hidden), product, bias, wanted.temperature)
        q = None if corrupted is None else shard_logits(part(corrupted), product, bias, wanted.temperature)
        own = part(rows)[:, None] == jnp.arange(p.shape[-1])
        slopes = _slopes(wanted, p, q, own, jax.tree.map(part, out), jax.tree.map(part, weight))
        return {
            name: jnp.einsum(
                "tv,vd->td",
                (slope / wanted.temperature).astype(hidden.dtype),
                product,
                preferred_element_type=jnp.float32,
            ).astype(hidden.dtype)
            for name, slope in zip(("hidden", "corrupted"), slopes, strict=True)
            if slope is not None
        }

    return token_chunks(rows.shape[0], wanted.chunk, step, like=hidden)


def _table_gradient(wanted: Wanted, residuals: tuple, weight: Rows) -> Array:
    hidden, corrupted, table, bias, rows, out = residuals
    size = table.shape[0]
    tile = max(LANES, min(wanted.chunk, rows.shape[0]) * size // rows.shape[0] // LANES * LANES)

    def step(part: Callable[[Array], Array]) -> dict[str, Array]:
        product, offsets = part(table).astype(hidden.dtype), part(jnp.arange(size))
        p = shard_logits(hidden, product, part(bias), wanted.temperature)
        q = None if corrupted is None else shard_logits(corrupted, product, part(bias), wanted.temperature)
        slopes = _slopes(wanted, p, q, rows[:, None] == offsets, out, weight)
        total = sum(
            jnp.einsum(
                "tv,td->vd",
                (slope / wanted.temperature).astype(hidden.dtype),
                states,
                preferred_element_type=jnp.float32,
            )
            for slope, states in zip(slopes, (hidden, corrupted), strict=True)
            if slope is not None
        )
        return {"table": total.astype(table.dtype)}

    return token_chunks(size, tile, step, like=table)["table"]


shard_statistics.defvjp(_forward, _backward)
