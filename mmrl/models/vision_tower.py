"""The vision tower of Qwen2.5-VL (arXiv:2502.13923), and the merger behind it."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrl.kernels.attention import self_attention
from mmrl.kernels.flash import flash_images
from mmrl.mesh import constrain, shard_map_kernel
from mmrl.models.config import ModelConfig
from mmrl.models.layers import gated_mlp, grid_angles, linear, rematerialise, rms_norm, rotate
from mmrl.types import Images, Params

_VISION_EPS = 1e-6


def encode_images(params: Params, config: ModelConfig, images: Images) -> Float[Array, "b m d"]:
    """Vision tower and merger: one feature of the language model's width for each 2 x 2 block of patches."""
    vision, dtype = params["vision"], config.dtype
    with jax.named_scope("vision_tower"):
        # An image is a clip of two equal frames: the weights of both frames see the same pixels.
        weight = vision["patch_embedding"].astype(dtype).sum(axis=0).reshape(-1, config.vision_width)
        x = _normalise_pixels(config, images.patches).astype(dtype) @ weight
        angle = grid_angles(images.position, config.vision_head_dim)
        is_full = jnp.isin(
            jnp.arange(config.vision_layers), jnp.array(config.full_attention_layers, jnp.int32)
        )

        def block(x: Array, layer: tuple) -> tuple[Array, None]:
            weights, full = layer
            return _vision_block(config, x, weights, full, angle, images.image), None

        x, _ = jax.lax.scan(
            rematerialise(config.remat, block), x, (vision["layers"], is_full), unroll=config.unroll
        )
        merger = vision["merger"]
        x = rms_norm(x, merger["norm"], _VISION_EPS)
        x = x.reshape(x.shape[0], -1, config.token_patches * x.shape[-1])
        x = jax.nn.gelu(linear(x, merger["in"], merger["in_bias"]), approximate=False)
        return linear(x, merger["out"], merger["out_bias"])


def _normalise_pixels(config: ModelConfig, patches: Array) -> Float[Array, "b n c"]:
    """Bytes to the normalised floats the checkpoint was trained on, (x / 255 - mean) / std per channel."""
    pixels = patches.shape[-1] // 3
    mean = jnp.repeat(jnp.array(config.image_mean, jnp.float32), pixels)
    std = jnp.repeat(jnp.array(config.image_std, jnp.float32), pixels)
    return (patches.astype(jnp.float32) * jnp.float32(1 / 255) - mean) / std


def _vision_block(
    config: ModelConfig, x: Array, weights: dict, full: Array, angle: Array, image: Int[Array, "b n"]
) -> Array:
    b, n, _ = x.shape
    slots = config.window_slots
    x = constrain(x, "batch", "tokens", None)
    y = constrain(rms_norm(x, weights["attention_norm"], _VISION_EPS), "batch", None, None)
    qkv = jnp.einsum("bnd,dxhk->xbnhk", y, weights["qkv"].astype(y.dtype))
    qkv = qkv + weights["qkv_bias"].astype(y.dtype)[:, None, None]
    qkv = constrain(qkv, None, "batch", None, "heads", None)
    query, key, value = rotate(qkv[0], angle), rotate(qkv[1], angle), qkv[2]
    real = image >= 0

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

    y = jax.lax.cond(full, over_image, over_window)
    y = jnp.einsum("bnhk,hkd->bnd", y, weights["out"].astype(y.dtype)) + weights["out_bias"].astype(y.dtype)
    x = x + constrain(y, "batch", "tokens", None)
    y = constrain(rms_norm(x, weights["mlp_norm"], _VISION_EPS), "batch", None, None)
    return x + constrain(gated_mlp(y, weights["mlp"]), "batch", "tokens", None)
