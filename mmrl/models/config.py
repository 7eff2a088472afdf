"""Sizes of a model and the caches that they make, of every family alike."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mmrl.mesh import constrain


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower, and the merger that makes image tokens of its patches."""

    layers: int
    width: int
    heads: int
    mlp_width: int
    patch_size: int  # pixels of a side
    merge: int = 2  # patches along a side of the block that makes one image token
    window_size: int = 0  # pixels of a side; 0: every layer attends over the whole image
    tiles: bool = False  # images are cut into tiles of a window each, which the tower reads one by one
    full_attention_layers: tuple[int, ...] = ()  # those that do, of a tower with windows
    norm: str = "layer"  # "layer", with biases, or "rms"
    norm_eps: float = 1e-6
    activation: str = "gelu_pytorch_tanh"  # of the MLP: that, "gelu", "quick_gelu", or "silu" (gated)
    frames: int = 2  # that the embedding of a patch spans
    patch_bias: bool = False
    position_table: int = 0  # cells of a side of the learned positions, interpolated; 0: there are none
    class_token: bool = False  # before the patches of each tile; it and they have learned positions
    layer_scale: bool = False  # what a layer adds is scaled, each of its numbers by a weight
    qkv_bias: bool = True
    qk_norm: bool = False  # of all heads together
    # What makes image tokens: "merger" (a norm of patches, an MLP as wide as a block of them) or "projector"
    # (a norm of blocks, an MLP as wide as the language model).
    connector: str = "merger"
    # Layers of which the states are merged too, and added behind the first layers of the language model
    # (deepstack, arXiv:2406.04334).
    taps: tuple[int, ...] = ()
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Layers that attend over the whole image."""
        every = range(self.layers)
        return tuple(layer for layer in every if not self.window_size or layer in self.full_attention_layers)

    @property
    def window_side(self) -> int:
        """Merge blocks along a side of a window; without windows, one."""
        return self.window_size // (self.merge * self.patch_size) if self.window_size else 1


NO_VISION = VisionConfig(layers=0, width=0, heads=1, mlp_width=0, patch_size=1, merge=1)
"""That of a model that reads text alone."""


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches the low rotary frequencies (rope type "llama3" of transformers)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int  # tokens


@dataclass(frozen=True)
class Experts:
    """Sizes of a mixture: ``count`` experts of ``width`` hidden units, ``per_token`` of them for a token."""

    count: int
    per_token: int
    width: int


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
    # Rotary frequencies that turn with the temporal, row and column position; of text all are equal.
    mrope_sections: tuple[int, int, int]
    norm_eps: float
    tied: bool
    mrope_interleaved: bool = False  # dealt out in turn (Qwen3-VL), not one section after another
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False  # of each head, before it is rotated
    experts: Experts | None = None
    expert_layers: tuple[int, ...] = ()  # those of which the MLP is a mixture of experts
    vision: VisionConfig = NO_VISION
    dtype: Any = jnp.float32  # of matrix products; norms, softmax and logprobs are float32 always
    remat: str = "none"  # "none", "dots" or "full": what layers recompute in the backward pass
    unroll: int = 1  # layers in one turn of the scan over layers
    attention: str = (
        "plain"  # over many tokens: "plain", "flash" (TPU kernels) or "interpreted" (to test those)
    )

    @property
    def window_slots(self) -> int:
        """Patches in a window of the vision tower, which holds whole merge blocks."""
        return self.vision.window_side**2 * self.token_patches

    @property
    def token_patches(self) -> int:
        """Patches that make one image token."""
        return self.vision.merge**2

    @property
    def patch_bytes(self) -> int:
        """Bytes of the pixels of a patch."""
        return 3 * self.vision.patch_size**2

    @property
    def active_mlp_width(self) -> int:
        """Hidden units that a token meets in the layer that has most."""
        dense = self.mlp_width if len(self.expert_layers) < self.layers else 0
        return max(dense, self.experts.per_token * self.experts.width if self.experts else 0)

    @property
    def feature_width(self) -> int:
        """Width of an image token's features: those of the first layer, then those of `VisionConfig.taps`."""
        return self.width * (1 + len(self.vision.taps))


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
