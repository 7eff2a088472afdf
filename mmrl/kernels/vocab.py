"""Statistics of next-token distributions, from hidden states, without ever holding ``[tokens, v]``.

Tokens are taken in chunks; a chunk's logits live only while its statistics are computed, and are made anew in
the backward pass. The distribution is that of the policy: logits divided by the temperature, and ``bias``
added (0 for tokens the policy may emit, `BANNED` for those it may not).

Inside `jax.shard_map`, the vocabulary may be cut over a mesh axis: each device then has some rows of the
unembedding, and computes the statistics of the softmax over its own rows (`mmrl.kernels.vocab_shard`). The
chain rules of entropy and divergence put them together, once for all tokens: the collectives do not grow with
the number of chunks.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.kernels.vocab_shard import StatisticsRequest, shard_logits, shard_statistics, token_chunks

BANNED = -1e30
CHUNK = 1024  # states whose logits are held at a time


def log_distribution(
    hidden: Float[Array, "t d"],
    table: Float[Array, "v d"],
    bias: Float[Array, "v"],
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "t v"]:
    """Log-probabilities of every token, float32: the plain form of the chunked statistics."""
    logits = jnp.einsum("td,vd->tv", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits / temperature + bias, axis=-1)


def token_statistics(
    hidden: Float[Array, "t d"],
    table: Float[Array, "v d"],
    tokens: Int[Array, "t"],
    bias: Float[Array, "v"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    corrupted_hidden: Float[Array, "t d"] | None = None,
    perception: bool = False,
    reverse_perception: bool = False,
    corrupted_gradient: bool = False,
    count: Int[Array, ""] | None = None,
    chunk: int = CHUNK,
    vocab_axis: str | None = None,
    token_axes: tuple[str, ...] = (),
) -> dict[str, Float[Array, "t"]]:
    """Per-token statistics of the policy's next-token distribution, float32.

    Differentiable once, in the hidden states and the table; ``bias`` is a constant.

    Args:
      hidden: states that predict ``tokens``, image present.
      table: output embedding; of each device its own rows, if the vocabulary is cut.
      tokens: token ids of the whole vocabulary, all emittable (``bias`` 0).
      bias: added to the logits of each row of ``table``.
      temperature: divides the logits.
      entropy: also give the entropy of the full distribution (nats).
      corrupted_hidden: states that predict the same tokens with the image corrupted.
      perception: with ``corrupted_hidden``, also give the exact KL(image present || image corrupted) (nats):
        the token perception of PAPO (arXiv:2507.06448) and VPPO (arXiv:2510.09285), over the full vocabulary.
      reverse_perception: likewise KL(image corrupted || image present).
      corrupted_gradient: let gradients through the corrupted distribution too.
      count: tokens that are wanted, the first ones (default: all). What the others get is finite and means
        nothing, and time is spent on them only to the end of a chunk.
      chunk: states whose logits are held at a time; with ``corrupted_hidden`` a token has two.
      vocab_axis: inside `jax.shard_map`, the mesh axis over which the rows of ``table`` and ``bias`` are cut,
        in equal parts.
      token_axes: inside `jax.shard_map`, the mesh axes over which the tokens are cut. The result varies over
        these.

    Returns:
      ``{"logprob": ...}`` and, as asked, ``"entropy"``, ``"corrupted"`` (the logprob of the token with the
      image corrupted), ``"perception"`` and ``"reverse_perception"``.

    Raises:
      ValueError: a cut vocabulary in a `jax.shard_map` that does not check how values vary.
    """
    if corrupted_hidden is None:
        perception = reverse_perception = corrupted_gradient = False
    else:
        chunk = max(1, chunk // 2)
    if not corrupted_gradient:
        corrupted_hidden = jax.lax.stop_gradient(corrupted_hidden)
    wanted = StatisticsRequest(
        temperature, entropy, perception, reverse_perception, corrupted_gradient, chunk
    )
    first = _first_row(table, vocab_axis)
    count = jnp.int32(tokens.shape[0]) if count is None else count
    inputs = (hidden, corrupted_hidden, table, jax.lax.stop_gradient(bias), tokens - first, count)
    with jax.named_scope("vocab"):
        own = shard_statistics(wanted, *_varying(inputs, (*token_axes, *_named(vocab_axis))))
        return _combined(own, vocab_axis)


def top_tokens(
    hidden: Float[Array, "t d"],
    table: Float[Array, "v d"],
    bias: Float[Array, "v"],
    k: int,
    *,
    temperature: float = 1.0,
    vocab_axis: str | None = None,
    chunk: int = CHUNK,
) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
    """The ids and logprobs of the ``k`` likeliest tokens, likeliest first; of equals, the lower id first.

    Arguments as in `token_statistics`. No gradient.

    Raises:
      ValueError: ``k`` is not in 1..(size of the vocabulary), or as `token_statistics`.
    """
    shards = 1 if vocab_axis is None else jax.lax.axis_size(vocab_axis)
    if not 1 <= k <= table.shape[0] * shards:
        raise ValueError(
            f"k is {k}; it must be between 1 and the {table.shape[0] * shards} of the vocabulary"
        )
    first = _first_row(table, vocab_axis)
    inputs = jax.lax.stop_gradient((hidden, table.astype(hidden.dtype), bias))
    hidden, table, bias = _varying(inputs, _named(vocab_axis))

    def step(part: Callable[[Array], Array]) -> dict[str, Array]:
        logits = shard_logits(part(hidden), table, bias, temperature)
        best, rows = jax.lax.top_k(logits, min(k, table.shape[0]))
        return {"best": best, "ids": rows + first, "total": jax.nn.logsumexp(logits, axis=-1)}

    with jax.named_scope("top_tokens"):
        own = token_chunks(hidden.shape[0], chunk, step, like=hidden)
        best, ids, total = own["best"], own["ids"], own["total"]
        if vocab_axis is not None:
            gather = partial(jax.lax.all_gather, axis_name=vocab_axis, tiled=True, to="invarying")
            best, ids = gather(best, axis=1), gather(ids, axis=1)
            total = jax.nn.logsumexp(gather(total[:, None], axis=1), axis=-1)
            best, order = jax.lax.top_k(best, k)
            ids = jnp.take_along_axis(ids, order, axis=1)
        return ids, best - total[:, None]


def _combined(own: dict[str, Array], axis: str | None) -> dict[str, Array]:
    """Statistics over all shards from each shard's own.

    By the chain rules: with s_i, r_i the share of shard i in p and q, and p_i, q_i the distributions within
    it, H(p) = sum_i s_i (H(p_i) - log s_i) and KL(p || q) = sum_i s_i (KL(p_i || q_i) + log s_i - log r_i).
    """
    out = {}
    out["logprob"], log_p = _logprob_and_share(own, "p", axis)
    if "entropy" in own:
        out["entropy"] = _sum(jnp.exp(log_p) * (own["entropy"] - log_p), axis)
    if "q_top" in own:
        out["corrupted"], log_q = _logprob_and_share(own, "q", axis)
        gap = log_p - log_q
        if "perception" in own:
            out["perception"] = _sum(jnp.exp(log_p) * (own["perception"] + gap), axis)
        if "reverse_perception" in own:
            out["reverse_perception"] = _sum(jnp.exp(log_q) * (own["reverse_perception"] - gap), axis)
    return out


def _logprob_and_share(own: dict[str, Array], name: str, axis: str | None) -> tuple[Array, Array]:
    """Logprob of the token, and the log of this shard's share of all probability."""
    top, log_total, logit = (own[f"{name}_{part}"] for part in ("top", "log_total", "logit"))
    if axis is None:
        return logit - top - log_total, jnp.zeros_like(log_total)
    highest = jax.lax.pmax(jax.lax.stop_gradient(top), axis)
    normalizer = top - highest + log_total
    total = jnp.log(_sum(jnp.exp(normalizer), axis))
    return _sum(logit, axis) - highest - total, normalizer - total


def _sum(value: Array, axis: str | None) -> Array:
    return value if axis is None else jax.lax.psum(value, axis)


def _first_row(table: Float[Array, "v d"], axis: str | None) -> int | Int[Array, ""]:
    """The token id of the first row of this device's part of the table."""
    if axis is None:
        return 0
    index = jax.lax.axis_index(axis)
    if axis not in _axes(index):
        raise ValueError(
            f"the vocabulary is cut over {axis!r} inside a shard_map with check_vma=False, where gradients "
            "would be summed wrongly; leave check_vma at True"
        )
    return index * table.shape[0]


def _named(axis: str | None) -> tuple[str, ...]:
    return () if axis is None else (axis,)


def _axes(x: Array) -> frozenset[str]:
    """The mesh axes that a value inside `jax.shard_map` varies over."""
    return jax.typeof(x).manual_axis_type.varying


def _varying(inputs: tuple, axes: tuple[str, ...]) -> tuple:
    """Have every input vary over ``axes`` and over whatever any of them varies over.

    The gradient of this is the sum over the axes an input did not vary over. It stands here, outside the
    loops, so that each device's gradient is complete before it is summed, once.
    """
    union = frozenset(axes).union(*map(_axes, jax.tree.leaves(inputs)))

    def cast(x: Array) -> Array:
        missing = tuple(sorted(union - _axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, inputs)
