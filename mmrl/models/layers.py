"""Layers shared by the vision tower and the language model: norms, rotary embeddings, gated MLP."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmrl.mesh import constrain
from mmrl.models.config import ModelConfig, RopeScaling


def rms_norm(x: Float[Array, "... d"], scale: Float[Array, "d"], eps: float) -> Float[Array, "... d"]:
    """Root-mean-square norm, computed in float32 and returned in the dtype of ``x`` (arXiv:1910.07467)."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return scale.astype(x.dtype) * normed.astype(x.dtype)


def layer_norm(
    x: Float[Array, "... d"], scale: Float[Array, "d"], bias: Float[Array, "d"], eps: float
) -> Float[Array, "... d"]:
    """Layer norm, computed in float32 and returned in the dtype of ``x`` (arXiv:1607.06450)."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def gated_mlp(x: Float[Array, "... d"], weights: dict) -> Float[Array, "... d"]:
    """SwiGLU: ``down(silu(gate(x)) * up(x))`` (arXiv:2002.05202), with biases where there are some."""
    gate = linear(x, weights["gate"], weights.get("gate_bias"))
    up = linear(x, weights["up"], weights.get("up_bias"))
    inner = constrain(jax.nn.silu(gate) * up, "batch", *[None] * (x.ndim - 2), "mlp")
    return linear(inner, weights["down"], weights.get("down_bias"))


def linear(
    x: Float[Array, "... i"], weight: Float[Array, "i o"], bias: Float[Array, "o"] | None = None
) -> Float[Array, "... o"]:
    """``x @ weight + bias`` in the dtype of ``x``."""
    y = x @ weight.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)


def rotate(x: Float[Array, "... t h k"], angle: Float[Array, "... t half"]) -> Float[Array, "... t h k"]:
    """Rotary embedding in the half-split layout: dimension i is paired with i + k/2 (arXiv:2104.09864).

    ``angle`` (radians) is shared by the heads; sines and cosines are taken and applied in float32.
    """
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def mrope_angles(position: Int[Array, "... 3"], config: ModelConfig) -> Float[Array, "... half"]:
    """Angles of multimodal rotary embedding (Qwen2-VL, arXiv:2409.12191, section 2.1).

    The ``half = sum(sections)`` frequencies are dealt out to the temporal, row and column position: the first
    ``sections[0]`` turn with the first, and so on; or, interleaved (Qwen3-VL, arXiv:2511.21631), every third
    with the row and every third with the column until theirs are dealt, all others with the first.
    """
    sections = config.mrope_sections
    half = sum(sections)
    axis = np.repeat(np.arange(3), sections)
    if config.mrope_interleaved:
        axis = np.arange(half) % 3
        axis = np.where(np.arange(half) < 3 * np.take(sections, axis), axis, 0)
    frequency = config.rope_theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling is not None:
        frequency = _stretched(frequency, config.rope_scaling)
    return position[..., axis].astype(jnp.float32) * frequency


def _stretched(frequency: Array, scaling: RopeScaling) -> Array:
    turns = scaling.original_length * frequency / (2 * jnp.pi)  # over the context that was trained
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


def grid_angles(
    position: Int[Array, "... 2"], head_dim: int, theta: float = 10_000.0
) -> Float[Array, "... half"]:
    """Angles of the vision tower's 2-D rotary embedding: half turn with the row, half with the column."""
    quarter = head_dim // 4
    frequency = theta ** -(jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angle = position[..., :, None].astype(jnp.float32) * frequency
    return angle.reshape(*position.shape[:-1], 2 * quarter)


def rematerialise(policy: str, function: Callable) -> Callable:
    """Have ``function`` recompute in the backward pass what ``policy`` says: "none", "dots" or "full"."""
    if policy == "none":
        return function
    kept = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }[policy]
    return jax.checkpoint(function, policy=kept, prevent_cse=False)


def last(hidden: Float[Array, "b p d"], mask: Bool[Array, "b p"]) -> Float[Array, "b d"]:
    """The hidden state after each prompt's last real token."""
    last = jnp.maximum(mask.sum(axis=1) - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
