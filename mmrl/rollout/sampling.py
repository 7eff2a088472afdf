"""Drawing tokens from logits: pure, and keyed by request, so the company a request keeps changes nothing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmrl.kernels.vocab import BANNED


@dataclass(frozen=True)
class Sampling:
    """How to sample responses.

    ``temperature`` 0 takes the most likely token. ``top_k``, ``top_p`` and ``min_p``, in this order, truncate
    the tempered distribution; 0, 1 and 0 switch them off.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p < 1,
        }
        for name, fine in checks.items():
            if not fine:
                raise ValueError(f"rollout.{name}={getattr(self, name)} is out of range")


def sample(
    keys: Key[Array, "t"], logits: Float[Array, "t v"], sampling: Sampling
) -> tuple[Int[Array, "t"], Float[Array, "t"]]:
    """Draw one token from each row.

    Args:
      keys: one for each row.
      logits: float32, banned entries already at `BANNED`.
      sampling: temperature and truncation.

    Returns:
      Token ids, and their log-probabilities under the distribution they were drawn from: tempered, truncated
      and renormalised. At temperature 0 that distribution is taken to be the untempered one.
    """
    if sampling.temperature == 0:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        tokens = jnp.argmax(logits, axis=-1)
    else:
        log_p = jax.nn.log_softmax(truncate(logits / sampling.temperature, sampling), axis=-1)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
        tokens = jnp.argmax(log_p + noise, axis=-1)
    return tokens.astype(jnp.int32), jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]


def truncate(logits: Float[Array, "t v"], sampling: Sampling) -> Float[Array, "t v"]:
    """Send the logits outside the kept support to `BANNED`; the most likely token is always kept."""
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits >= kth, logits, BANNED)
    if sampling.top_p < 1:
        ranked = jnp.sort(jax.nn.softmax(logits, axis=-1), axis=-1, descending=True)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        # The smallest set of most likely tokens whose mass reaches top_p (arXiv:1904.09751).
        last = jnp.sum(before < sampling.top_p, axis=-1, keepdims=True) - 1
        threshold = jnp.take_along_axis(ranked, last, axis=-1)
        logits = jnp.where(jax.nn.softmax(logits, axis=-1) >= threshold, logits, BANNED)
    if sampling.min_p:
        probability = jax.nn.softmax(logits, axis=-1)
        floor = sampling.min_p * probability.max(axis=-1, keepdims=True)
        logits = jnp.where(probability >= floor, logits, BANNED)
    return logits
