"""Qwen2.5-VL (arXiv:2502.13923) as pure functions over a pytree of weights.

The language model has one function, `extend`: extend a cache by some tokens. Prefill, decode, scoring and the
update are calls of it with different sources (see `mmrl.kernels.attention`).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mmrl.kernels.attention import self_attention, two_source_attention
from mmrl.models.layers import gated_mlp, grid_angles, linear, mrope_angles, rms_norm, rotate
from mmrl.models.qwen2_5_vl_config import Config
from mmrl.types import Images, Params, Prompts, Responses

_VISION_EPS = 1e-6
_MERGE = 4  # patches in a merge block (2 x 2)


@struct.dataclass
class Prefix:
    """Keys and values of the prompts, one copy a group, for all layers ``l``."""

    key: Float[Array, "l b p h k"]
    value: Float[Array, "l b p h k"]
    mask: Bool[Array, "b p"]


@struct.dataclass
class Cache:
    """Keys and values of the responses; slots at or beyond ``length`` are free."""

    key: Float[Array, "l b g t h k"]
    value: Float[Array, "l b g t h k"]
    length: Int[Array, "b g"]


@struct.dataclass
class Prompt:
    """The input of prompts whose prefix is computed in the same pass as their responses."""

    x: Float[Array, "b p d"]
    position: Int[Array, "b p 3"]
    mask: Bool[Array, "b p"]


def empty_cache(config: Config, prompts: int, group: int, slots: int, dtype: DTypeLike) -> Cache:
    """A cache of ``slots`` tokens for each of ``prompts`` x ``group`` responses, with nothing in it."""
    shape = (config.layers, prompts, group, slots, config.kv_heads, config.head_dim)
    return Cache(
        key=jnp.zeros(shape, dtype),
        value=jnp.zeros(shape, dtype),
        length=jnp.zeros((prompts, group), jnp.int32),
    )


def unembedding(params: Params) -> Float[Array, "v d"]:
    """The output table: ``lm_head``, or the input embedding where the checkpoint ties them."""
    return params.get("lm_head", params["embedding"])


def encode_images(params: Params, config: Config, images: Images) -> Float[Array, "b m d"]:
    """Vision tower and merger: one feature of the language model's width for each 2 x 2 block of patches."""
    vision, dtype = params["vision"], config.dtype
    with jax.named_scope("vision_tower"):
        # An image is a clip of two equal frames: the weights of both frames see the same pixels.
        weight = vision["patch_embedding"].sum(axis=0).reshape(-1, config.vision_width).astype(dtype)
        x = _normalise_pixels(config, images.patches).astype(dtype) @ weight
        angle = grid_angles(images.position, config.vision_head_dim)
        real = images.image >= 0
        same_image = (images.image[:, :, None] == images.image[:, None, :]) & real[:, None, :]
        is_full = jnp.isin(
            jnp.arange(config.vision_layers), jnp.array(config.full_attention_layers, jnp.int32)
        )

        def block(x: Array, layer: tuple) -> tuple[Array, None]:
            weights, full = layer
            return _vision_block(config, x, weights, full, angle, real, same_image), None

        x, _ = jax.lax.scan(
            _rematerialise(config, block), x, (vision["layers"], is_full), unroll=config.unroll
        )
        merger = vision["merger"]
        x = rms_norm(x, merger["norm"], _VISION_EPS)
        x = x.reshape(x.shape[0], -1, _MERGE * x.shape[-1])
        x = jax.nn.gelu(linear(x, merger["in"], merger["in_bias"]), approximate=False)
        return linear(x, merger["out"], merger["out_bias"])


def _normalise_pixels(config: Config, patches: Array) -> Float[Array, "b n c"]:
    """Bytes to the normalised floats the checkpoint was trained on, (x / 255 - mean) / std per channel."""
    pixels = patches.shape[-1] // 3
    mean = jnp.repeat(jnp.array(config.image_mean, jnp.float32), pixels)
    std = jnp.repeat(jnp.array(config.image_std, jnp.float32), pixels)
    return (patches.astype(jnp.float32) * jnp.float32(1 / 255) - mean) / std


def _vision_block(
    config: Config, x: Array, weights: dict, full: Array, angle: Array, real: Array, same_image: Array
) -> Array:
    b, n, _ = x.shape
    slots = config.window_slots
    y = rms_norm(x, weights["attention_norm"], _VISION_EPS)
    qkv = jnp.einsum("bnd,dxhk->xbnhk", y, weights["qkv"].astype(y.dtype))
    qkv = qkv + weights["qkv_bias"].astype(y.dtype)[:, None, None]
    query, key, value = rotate(qkv[0], angle), rotate(qkv[1], angle), qkv[2]

    def over_image() -> Array:
        return self_attention(query, key, value, same_image)

    def over_window() -> Array:
        def windows(a: Array) -> Array:
            return a.reshape(b, n // slots, slots, *a.shape[2:])

        here = windows(real)
        mask = jnp.broadcast_to(here[..., None, :], (*here.shape, slots))
        return self_attention(windows(query), windows(key), windows(value), mask).reshape(query.shape)

    y = jax.lax.cond(full, over_image, over_window)
    y = jnp.einsum("bnhk,hkd->bnd", y, weights["out"].astype(y.dtype)) + weights["out_bias"].astype(y.dtype)
    x = x + y
    return x + gated_mlp(rms_norm(x, weights["mlp_norm"], _VISION_EPS), weights["mlp"])


def embed(params: Params, config: Config, tokens: Int[Array, "*any"]) -> Float[Array, "*any d"]:
    """Input embeddings of text tokens, in the compute dtype."""
    return params["embedding"][tokens].astype(config.dtype)


def embed_prompts(params: Params, config: Config, prompts: Prompts) -> Float[Array, "b p d"]:
    """Input embeddings of prompts: text embeddings, and image features at the positions of image tokens."""
    features = encode_images(params, config, prompts.images)
    at_image = jnp.take_along_axis(features, jnp.maximum(prompts.image_token, 0)[..., None], axis=1)
    return jnp.where((prompts.image_token >= 0)[..., None], at_image, embed(params, config, prompts.tokens))


def extend(
    params: Params,
    config: Config,
    x: Float[Array, "b g s d"],
    position: Int[Array, "b g s 3"],
    mask: Bool[Array, "b g s"],
    prefix: Prefix | None = None,
    cache: Cache | None = None,
    prompt: Prompt | None = None,
) -> tuple[Float[Array, "b g s d"], Cache, Float[Array, "b p d"] | None]:
    """Run ``s`` further tokens of each response through the language model.

    Each token reads the prefix of its group, the tokens already in ``cache`` and the earlier ones of this
    call. Tokens with ``mask`` False, which come after the real ones, are read by nobody and take no slot.
    The prefix is either given, or that of ``prompt``, computed in the same pass: layer by layer its tokens go
    through the weights together with those of the group, and the gradients of the group sum into it.
    Without a cache, one of just these tokens is made.

    Returns:
      The hidden states after the final norm, the cache with the real tokens added, and the hidden states of
      ``prompt`` where one was given.
    """
    b, g, s, d = x.shape
    tokens, positions = x.reshape(b, g * s, d), position.reshape(b, g * s, 3)
    length = 0
    if prompt is not None:
        length = prompt.x.shape[1]
        tokens = jnp.concatenate([prompt.x, tokens], axis=1)
        positions = jnp.concatenate([prompt.position, positions], axis=1)
    angle = mrope_angles(positions, config.mrope_sections, config.rope_theta)
    start = jnp.zeros((b, g), jnp.int32) if cache is None else cache.length
    slot, own_mask = _slots(start, mask, cache)

    def layer(carry: tuple, inputs: tuple) -> tuple[tuple, tuple | None]:
        x, stored = carry
        index, weights, prefix_key, prefix_value = inputs
        prefix_mask = None if prefix is None else prefix.mask
        with jax.named_scope("attention"):
            projected = _project(config, x, weights["attention"], angle)
            outputs = []
            if prompt is not None:
                query, key, value = (part[:, None, :length] for part in projected)
                outputs.append(two_source_attention(query, key, value, _causal(prompt.mask[:, None])))
                prefix_key, prefix_value, prefix_mask = key[:, 0], value[:, 0], prompt.mask
            query, *made = (part[:, length:].reshape(b, g, s, *part.shape[2:]) for part in projected)
            key, value = made
            if stored is not None:
                stored = tuple(_write(old, index, slot, new) for old, new in zip(stored, made, strict=True))
                key, value = stored[0][index], stored[1][index]
            outputs.append(
                two_source_attention(query, key, value, own_mask, prefix_key, prefix_value, prefix_mask)
            )
            flat = [part.reshape(b, -1, *part.shape[3:]) for part in outputs]
            y = flat[0] if prompt is None else jnp.concatenate(flat, axis=1)
            x = x + jnp.einsum("bnhqk,hqkd->bnd", y, weights["attention"]["out"].astype(y.dtype))
        with jax.named_scope("mlp"):
            x = x + gated_mlp(rms_norm(x, weights["mlp_norm"], config.norm_eps), weights["mlp"])
        return (x, stored), (None if stored is not None else (key, value))

    stored = None if cache is None else (cache.key, cache.value)
    shared = (None, None) if prefix is None else (prefix.key, prefix.value)
    (tokens, stored), made = jax.lax.scan(
        _rematerialise(config, layer),
        (tokens, stored),
        (jnp.arange(config.layers), params["layers"], *shared),
        unroll=config.unroll,
    )
    hidden = rms_norm(tokens, params["final_norm"], config.norm_eps)
    key, value = made if stored is None else stored
    extended = Cache(key, value, start + mask.sum(axis=-1))
    own = hidden[:, length:].reshape(x.shape)
    return own, extended, None if prompt is None else hidden[:, :length]


def _slots(
    start: Int[Array, "b g"], mask: Bool[Array, "b g s"], cache: Cache | None
) -> tuple[Int[Array, "b g s"], Bool[Array, "b g s t"]]:
    """Where new tokens go in the cache (past its end if they are not real), and which slots each may read."""
    slot = start[..., None] + jnp.arange(mask.shape[-1])
    if cache is None:
        return slot, _causal(mask)
    size = cache.key.shape[3]
    return jnp.where(mask, slot, size), slot[..., None] >= jnp.arange(size)


def _causal(mask: Bool[Array, "b g s"]) -> Bool[Array, "b g s s"]:
    """Each token reads the real ones up to itself."""
    order = jnp.arange(mask.shape[-1])
    return (order[:, None] >= order) & mask[..., None, :]


def _project(config: Config, x: Array, weights: dict, angle: Array) -> tuple[Array, Array, Array]:
    """Rotated queries ``b n h q k``, rotated keys and values ``b n h k`` of one layer."""
    y = rms_norm(x, weights["norm"], config.norm_eps)
    query = jnp.einsum("bnd,dhqk->bnhqk", y, weights["query"].astype(y.dtype))
    query = query + weights["query_bias"].astype(y.dtype)
    key, value = (
        jnp.einsum("bnd,dhk->bnhk", y, weights[name].astype(y.dtype))
        + weights[f"{name}_bias"].astype(y.dtype)
        for name in ("key", "value")
    )
    flat = query.reshape(*query.shape[:2], -1, query.shape[-1])
    return rotate(flat, angle).reshape(query.shape), rotate(key, angle), value


def _write(stored: Array, layer: Array, slot: Int[Array, "b g s"], new: Array) -> Array:
    """Put the new keys (or values) of one layer into their slots; slots past the end are dropped."""
    b, g, _ = slot.shape
    at = (layer, jnp.arange(b)[:, None, None], jnp.arange(g)[:, None], slot)
    return stored.at[at].set(new, mode="drop")


def prefill(params: Params, config: Config, prompts: Prompts) -> tuple[Prefix, Float[Array, "b d"]]:
    """Run the prompts, images included.

    Returns:
      The prefix their groups share, and the hidden state after each prompt's last token, which predicts the
      first response token.
    """
    with jax.named_scope("prefill"):
        x = embed_prompts(params, config, prompts)
        hidden, cache, _ = extend(
            params, config, x[:, None], prompts.position[:, None], prompts.mask[:, None]
        )
        prefix = Prefix(cache.key[:, :, 0], cache.value[:, :, 0], prompts.mask)
        return prefix, _last(hidden[:, 0], prompts.mask)


def predict(
    params: Params, config: Config, prompts: Prompts, responses: Responses
) -> Float[Array, "b g r d"]:
    """Hidden states that predict each response token, teacher forced: what scoring and the update read.

    The prompt, with its images, is computed once for the group and gradients of the group sum into it.
    """
    prompt = Prompt(embed_prompts(params, config, prompts), prompts.position, prompts.mask)
    b, g, r = responses.tokens.shape
    position = response_position(prompts, jnp.broadcast_to(jnp.arange(r), (b, g, r)))
    x = embed(params, config, responses.tokens)
    hidden, _, prompt_hidden = extend(params, config, x, position, responses.mask, prompt=prompt)
    assert prompt_hidden is not None
    last = _last(prompt_hidden, prompts.mask)
    first = jnp.broadcast_to(last[:, None, None], (b, g, 1, hidden.shape[-1]))
    return jnp.concatenate([first, hidden[:, :, :-1]], axis=2)


def _last(hidden: Float[Array, "b p d"], mask: Bool[Array, "b p"]) -> Float[Array, "b d"]:
    """The hidden state after each prompt's last real token."""
    last = jnp.maximum(mask.sum(axis=1) - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def response_position(prompts: Prompts, index: Int[Array, "b g s"]) -> Int[Array, "b g s 3"]:
    """mRoPE positions of response tokens number ``index``: text, so the same on all three axes."""
    position = prompts.next_position[:, None, None] + index
    return jnp.broadcast_to(position[..., None], (*position.shape, 3))


def _rematerialise(config: Config, function):
    """Apply the configured policy of what a layer keeps for the backward pass."""
    if config.remat == "none":
        return function
    policy = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[config.remat]
    return jax.checkpoint(function, policy=policy, prevent_cse=False)
