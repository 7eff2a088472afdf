"""Statistics of next-token distributions, from hidden states, without ever holding ``[tokens, v]``.

Tokens are taken in chunks; a chunk's logits live only while its statistics are computed, and are recomputed
in the backward pass. The distribution is that of the policy: logits divided by the temperature, and ``bias``
added (0 for tokens the policy may emit, a large negative number for those it may not).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BANNED = -1e30


def log_distribution(
    hidden: Float[Array, "t d"],
    table: Float[Array, "v d"],
    bias: Float[Array, "v"],
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "t v"]:
    """Log-probabilities of every token, float32: the plain form the chunked statistics are made of."""
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
    corrupted_gradient: bool = False,
    chunk: int = 1024,
) -> dict[str, Float[Array, "t"]]:
    """Per-token statistics of the policy's next-token distribution, float32, differentiable.

    Args:
      hidden: states that predict ``tokens``, image present.
      table: output embedding.
      tokens: token ids, all emittable (``bias`` 0).
      bias: added to the logits of each vocabulary entry.
      temperature: divides the logits.
      entropy: also give the entropy of the full distribution (nats).
      corrupted_hidden: states that predict the same tokens with the image corrupted.
      perception: with ``corrupted_hidden``, also give the exact KL(image present || image corrupted) (nats):
        the token perception of PAPO (arXiv:2507.06448) and VPPO (arXiv:2510.09285), over the full vocabulary.
      corrupted_gradient: let gradients through the corrupted distribution too.
      chunk: tokens whose logits are held at a time.

    Returns:
      ``{"logprob": ...}`` and, as asked, ``"entropy"``, ``"corrupted"`` (the logprob of the token with the
      image corrupted) and ``"perception"``.
    """

    def of_chunk(inputs: tuple) -> dict[str, Array]:
        hidden, tokens, corrupted_hidden = inputs
        log_p = log_distribution(hidden, table, bias, temperature)
        out = {"logprob": _pick(log_p, tokens)}
        if entropy:
            out["entropy"] = -(jnp.exp(log_p) * log_p).sum(axis=-1)
        if corrupted_hidden is not None:
            log_q = log_distribution(corrupted_hidden, table, bias, temperature)
            if not corrupted_gradient:
                log_q = jax.lax.stop_gradient(log_q)
            out["corrupted"] = _pick(log_q, tokens)
            if perception:
                out["perception"] = (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        return out

    count = tokens.shape[0]
    chunk = min(chunk, count)
    padding = -count % chunk

    def cut(array: Array | None) -> Array | None:
        if array is None:
            return None
        padded = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return padded.reshape(-1, chunk, *array.shape[1:])

    chunks = (cut(hidden), cut(tokens), cut(corrupted_hidden))
    with jax.named_scope("vocab"):
        out = jax.lax.map(jax.checkpoint(of_chunk), chunks)
    return {name: value.reshape(-1)[:count] for name, value in out.items()}


def _pick(log_p: Float[Array, "t v"], tokens: Int[Array, "t"]) -> Float[Array, "t"]:
    return jnp.take_along_axis(log_p, tokens[:, None], axis=-1)[:, 0]
