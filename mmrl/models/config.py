"""Sizes of a model and the caches that they make, of every family alike."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mmrl.mesh import constrain


@dataclass(frozen=True)
class ModelConfig:
    """Static sizes and choices; hashable, so it can be a static argument of a jitted function."""

    family: str  # key of `mmrl.models.family.FAMILIES`
    vocabulary: int
    width: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float
    mrope_sections: tuple[int, int, int]
    norm_eps: float
    tied: bool
    vision_layers: int
    vision_width: int
    vision_heads: int
    vision_mlp_width: int
    patch_size: int
    window_size: int  # pixels
    full_attention_layers: tuple[int, ...]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    merge: int = 2  # patches along a side of the block that makes one image token
    dtype: Any = jnp.float32  # of matrix products; norms, softmax and logprobs are float32 always
    remat: str = "none"  # "none", "dots" or "full": what layers recompute in the backward pass
    unroll: int = 1  # layers in one turn of the scan over layers
    attention: str = (
        "plain"  # over many tokens: "plain", "flash" (TPU kernels) or "interpreted" (to test those)
    )

    @property
    def vision_head_dim(self) -> int:
        """Width of one head of the vision tower."""
        return self.vision_width // self.vision_heads

    @property
    def window_slots(self) -> int:
        """Patches in a window of the vision tower, which holds whole merge blocks."""
        side = self.window_size // (self.merge * self.patch_size) * self.merge
        return side * side

    @property
    def token_patches(self) -> int:
        """Patches that make one image token."""
        return self.merge**2

    @property
    def patch_bytes(self) -> int:
        """Bytes of the pixels of a patch."""
        return 3 * self.patch_size**2


@struct.dataclass
class Prefix:
    """Keys and values of the prompts, one copy a group; an array for each layer, as decoding reads them."""

    key: tuple[Float[Array, "b p h k"], ...]
    value: tuple[Float[Array, "b p h k"], ...]
    mask: Bool[Array, "b p"]


@struct.dataclass
class Cache:
    """Keys and values of the responses, an array for each layer; slots at or beyond ``length`` are free.

    Heads stand before slots, as the products of decoding want them: any other order is copied in each step.
    """

    key: tuple[Float[Array, "b g h t k"], ...]
    value: tuple[Float[Array, "b g h t k"], ...]
    length: Int[Array, "b g"]


def empty_cache(config: ModelConfig, prompts: int, group: int, slots: int, dtype: DTypeLike) -> Cache:
    """A cache of ``slots`` tokens for each of ``prompts`` x ``group`` responses, with nothing in it."""
    shape = (prompts, group, config.kv_heads, slots, config.head_dim)

    def empty() -> tuple[Array, ...]:
        made = (jnp.zeros(shape, dtype) for _ in range(config.layers))
        return tuple(constrain(layer, "batch", None, "heads", None, None) for layer in made)

    return Cache(
        key=empty(),
        value=empty(),
        length=jnp.zeros((prompts, group), jnp.int32),
    )
