"""InternVL 3 and 3.5 (arXiv:2504.10479, arXiv:2508.18265) in Hugging Face's form: images cut into tiles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl.models.config import ModelConfig, VisionConfig
from mmrl.models.hf_config import (
    LARGEST_WINDOW,
    MOST_HEADS,
    MOST_LAYERS,
    WIDEST,
    check_sizes,
    flag,
    image_statistics,
    text_section,
)
from mmrl.models.model_files import positive, require_integer, section, short_repr
from mmrl.models.text_only import language_fields
from mmrl.models.tiles import TileSpec

_MOST_TILES = 1024
# What changes weights or the computation, and the one value that mmrl computes; also where nothing is said.
_COMPUTED = {
    "hidden_act": "gelu",
    "num_channels": 3,
    "use_mask_token": False,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
}
_COMPUTED_OUTSIDE = {
    "downsample_ratio": 0.5,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}


def internvl(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """InternVL: InternViT, a projector of merged patches, and Qwen2, Qwen3 or Llama."""
    given = section(raw.get("vision_config"), "vision_config", name)
    for values, known in ((given, _COMPUTED), (raw, _COMPUTED_OUTSIDE)):
        for key, value in known.items():
            if values.get(key, value) != value:
                raise ValueError(f"{name}: {key} is {short_repr(values[key])}; mmrl computes {value!r}")
    if given.get("norm_type", "layer_norm") not in ("layer_norm", "rms_norm"):
        raise ValueError(
            f"{name}: norm_type is {short_repr(given['norm_type'])}, not 'layer_norm' or 'rms_norm'"
        )
    size, patch = _side(given, "image_size", 448, name), _side(given, "patch_size", 14, name)
    if size % (2 * patch):
        raise ValueError(f"{name}: image_size {size} is no whole number of blocks of two patches of {patch}")
    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-6,
        **given,
    }
    vision = VisionConfig(
        layers=require_integer(sizes, "num_hidden_layers", name, MOST_LAYERS),
        width=require_integer(sizes, "hidden_size", name, WIDEST),
        heads=require_integer(sizes, "num_attention_heads", name, MOST_HEADS),
        mlp_width=require_integer(sizes, "intermediate_size", name, WIDEST),
        patch_size=patch,
        window_size=size,
        tiles=True,
        norm="rms" if given.get("norm_type") == "rms_norm" else "layer",
        norm_eps=positive(sizes, "layer_norm_eps", name),
        activation="gelu",
        frames=1,
        patch_bias=True,
        class_token=True,
        layer_scale=True,
        qkv_bias=flag(given, "attention_bias", name),
        qk_norm=flag(given, "use_qk_norm", name),
        connector="projector",
        **image_statistics(preprocessor, source),
    )
    text = text_section(raw, name)
    # The rope type "dynamic" stretches nothing within ``max_position_embeddings``.
    fields = language_fields(text.get("model_type", "qwen2"), raw, text, name, unstretched=("dynamic",))
    config = check_sizes(ModelConfig(family="internvl", vision=vision, **fields), name)
    tokens = config.window_slots // config.token_patches
    if raw.get("image_seq_length", tokens) != tokens:
        raise ValueError(
            f"{name}: image_seq_length is {short_repr(raw['image_seq_length'])}; a tile has {tokens} tokens"
        )
    return config


def tile_layout(raw: dict, path: Path, config: ModelConfig, tokens: Mapping[str, int]) -> TileSpec:
    """How images are cut, of what the file at ``path`` says; ``tokens`` are those of the vocabulary, by role.

    Raises:
      ValueError: a key that is not what it should be.
    """
    size = section(raw.get("size") or {}, "size", path)
    tile = config.vision.window_size
    if [size.get("height", tile), size.get("width", tile)] != [tile, tile]:
        raise ValueError(f"{path}: size is {short_repr(size)}; image_size of config.json is {tile}")
    limits = {"min_patches": 1, "max_patches": 12, **raw}
    spec = TileSpec(
        tile=tile,
        min_tiles=require_integer(limits, "min_patches", path, _MOST_TILES),
        max_tiles=require_integer(limits, "max_patches", path, _MOST_TILES),
        patch=config.vision.patch_size,
        merge=config.vision.merge,
        mean=config.vision.image_mean,
        std=config.vision.image_std,
        before=tokens["start_image_token"],
        after=tokens["end_image_token"],
    )
    if spec.min_tiles > spec.max_tiles:
        raise ValueError(
            f"{path}: min_patches {spec.min_tiles} and max_patches {spec.max_tiles} leave no number of tiles"
        )
    return spec


def _side(values: dict, key: str, default: int, name: str) -> int:
    """The side of a square, given as one number or as two."""
    value = values.get(key, default)
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{name}: {key} is {short_repr(value)}; mmrl computes squares")
    return require_integer({key: sides[0]}, key, name, LARGEST_WINDOW)
