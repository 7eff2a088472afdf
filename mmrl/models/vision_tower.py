"""The vision tower of Qwen2.5-VL (arXiv:2502.13923), and the merger behind it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mmrl.kernels.attention import self_attention
from mmrl.kernels.flash import flash_images
from mmrl.mesh import constrain, shard_map_kernel
from mmrl.models.config import ModelConfig
from mmrl.models.layers import gated_mlp, grid_angles, linear, rematerialise, rms_norm, rotate
from mmrl.models.packed_attend import attend_packed
from mmrl.models.rows import PatchRows
from mmrl.types import Images, Params

_VISION_EPS = 1e-6


def encode_images(params: Params, config: ModelConfig, images: Images) -> Float[Array, "b m d"]:
    """Vision tower and merger: one feature of the language model's width for each 2 x 2 block of patches."""
    image, (b, n), slots = images.image, images.image.shape, config.window_slots
    real = image >= 0

    def attend(query: Array, key: Array, value: Array, full: Array) -> Array:
        def over_image() -> Array:
            if config.attention == "plain":
                same = (image[:, :, None] == image[:, None, :]) & real[:, None, :]
                return self_attention(query, key, value, same)
            heads = ("batch", None, "heads", None)
            flash = partial(flash_images, interpret=config.attention == "interpreted")
            return shard_map_kernel(flash, (heads, heads, heads, ("batch", None)), like=0, checked=False)(
                query, key, value, image
            )

        def over_window() -> Array:
            def windows(a: Array) -> Array:
                return a.reshape(b, n // slots, slots, *a.shape[2:])

            here = windows(real)
            mask = jnp.broadcast_to(here[..., None, :], (*here.shape, slots))
            return self_attention(windows(query), windows(key), windows(value), mask).reshape(query.shape)

        return jax.lax.cond(full, over_image, over_window)

    with jax.named_scope("vision_tower"):
        angle = grid_angles(images.position, config.vision_head_dim)
        return _through_tower(params, config, _embed_patches(params, config, images.patches), angle, attend)


def _embed_patches(
    params: Params, config: ModelConfig, patches: UInt8[Array, "b n c"]
) -> Float[Array, "b n d"]:
    # An image is a clip of two equal frames: the weights of both frames see the same pixels.
    weight = params["vision"]["patch_embedding"].astype(config.dtype).sum(axis=0)
    return _normalise_pixels(config, patches).astype(config.dtype) @ weight.reshape(-1, config.vision_width)


def _through_tower(
    params: Params, config: ModelConfig, x: Array, angle: Array, attend: Callable[..., Array]
) -> Float[Array, "b m d"]:
    """All blocks and the merger; ``attend(query, key, value, full)`` knows which patches read each other."""
    vision = params["vision"]
    is_full = jnp.isin(jnp.arange(config.vision_layers), jnp.array(config.full_attention_layers, jnp.int32))

    def block(x: Array, layer: tuple) -> tuple[Array, None]:
        weights, full = layer
        return _vision_block(x, weights, angle, partial(attend, full=full)), None

    x, _ = jax.lax.scan(
        rematerialise(config.remat, block), x, (vision["layers"], is_full), unroll=config.unroll
    )
    merger = vision["merger"]
    x = rms_norm(x, merger["norm"], _VISION_EPS)
    x = x.reshape(x.shape[0], -1, config.token_patches * x.shape[-1])
    x = jax.nn.gelu(linear(x, merger["in"], merger["in_bias"]), approximate=False)
    return linear(x, merger["out"], merger["out_bias"])


def encode_rows(
    params: Params, config: ModelConfig, patches: UInt8[Array, "b n c"], rows: PatchRows
) -> Float[Array, "b m d"]:
    """`encode_images` of packed rows of patches."""
    with jax.named_scope("vision_tower"):
        x = _embed_patches(params, config, patches)
        angle = grid_angles(rows.position, config.vision_head_dim)

        def attend(query: Array, key: Array, value: Array, full: Array) -> Array:
            def over(name: str, *lists: Any) -> Callable[[], Array]:
                def attended() -> Array:
                    with jax.named_scope(name):
                        return attend_packed(config.attention, query[..., None, :], key, value, *lists)

                return attended

            of_images = over("image_pairs", rows.images, rows.image_pairs)
            of_windows = over("window_pairs", rows.windows, rows.window_pairs)
            return jax.lax.cond(full, of_images, of_windows)[..., 0, :]

        return _through_tower(params, config, x, angle, attend)


def _normalise_pixels(config: ModelConfig, patches: Array) -> Float[Array, "b n c"]:
    """Bytes to the normalised floats the checkpoint was trained on, (x / 255 - mean) / std per channel."""
    pixels = patches.shape[-1] // 3
    mean = jnp.repeat(jnp.array(config.image_mean, jnp.float32), pixels)
    std = jnp.repeat(jnp.array(config.image_std, jnp.float32), pixels)
    return (patches.astype(jnp.float32) * jnp.float32(1 / 255) - mean) / std


def _vision_block(x: Array, weights: dict, angle: Array, attend: Callable[..., Array]) -> Array:
    x = constrain(x, "batch", "tokens", None)
    y = constrain(rms_norm(x, weights["attention_norm"], _VISION_EPS), "batch", None, None)
    qkv = jnp.einsum("bnd,dxhk->xbnhk", y, weights["qkv"].astype(y.dtype))
    qkv = qkv + weights["qkv_bias"].astype(y.dtype)[:, None, None]
    qkv = constrain(qkv, None, "batch", None, "heads", None)
    y = attend(rotate(qkv[0], angle), rotate(qkv[1], angle), qkv[2])
    y = jnp.einsum("bnhk,hkd->bnd", y, weights["out"].astype(y.dtype)) + weights["out_bias"].astype(y.dtype)
    x = x + constrain(y, "batch", "tokens", None)
    y = constrain(rms_norm(x, weights["mlp_norm"], _VISION_EPS), "batch", None, None)
    return x + constrain(gated_mlp(y, weights["mlp"]), "batch", "tokens", None)
