"""Qwen2.5-VL (arXiv:2502.13923) as pure functions over a pytree of weights.

The language model runs in two forms. `extend` extends a cache by some tokens: decoding, and tools' answers.
`row_states` and `prefill_rows` run packed rows: scoring and the update, and prefill.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.kernels.attention import two_source_attention
from mmrl.mesh import constrain
from mmrl.models.config import Cache, ModelConfig, Prefix
from mmrl.models.layers import gated_mlp, mrope_angles, rematerialise, rms_norm, rotate
from mmrl.models.packed_attend import attend_packed
from mmrl.models.rows import TokenRows
from mmrl.models.vision_tower import encode_images
from mmrl.types import Params, Prompts


def unembedding(params: Params) -> Float[Array, "v d"]:
    """The output table: ``lm_head``, or the input embedding where the checkpoint ties them."""
    return params.get("lm_head", params["embedding"])


def embed(params: Params, config: ModelConfig, tokens: Int[Array, "*any"]) -> Float[Array, "*any d"]:
    """Input embeddings of text tokens, in the compute dtype."""
    table = constrain(params["embedding"].astype(config.dtype), "vocab", None)
    return constrain(table[tokens], "batch", *[None] * tokens.ndim)


def embed_prompts(params: Params, config: ModelConfig, prompts: Prompts) -> Float[Array, "b p d"]:
    """Input embeddings of prompts: text embeddings, and image features at the positions of image tokens.

    Without a single patch slot, the tower is left out.
    """
    if not prompts.images.patches.shape[1]:
        return embed(params, config, prompts.tokens)
    features = encode_images(params, config, prompts.images)
    at_image = jnp.take_along_axis(features, jnp.maximum(prompts.image_token, 0)[..., None], axis=1)
    return jnp.where((prompts.image_token >= 0)[..., None], at_image, embed(params, config, prompts.tokens))


def extend(
    params: Params,
    config: ModelConfig,
    x: Float[Array, "b g s d"],
    position: Int[Array, "b g s 3"],
    mask: Bool[Array, "b g s"],
    prefix: Prefix | None,
    cache: Cache,
) -> tuple[Float[Array, "b g s d"], Cache]:
    """Run ``s`` further tokens of each response through the language model.

    Each token reads the prefix of its group, if there is one, the tokens already in ``cache`` and the earlier
    ones of this call. Tokens with ``mask`` False, which come after the real ones, are read by nobody and take
    no slot.

    Returns:
      The hidden states after the final norm, and the cache with the real tokens added.
    """
    b, g, s, d = x.shape
    angle = mrope_angles(position.reshape(b, g * s, 3), config.mrope_sections, config.rope_theta)
    slot, readable = _slots(cache.length, mask, cache)
    hidden = x.reshape(b, g * s, d)
    made: list[tuple[Array, Array]] = []
    # Layer by layer, each with its own arrays: in a scan the cache would be copied at every step.
    for i, weights in enumerate(_each_layer(config, params["layers"])):
        of_prefix = () if prefix is None else (prefix.key[i], prefix.value[i], prefix.mask)

        def attend(*projected: Array, i: int = i, of_prefix: tuple = of_prefix) -> tuple[Array, tuple]:
            query, key, value = (part.reshape(b, g, s, *part.shape[2:]) for part in projected)
            key, value = _write(cache.key[i], slot, key), _write(cache.value[i], slot, value)
            read = (jnp.swapaxes(key, 2, 3), jnp.swapaxes(value, 2, 3))
            y = two_source_attention(query, *read, readable, *of_prefix)
            return y.reshape(b, -1, *y.shape[3:]), (key, value)

        hidden, own = _decoder_layer(config, weights, hidden, angle, ("batch", None, None), attend)
        made.append(own)
    keys, values = zip(*made, strict=True)
    hidden = rms_norm(hidden, params["final_norm"], config.norm_eps)
    return hidden.reshape(x.shape), Cache(keys, values, cache.length + mask.sum(axis=-1))


def _decoder_layer(
    config: ModelConfig,
    weights: Params,
    x: Float[Array, "b n d"],
    angle: Array,
    between: tuple[str | None, ...],
    attend: Callable[..., tuple[Array, Any]],
) -> tuple[Float[Array, "b n d"], Any]:
    """One layer; ``between`` are the axes of what lies between layers.

    ``attend`` takes queries, keys and values; it gives what they attend to, ``b n h q k``, and a value more.
    """
    x = constrain(x, *between)
    with jax.named_scope("attention"):
        y, more = attend(*_project(config, x, weights["attention"], angle))
        y = jnp.einsum("bnhqk,hqkd->bnd", y, weights["attention"]["out"].astype(y.dtype))
        x = x + constrain(y, *between)
    with jax.named_scope("mlp"):
        y = constrain(rms_norm(x, weights["mlp_norm"], config.norm_eps), "batch", None, None)
        x = x + constrain(gated_mlp(y, weights["mlp"]), *between)
    return x, more


def _each_layer(config: ModelConfig, layers: Params | tuple[Params, ...]) -> Iterable[Params]:
    """The weights of each layer, of a stack of them all or of each layer's own."""
    if isinstance(layers, tuple):
        return layers
    return (jax.tree.map(lambda stack, i=i: stack[i], layers) for i in range(config.layers))


def _slots(
    start: Int[Array, "b g"], mask: Bool[Array, "b g s"], cache: Cache
) -> tuple[Int[Array, "b g s"], Bool[Array, "b g s t"]]:
    """The cache slots of new tokens (past its end if they are not real), and the slots that each may read."""
    slot = start[..., None] + jnp.arange(mask.shape[-1])
    size = cache.key[0].shape[3]
    return jnp.where(mask, slot, size), slot[..., None] >= jnp.arange(size)


def _project(config: ModelConfig, x: Array, weights: dict, angle: Array) -> tuple[Array, Array, Array]:
    """Rotated queries ``b n h q k``, rotated keys and values ``b n h k`` of one layer."""
    y = constrain(rms_norm(x, weights["norm"], config.norm_eps), "batch", None, None)
    query = jnp.einsum("bnd,dhqk->bnhqk", y, weights["query"].astype(y.dtype))
    query = query + weights["query_bias"].astype(y.dtype)
    key, value = (
        jnp.einsum("bnd,dhk->bnhk", y, weights[name].astype(y.dtype))
        + weights[f"{name}_bias"].astype(y.dtype)
        for name in ("key", "value")
    )
    flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
    query = constrain(rotate(flat, angle).reshape(query.shape), "batch", None, "heads", None, None)
    key, value = (constrain(part, "batch", None, "heads", None) for part in (rotate(key, angle), value))
    return query, key, value


def _write(
    stored: Float[Array, "b g h t k"], slot: Int[Array, "b g s"], new: Float[Array, "b g s h k"]
) -> Float[Array, "b g h t k"]:
    """Put new keys (or values) into their slots; slots past the end are dropped."""
    b, g, _ = slot.shape
    at = (jnp.arange(b)[:, None, None], jnp.arange(g)[:, None], slice(None), slot)
    return stored.at[at].set(new, mode="drop")


def row_states(
    params: Params, config: ModelConfig, rows: TokenRows, features: Float[Array, "b n d"]
) -> Float[Array, "b n d"]:
    """Hidden states, after the final norm, of packed rows; ``features`` of images at their tokens' slots."""
    x, layer = _row_layers(params, config, rows, features)

    def state(x: Array, weights: Params) -> tuple[Array, None]:
        return layer(x, weights)[0], None

    x, _ = jax.lax.scan(rematerialise(config.remat, state), x, params["layers"], unroll=config.unroll)
    return rms_norm(x, params["final_norm"], config.norm_eps)


def prefill_rows(
    params: Params, config: ModelConfig, rows: TokenRows, features: Float[Array, "b n d"]
) -> tuple[Float[Array, "b n d"], list[tuple[Float[Array, "b n h k"], Float[Array, "b n h k"]]]]:
    """`row_states` with the weights of sampling, and the keys and values of each layer."""
    x, layer = _row_layers(params, config, rows, features)
    made = []
    for weights in _each_layer(config, params["layers"]):
        x, stored = layer(x, weights)
        made.append(stored)
    return rms_norm(x, params["final_norm"], config.norm_eps), made


def _row_layers(
    params: Params, config: ModelConfig, rows: TokenRows, features: Float[Array, "b n d"]
) -> tuple[Float[Array, "b n d"], Callable[[Array, Params], tuple[Array, tuple[Array, Array]]]]:
    """The input of the first layer, and a function of that and a layer's weights, for packed rows."""
    x = jnp.where((rows.feature >= 0)[..., None], features, embed(params, config, rows.tokens))
    angle = mrope_angles(rows.position, config.mrope_sections, config.rope_theta)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, Array]]:
        with jax.named_scope("text_pairs"):
            y = attend_packed(config.attention, query, key, value, rows.segments, rows.pairs)
        return y, (key, value)

    def layer(x: Array, weights: Params) -> tuple[Array, tuple[Array, Array]]:
        return _decoder_layer(config, weights, x, angle, ("batch", "tokens", None), attend)

    return x, layer


def response_position(prompts: Prompts, index: Int[Array, "b g s"]) -> Int[Array, "b g s 3"]:
    """mRoPE positions of response tokens number ``index``: text, so the same on all three axes."""
    position = prompts.next_position[:, None, None] + index
    return jnp.broadcast_to(position[..., None], (*position.shape, 3))
