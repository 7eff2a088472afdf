"""Two-source attention: every response reads its group's prompt (one copy) and its own tokens.

``b`` prompts, ``g`` responses a group, ``s`` query tokens, ``p`` prefix tokens, ``t`` own key slots, ``h``
key/value heads, ``q`` query heads per key/value head, ``k`` head width. `mmrl.kernels.flash` has a form of
`self_attention` for TPU that does not hold the scores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # finite, so that a row with nothing to read gives zeros rather than NaN


def two_source_attention(
    query: Float[Array, "b g s h q k"],
    own_key: Float[Array, "b g t h k"],
    own_value: Float[Array, "b g t h k"],
    own_mask: Bool[Array, "b g s t"],
    prefix_key: Float[Array, "b p h k"] | None = None,
    prefix_value: Float[Array, "b p h k"] | None = None,
    prefix_mask: Bool[Array, "b p"] | None = None,
) -> Float[Array, "b g s h q k"]:
    """Softmax attention over the union of the shared prefix and the response's own keys.

    The prefix enters one matrix product for the whole group, so its keys and values are read once. Softmax is
    taken in float32 over both sources together; a query whose masks are all False gets zeros.
    """
    scale = query.shape[-1] ** -0.5
    own_score = jnp.einsum("bgshqk,bgthk->bghqst", query, own_key, preferred_element_type=jnp.float32)
    own_score = jnp.where(own_mask[:, :, None, None], own_score * scale, MASKED)
    top = own_score.max(axis=-1)
    if prefix_key is not None:
        assert prefix_mask is not None
        prefix_score = jnp.einsum(
            "bgshqk,bphk->bghqsp", query, prefix_key, preferred_element_type=jnp.float32
        )
        prefix_score = jnp.where(prefix_mask[:, None, None, None, None], prefix_score * scale, MASKED)
        top = jnp.maximum(top, prefix_score.max(axis=-1))
    # Softmax does not depend on the number subtracted: no gradient need go through it.
    top = jax.lax.stop_gradient(jnp.maximum(top, MASKED / 2))[..., None]
    own_weight = jnp.exp(own_score - top)
    total = own_weight.sum(axis=-1)
    out = jnp.einsum("bghqst,bgthk->bgshqk", own_weight.astype(own_value.dtype), own_value)
    if prefix_key is not None:
        assert prefix_value is not None
        prefix_weight = jnp.exp(prefix_score - top)
        total = total + prefix_weight.sum(axis=-1)
        out = out + jnp.einsum("bghqsp,bphk->bgshqk", prefix_weight.astype(prefix_value.dtype), prefix_value)
    total = jnp.maximum(total, 1e-30).astype(out.dtype)
    return out / jnp.moveaxis(total, -1, 2)[..., None]


def self_attention(
    query: Float[Array, "... t h k"],
    key: Float[Array, "... t h k"],
    value: Float[Array, "... t h k"],
    mask: Bool[Array, "... t u"],
) -> Float[Array, "... t h k"]:
    """Bidirectional attention under ``mask[..., query, key]``, softmax in float32 (the vision tower's)."""
    score = jnp.einsum("...thk,...uhk->...htu", query, key, preferred_element_type=jnp.float32)
    score = jnp.where(mask[..., None, :, :], score * query.shape[-1] ** -0.5, MASKED)
    top = jax.lax.stop_gradient(jnp.maximum(score.max(axis=-1, keepdims=True), MASKED / 2))
    weight = jnp.exp(score - top)
    weight = weight / jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30)
    return jnp.einsum("...htu,...uhk->...thk", weight.astype(value.dtype), value)
