"""Drawing tokens from logits: pure, and keyed by request, so the company a request keeps changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from mmrl.kernels.vocab import BANNED


@dataclass(frozen=True)
class Sampling:
    """How to sample a response.

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
class Options:
    """`Sampling` on the device, of each row apart: a change of it compiles nothing."""

    temperature: Float[Array, "*rows"]
    top_p: Float[Array, "*rows"]
    top_k: Int[Array, "*rows"]
    min_p: Float[Array, "*rows"]
    stop_ids: Int[Array, "*rows s"]  # -1 fills the row


def options_of(samplings: Sequence[Sampling], stop_slots: int) -> Options:
    """The options of some rows, on the host.

    Raises:
      ValueError: a row has more than ``stop_slots`` stop ids.
    """
    most = max((len(one.stop_ids) for one in samplings), default=0)
    if most > stop_slots:
        raise ValueError(f"a request has {most} stop ids; there is room for {stop_slots}")

    def column(name: str, dtype: Any) -> Any:
        return np.array([getattr(one, name) for one in samplings], dtype)

    ids: Any = np.full((len(samplings), stop_slots), -1, np.int32)
    for row, one in zip(ids, samplings, strict=True):
        row[: len(one.stop_ids)] = one.stop_ids
    return Options(
        temperature=column("temperature", np.float32),
        top_p=column("top_p", np.float32),
        top_k=column("top_k", np.int32),
        min_p=column("min_p", np.float32),
        stop_ids=ids,
    )


def sample(
    keys: Key[Array, "t"], logits: Float[Array, "t v"], options: Options, *, entropy: bool = False
) -> tuple[Int[Array, "t"], Float[Array, "t"], Float[Array, "t"] | None]:
    """Draw one token from each row.

    Args:
      keys: one for each row.
      logits: float32, banned entries already at `BANNED`.
      options: temperature and truncation of each row.
      entropy: give it too, in nats.

    Returns:
      Token ids, and their log-probabilities under the distribution they were drawn from: tempered, truncated
      and renormalised. At temperature 0 that distribution is taken to be the untempered, whole one. And the
      entropy of that distribution, or None.
    """
    greedy = options.temperature == 0
    tempered = logits / jnp.where(greedy, 1.0, options.temperature)[:, None]
    restricts = ~greedy & ((options.top_k > 0) | (options.top_p < 1) | (options.min_p > 0))
    kept = jax.lax.cond(
        restricts.any(),
        lambda: jnp.where(restricts[:, None], truncate(tempered, options), tempered),
        lambda: tempered,
    )
    log_p = jax.nn.log_softmax(kept, axis=-1)
    # The largest of logits plus Gumbel noise is a draw; without the noise it is the most likely token.
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    tokens = jnp.argmax(log_p + jnp.where(greedy[:, None], 0.0, noise), axis=-1)
    logprob = jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]
    spread = -jnp.where(kept > BANNED / 2, jnp.exp(log_p) * log_p, 0.0).sum(axis=-1) if entropy else None
    return tokens.astype(jnp.int32), logprob, spread


def truncate(logits: Float[Array, "t v"], options: Options) -> Float[Array, "t v"]:
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
