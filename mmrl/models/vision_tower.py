"""Vision towers that read patches of images of any size, or of tiles, and what makes image tokens of them.

Those of Qwen2-VL (arXiv:2409.12191), Qwen2.5-VL (arXiv:2502.13923) and Qwen3-VL (arXiv:2511.21631), and of
tiles InternViT (arXiv:2312.14238), as `mmrl.models.config.VisionConfig` describes them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mmrl.kernels.attention import self_attention
from mmrl.kernels.flash import flash_images
from mmrl.mesh import constrain, shard_map_kernel
from mmrl.models.config import ModelConfig, VisionConfig
from mmrl.models.layers import gated_mlp, grid_angles, layer_norm, linear, rematerialise, rms_norm, rotate
from mmrl.models.packed_attend import attend_packed
from mmrl.models.positions import patch_grid
from mmrl.models.rows import PatchRows
from mmrl.types import Images, Params

_PROJECTOR_EPS = 1e-5
_HEADS_EPS = 1e-6  # of the norms of queries and keys


def encode_images(params: Params, config: ModelConfig, images: Images) -> Float[Array, "b m e"]:
    """Features of image tokens, one for each block of merged patches; ``e``: `ModelConfig.feature_width`."""
    if config.vision.tiles:
        return _encode_tiles(params, config, images.patches)
    image, (b, n), slots = images.image, images.image.shape, config.window_slots
    real = image >= 0

    def over_window(query: Array, key: Array, value: Array) -> Array:
        def windows(a: Array) -> Array:
            return a.reshape(b, n // slots, slots, *a.shape[2:])

        here = windows(real)
        mask = jnp.broadcast_to(here[..., None, :], (*here.shape, slots))
        return self_attention(windows(query), windows(key), windows(value), mask).reshape(query.shape)

    with jax.named_scope("vision_tower"):
        x = _embed_patches(params, config, images.patches, images.position, image)
        over_image = _over_images(config, image)
        x, taken = _through_tower(params, config, x, images.position, over_image, over_window)
        return _image_tokens(params, config, x, taken)


def encode_rows(
    params: Params, config: ModelConfig, patches: UInt8[Array, "b n c"], rows: PatchRows
) -> Float[Array, "b m e"]:
    """`encode_images` of packed rows of patches."""
    if config.vision.tiles:
        return _encode_tiles(params, config, patches)

    def over(name: str, *lists: Any) -> Callable[..., Array]:
        def attend(query: Array, key: Array, value: Array) -> Array:
            with jax.named_scope(name):
                return attend_packed(config.attention, query[..., None, :], key, value, *lists)[..., 0, :]

        return attend

    with jax.named_scope("vision_tower"):
        x = _embed_patches(params, config, patches, rows.position, jnp.asarray(rows.images.context))
        over_image = over("image_pairs", rows.images, rows.image_pairs)
        over_window = over("window_pairs", rows.windows, rows.window_pairs)
        x, taken = _through_tower(params, config, x, rows.position, over_image, over_window)
        return _image_tokens(params, config, x, taken)


def _encode_tiles(
    params: Params, config: ModelConfig, patches: UInt8[Array, "b n c"]
) -> Float[Array, "b m e"]:
    """`encode_images` of whole tiles, one after another; what is no whole tile at the end gives zeros."""
    vision, slots = params["vision"], config.window_slots
    b, n = patches.shape[:2]
    whole, side = n // slots * slots, math.isqrt(slots)
    with jax.named_scope("vision_tower"):
        tiles = patches[:, :whole].reshape(-1, slots, patches.shape[-1])
        row, column = patch_grid(side, side, config.vision.merge).T
        x = _embed_pixels(params, config, tiles)
        if config.vision.class_token:
            first = jnp.broadcast_to(vision["class_token"].astype(x.dtype), (len(x), 1, x.shape[-1]))
            order = np.concatenate([[0], 1 + row * side + column])
            x = jnp.concatenate([first, x], axis=1) + vision["tile_positions"][:, order].astype(x.dtype)
        over_tile = _over_images(config, jnp.zeros(x.shape[:2], jnp.int32))  # one a row
        x, taken = _through_tower(params, config, x, None, over_tile, over_tile)
        x, taken = jax.tree.map(lambda state: state[:, -slots:], (x, taken))
        made = _image_tokens(params, config, x, taken).reshape(b, whole // config.token_patches, -1)
        return jnp.pad(made, ((0, 0), (0, n // config.token_patches - made.shape[1]), (0, 0)))


def _over_images(config: ModelConfig, image: Int[Array, "b n"]) -> Callable[..., Array]:
    """Attention of every patch to all patches of its ``image``, by its number in the row; -1 for none."""

    def attend(query: Array, key: Array, value: Array) -> Array:
        if config.attention == "plain":
            same = (image[:, :, None] == image[:, None, :]) & (image >= 0)[:, None, :]
            return self_attention(query, key, value, same)
        heads = ("batch", None, "heads", None)
        flash = partial(flash_images, interpret=config.attention == "interpreted")
        return shard_map_kernel(flash, (heads, heads, heads, ("batch", None)), like=0, checked=False)(
            query, key, value, image
        )

    return attend


def _embed_patches(
    params: Params,
    config: ModelConfig,
    patches: UInt8[Array, "b n c"],
    position: Int[Array, "b n 2"],
    image: Int[Array, "b n"],
) -> Float[Array, "b n d"]:
    x = _embed_pixels(params, config, patches)
    if config.vision.position_table:
        x = x + _interpolate(params["vision"]["position_table"], position, image).astype(x.dtype)
    return x


def _embed_pixels(
    params: Params, config: ModelConfig, patches: UInt8[Array, "b n c"]
) -> Float[Array, "b n d"]:
    vision = params["vision"]
    weight = vision["patch_embedding"].astype(config.dtype)
    if config.vision.frames > 1:  # an image is a clip of equal frames: the weights of all see the same pixels
        weight = weight.sum(axis=0)
    return linear(
        _normalise_pixels(config, patches).astype(config.dtype),
        weight.reshape(-1, config.vision.width),
        vision.get("patch_embedding_bias"),
    )


def _interpolate(
    table: Float[Array, "side side d"], position: Int[Array, "b n 2"], image: Int[Array, "b n"]
) -> Float[Array, "b n d"]:
    """Learned positions, stretched over each image: bilinear, its corners on the table's (Qwen3-VL).

    ``image`` is the number of each patch's image in its row, negative where there is none.
    """
    side, n = table.shape[0], image.shape[1]
    number = jnp.where(image < 0, n, image)

    def last(position: Array, number: Array) -> Array:
        return jax.ops.segment_max(position, number, num_segments=n + 1)[number]

    at = position * (side - 1) / jnp.maximum(jax.vmap(last)(position, number), 1)
    low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, side - 1)
    high, part = jnp.minimum(low + 1, side - 1), (at - low)[..., None].astype(jnp.float32)
    wide = table.astype(jnp.float32)

    def along_row(row: Array) -> Array:
        left, right = wide[row, low[..., 1]], wide[row, high[..., 1]]
        return left + (right - left) * part[..., 1, :]

    above, below = along_row(low[..., 0]), along_row(high[..., 0])
    return above + (below - above) * part[..., 0, :]


def _through_tower(
    params: Params,
    config: ModelConfig,
    x: Float[Array, "b n d"],
    position: Int[Array, "b n 2"] | None,
    over_image: Callable[..., Array],
    over_window: Callable[..., Array],
) -> tuple[Float[Array, "b n d"], list[Array]]:
    """All blocks, and the states behind those of `VisionConfig.taps`.

    Of queries, keys and values, the two functions know who reads whom. ``position`` is None if none turns.
    """
    tower, vision = params["vision"], config.vision
    angle = None if position is None else grid_angles(position, vision.head_dim)
    number = jnp.arange(vision.layers)
    full = jnp.isin(number, jnp.array(vision.full_layers, jnp.int32))

    def block(x: Array, weights: Params, full: Array) -> Array:
        def attend(*projected: Array) -> Array:
            if len(vision.full_layers) in (0, vision.layers):
                return (over_image if vision.full_layers else over_window)(*projected)
            return jax.lax.cond(full, over_image, over_window, *projected)

        return _vision_block(vision, x, weights, angle, attend)

    recomputed = rematerialise(config.remat, block)

    def through(carried: tuple[Array, list[Array]], layer: tuple) -> tuple[tuple[Array, list[Array]], None]:
        (x, taken), (weights, full, number) = carried, layer
        x = recomputed(x, weights, full)
        return (
            x,
            [jnp.where(number == tap, x, old) for tap, old in zip(vision.taps, taken, strict=True)],
        ), None

    (x, taken), _ = jax.lax.scan(
        through,
        (x, [jnp.zeros_like(x)] * len(vision.taps)),
        (tower["layers"], full, number),
        unroll=config.unroll,
    )
    return x, taken


def _image_tokens(
    params: Params, config: ModelConfig, x: Float[Array, "b n d"], taken: list[Array]
) -> Float[Array, "b m e"]:
    """Image tokens of the states of patches, in the order of blocks, and of those that were ``taken``."""
    tower, vision = params["vision"], config.vision
    features = [_merge(vision, x, tower["merger"], first=vision.connector == "merger")]
    for k, state in enumerate(taken):
        weights = jax.tree.map(lambda stack, k=k: stack[k], tower["tap_mergers"])
        features.append(_merge(vision, state, weights, first=False))
    return jnp.concatenate(features, axis=-1)


def _merge(
    vision: VisionConfig, x: Float[Array, "b n d"], weights: dict, first: bool
) -> Float[Array, "b m w"]:
    """Image tokens of merged patches; ``first`` normed, then merged, or the other way round."""
    merged = (x.shape[0], -1, vision.merge**2 * x.shape[-1])
    if vision.connector == "projector":
        x = layer_norm(x.reshape(merged), weights["norm"], weights["norm_bias"], _PROJECTOR_EPS)
    elif first:
        x = _norm(vision, x, weights, "norm").reshape(merged)
    else:
        x = _norm(vision, x.reshape(merged), weights, "norm")
    x = jax.nn.gelu(linear(x, weights["in"], weights["in_bias"]), approximate=False)
    return linear(x, weights["out"], weights["out_bias"])


def _normalise_pixels(config: ModelConfig, patches: Array) -> Float[Array, "b n c"]:
    """Bytes to the normalised floats the checkpoint was trained on, (x / 255 - mean) / std per channel."""
    pixels = patches.shape[-1] // 3
    mean = jnp.repeat(jnp.array(config.vision.image_mean, jnp.float32), pixels)
    std = jnp.repeat(jnp.array(config.vision.image_std, jnp.float32), pixels)
    return (patches.astype(jnp.float32) * jnp.float32(1 / 255) - mean) / std


def _vision_block(
    vision: VisionConfig, x: Array, weights: dict, angle: Array | None, attend: Callable[..., Array]
) -> Array:
    x = constrain(x, "batch", "tokens", None)
    y = constrain(_norm(vision, x, weights, "attention_norm"), "batch", None, None)
    query, key, value = _project(vision, y, weights)
    if angle is not None:
        query, key = rotate(query, angle), rotate(key, angle)
    y = attend(query, key, value)
    y = jnp.einsum("bnhk,hkd->bnd", y, weights["out"].astype(y.dtype)) + weights["out_bias"].astype(y.dtype)
    x = x + constrain(_scaled(y, weights, "attention_scale"), "batch", "tokens", None)
    y = constrain(_norm(vision, x, weights, "mlp_norm"), "batch", None, None)
    y = _scaled(_mlp(vision, y, weights["mlp"]), weights, "mlp_scale")
    return x + constrain(y, "batch", "tokens", None)


def _project(vision: VisionConfig, y: Float[Array, "b n d"], weights: dict) -> tuple[Array, Array, Array]:
    """Queries, keys and values ``b n h k`` of one tensor of weights, or of three."""
    if "qkv" in weights:
        qkv = jnp.einsum("bnd,dxhk->xbnhk", y, weights["qkv"].astype(y.dtype))
        qkv = qkv + weights["qkv_bias"].astype(y.dtype)[:, None, None]
        qkv = constrain(qkv, None, "batch", None, "heads", None)
        return qkv[0], qkv[1], qkv[2]
    made = {}
    for name in ("query", "key", "value"):
        part = jnp.einsum("bnd,dhk->bnhk", y, weights[name].astype(y.dtype))
        if vision.qkv_bias:
            part = part + weights[f"{name}_bias"].astype(y.dtype)
        if vision.qk_norm and name != "value":
            flat = part.reshape(*part.shape[:2], -1)
            part = rms_norm(flat, weights[f"{name}_norm"], _HEADS_EPS).reshape(part.shape)
        made[name] = constrain(part, "batch", None, "heads", None)
    return made["query"], made["key"], made["value"]


def _scaled(y: Array, weights: dict, name: str) -> Array:
    return y * weights[name].astype(y.dtype) if name in weights else y


def _norm(vision: VisionConfig, x: Array, weights: dict, name: str) -> Array:
    if vision.norm == "rms":
        return rms_norm(x, weights[name], vision.norm_eps)
    return layer_norm(x, weights[name], weights[f"{name}_bias"], vision.norm_eps)


def _mlp(vision: VisionConfig, x: Array, weights: dict) -> Array:
    if vision.activation == "silu":
        return gated_mlp(x, weights)
    inner = linear(x, weights["up"], weights["up_bias"])
    if vision.activation == "quick_gelu":  # x sigmoid(1.702 x)
        inner = inner * jax.nn.sigmoid(1.702 * inner)
    else:
        inner = jax.nn.gelu(inner, approximate=vision.activation != "gelu")
    inner = constrain(inner, "batch", *[None] * (x.ndim - 2), "mlp")
    return linear(inner, weights["down"], weights["down_bias"])
