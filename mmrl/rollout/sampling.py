"""Sampling of tokens from logits, keyed by request: its tokens do not depend on the rest of the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from mmrl.kernels.vocab import BANNED
from mmrl.models.config import ModelConfig


@dataclass(frozen=True)
class Sampling:
    """Sampling options of a response.

    ``temperature`` 0 takes the most likely token. ``top_k``, ``top_p`` and ``min_p``, in this order, truncate
    the tempered distribution; 0, 1 and 0 switch them off. A response ends with the first of ``stop_ids``, or
    with the token that completes one of ``stop_strings``; that token is kept.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p < 1,
            "stop_strings": all(self.stop_strings),
        }
        for name, fine in checks.items():
            if not fine:
                raise ValueError(f"rollout.{name}={getattr(self, name)} is out of range")


@struct.dataclass
class Policy:
    """The static part of the policy: its sizes, and the distribution it samples from."""

    model: ModelConfig = struct.field(pytree_node=False)
    temperature: float = struct.field(pytree_node=False)
    bias: Float[Array, "v"]  # 0, or `mmrl.kernels.vocab.BANNED` for ids it may not emit


@struct.dataclass
class SamplingArrays:
    """`Sampling` on the device, of each row apart: a change of it compiles nothing."""

    temperature: Float[Array, "*rows"]
    top_p: Float[Array, "*rows"]
    top_k: Int[Array, "*rows"]
    min_p: Float[Array, "*rows"]
    stop_ids: Int[Array, "*rows s"]  # -1 fills the row


class Draws(NamedTuple):
    """One token of each row, in nats what the distribution it was drawn from says of it.

    That distribution is tempered, truncated and renormalised; at temperature 0 it is taken to be the
    untempered, whole one. ``log_kept`` is the log of the mass that truncation has left of the tempered one:
    with it added, ``logprob`` is that of the whole.
    """

    tokens: Int[Array, "t"]
    logprob: Float[Array, "t"]
    log_kept: Float[Array, "t"]  # 0 where nothing truncates
    entropy: Float[Array, "t"] | None


def sampling_arrays(samplings: Sequence[Sampling], max_stop_ids: int) -> SamplingArrays:
    """The options of some rows, on the host.

    Raises:
      ValueError: a row has more than ``max_stop_ids`` stop ids.
    """
    most = max((len(sampling.stop_ids) for sampling in samplings), default=0)
    if most > max_stop_ids:
        raise ValueError(f"a request has {most} stop ids; there is room for {max_stop_ids}")

    def column(name: str, dtype: Any) -> Any:
        return np.array([getattr(sampling, name) for sampling in samplings], dtype)

    ids: Any = np.full((len(samplings), max_stop_ids), -1, np.int32)
    for row, one in zip(ids, samplings, strict=True):
        row[: len(one.stop_ids)] = one.stop_ids
    return SamplingArrays(
        temperature=column("temperature", np.float32),
        top_p=column("top_p", np.float32),
        top_k=column("top_k", np.int32),
        min_p=column("min_p", np.float32),
        stop_ids=ids,
    )


def sample(
    keys: Key[Array, "t"], logits: Float[Array, "t v"], options: SamplingArrays, *, entropy: bool = False
) -> Draws:
    """Draw one token from each row.

    Args:
      keys: one for each row.
      logits: float32, banned entries already at `BANNED`.
      options: temperature and truncation of each row.
      entropy: give it too.
    """
    greedy = options.temperature == 0
    tempered = logits / jnp.where(greedy, 1.0, options.temperature)[:, None]
    restricts = ~greedy & ((options.top_k > 0) | (options.top_p < 1) | (options.min_p > 0))
    top = tempered.max(axis=-1, keepdims=True)  # always kept

    def cut() -> tuple[Array, Array]:
        kept = jnp.where(restricts[:, None], truncate(tempered, options), tempered)
        whole, left = (jnp.exp(logits - top).sum(axis=-1) for logits in (tempered, kept))
        return kept, jnp.where(restricts, jnp.log(left / whole), 0.0)

    kept, log_kept = jax.lax.cond(restricts.any(), cut, lambda: (tempered, jnp.zeros_like(top[:, 0])))
    weight = jnp.exp(kept - top)
    drawn = _draw(keys, weight).astype(jnp.int32)
    tokens = jax.lax.cond(
        greedy.any(),
        lambda: jnp.where(greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), drawn),
        lambda: drawn,
    )
    log_total = jnp.log(weight.sum(axis=-1))
    logprob = (jnp.take_along_axis(kept, tokens[:, None], axis=-1) - top)[:, 0] - log_total
    if not entropy:
        return Draws(tokens, logprob, log_kept, None)
    total = jnp.exp(log_total)
    spread = log_total - jnp.where(weight > 0, weight * (kept - top), 0.0).sum(axis=-1) / total
    return Draws(tokens, logprob, log_kept, spread)


_BLOCK = 128  # weights that are summed before one is looked for among the sums


def _draw(keys: Key[Array, "t"], weight: Float[Array, "t v"]) -> Int[Array, "t"]:
    """An index of each row, as likely as its weight is large: where a uniform share of their sum lies.

    First among the sums of blocks, then within a block: one random number a row, and one pass over them.
    """
    rows, vocabulary = weight.shape
    blocks = jnp.pad(weight, ((0, 0), (0, -vocabulary % _BLOCK))).reshape(rows, -1, _BLOCK)
    ends = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    share = jax.vmap(jax.random.uniform)(keys) * ends[:, -1]
    block = _first_above(ends, share)
    before = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _first_above(jnp.cumsum(inside, axis=-1), share - before)


def _first_above(ends: Float[Array, "t n"], share: Float[Array, "t"]) -> Int[Array, "t"]:
    """The first of the ascending ``ends`` above the share; if rounding leaves none, the last that grew."""
    last = (ends < ends[:, -1:]).sum(axis=-1)
    return jnp.minimum((ends <= share[:, None]).sum(axis=-1), last)


def truncate(logits: Float[Array, "t v"], options: SamplingArrays) -> Float[Array, "t v"]:
    """Send the logits outside the kept support to `BANNED`; the most likely token is always kept.

    All three rules keep a first part of the ranking by probability, so that one sort serves them. ``top_p``
    is the smallest such part whose mass reaches it (arXiv:1904.09751), of what ``top_k`` has left.
    """
    ranked = jnp.sort(logits, axis=-1, descending=True)
    top_k, top_p, min_p = options.top_k[:, None], options.top_p[:, None], options.min_p[:, None]
    kept = (top_k == 0) | (jnp.arange(logits.shape[-1]) < top_k)
    probability = jax.nn.softmax(jnp.where(kept, ranked, BANNED), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept &= (top_p == 1) | (before < top_p)
    kept &= probability >= min_p * probability[:, :1]
    threshold = jnp.take_along_axis(ranked, kept.sum(axis=-1, keepdims=True) - 1, axis=-1)
    return jnp.where(logits >= threshold, logits, BANNED)
