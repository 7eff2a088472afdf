"""Layers shared by the vision tower and the language model: norms, rotary embeddings, gated MLP."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.mesh import constrain


def rms_norm(x: Float[Array, "... d"], scale: Float[Array, "d"], eps: float) -> Float[Array, "... d"]:
    """Root-mean-square norm, computed in float32 and returned in the dtype of ``x`` (arXiv:1910.07467)."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return scale.astype(x.dtype) * normed.astype(x.dtype)


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


def mrope_angles(
    position: Int[Array, "... 3"], sections: tuple[int, int, int], theta: float
) -> Float[Array, "... half"]:
    """Angles of multimodal rotary embedding (Qwen2-VL, arXiv:2409.12191, section 2.1).

    The ``half = sum(sections)`` frequencies are dealt out to the temporal, row and column position: the first
    ``sections[0]`` turn with the first, and so on.
    """
    half = sum(sections)
    frequency = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    axis = jnp.repeat(jnp.arange(3), jnp.array(sections), total_repeat_length=half)
    return position[..., axis].astype(jnp.float32) * frequency


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
