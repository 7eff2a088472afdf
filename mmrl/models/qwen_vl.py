"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, translated from their ``config.json``."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrl.models.config import Experts, ModelConfig, VisionConfig
from mmrl.models.hf_config import (
    LARGEST_WINDOW,
    MOST_HEADS,
    MOST_LAYERS,
    WIDEST,
    check_sizes,
    flag,
    image_statistics,
    layer_list,
    rope_section,
    text_fields,
    text_section,
)
from mmrl.models.images import ImageSpec
from mmrl.models.model_files import positive, require_integer, section, short_repr

_MOST_PIXELS = 1 << 31  # of an image
# Of the published Qwen3-VL, where a directory does not say.
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


def qwen2_vl(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen2-VL (arXiv:2409.12191): every layer of its tower attends over the whole image."""
    given = section(raw.get("vision_config"), "vision_config", name)
    width = require_integer({"embed_dim": 1280, **given}, "embed_dim", name, WIDEST)
    ratio = positive({"mlp_ratio": 4, **given}, "mlp_ratio", name)
    vision: dict[str, Any] = {
        "width": width,
        "mlp_width": int(width * ratio),
        "activation": _activation(given, "quick_gelu", name),
        **_tower({"depth": 32, "num_heads": 16, "patch_size": 14, **given}, name),
        **image_statistics(preprocessor, source),
    }
    out = given.get("hidden_size")
    return _model("qwen2_vl", raw, name, VisionConfig(**vision), out, theta=1e6, qkv_bias=True)


def qwen2_5_vl(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen2.5-VL (arXiv:2502.13923): most layers of its tower attend in windows."""
    given = section(raw.get("vision_config"), "vision_config", name)
    vision: dict[str, Any] = {
        "width": require_integer(given, "hidden_size", name, WIDEST),
        "mlp_width": require_integer(given, "intermediate_size", name, WIDEST),
        "window_size": require_integer({"window_size": 112, **given}, "window_size", name, LARGEST_WINDOW),
        "full_attention_layers": layer_list(given, "fullatt_block_indexes", name, [7, 15, 23, 31]),
        "norm": "rms",
        "activation": _activation(given, "silu", name),
        **_tower({"patch_size": 14, **given}, name),
        **image_statistics(preprocessor, source),
    }
    out = given.get("out_hidden_size")
    return _model("qwen2_5_vl", raw, name, VisionConfig(**vision), out, theta=1e6, qkv_bias=True)


def qwen3_vl(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen3-VL (arXiv:2511.21631): learned positions, and states of three layers of the tower (deepstack)."""
    return _qwen3_vl("qwen3_vl", raw, preprocessor, name, source)


def qwen3_vl_moe(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen3-VL with a mixture of experts in some or all layers of the language model."""
    config = _qwen3_vl("qwen3_vl_moe", raw, preprocessor, name, source)
    text = text_section(raw, name)
    given = {"num_experts": text.get("num_local_experts", 128), "num_experts_per_tok": 8, **text}
    experts = Experts(
        count=require_integer(given, "num_experts", name, WIDEST),
        per_token=require_integer(given, "num_experts_per_tok", name, WIDEST),
        width=require_integer(text, "moe_intermediate_size", name, WIDEST),
    )
    if experts.per_token > experts.count:
        raise ValueError(f"{name}: num_experts_per_tok {experts.per_token} of {experts.count} experts")
    step = require_integer({"decoder_sparse_step": 1, **text}, "decoder_sparse_step", name, MOST_LAYERS)
    dense = layer_list(text, "mlp_only_layers", name, [])
    layers = tuple(k for k in range(config.layers) if k not in dense and (k + 1) % step == 0)
    return replace(config, experts=experts if layers else None, expert_layers=layers)


def _qwen3_vl(family: str, raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    given = section(raw.get("vision_config"), "vision_config", name)
    cells = require_integer(
        {"num_position_embeddings": 2304, **given}, "num_position_embeddings", name, WIDEST
    )
    side = round(cells**0.5)
    if side * side != cells:
        raise ValueError(f"{name}: num_position_embeddings is {cells}, which is no square")
    vision: dict[str, Any] = {
        "width": require_integer(given, "hidden_size", name, WIDEST),
        "mlp_width": require_integer(given, "intermediate_size", name, WIDEST),
        "activation": _activation(given, "gelu_pytorch_tanh", name),
        "patch_bias": True,
        "position_table": side,
        "taps": layer_list(given, "deepstack_visual_indexes", name, [8, 16, 24]),
        **_tower({"patch_size": 16, **given}, name),
        **image_statistics(preprocessor, source, _HALF),
    }
    out = given.get("out_hidden_size")
    if not all(
        a < b for a, b in zip((-1, *vision["taps"]), (*vision["taps"], vision["layers"]), strict=True)
    ):
        raise ValueError(
            f"{name}: deepstack_visual_indexes {vision['taps']} are no rising layers of the tower"
        )
    return _model(family, raw, name, VisionConfig(**vision), out, theta=5e6, qk_norm=True)


def image_layout(raw: dict, path: Path, config: ModelConfig, tokens: Mapping[str, int]) -> ImageSpec:
    """Limits and sizes of images, of what the file at ``path`` says: the hub's form or transformers 5's.

    Raises:
      ValueError: a key that is not what it should be.
    """
    size = section(raw.get("size") or {}, "size", path)
    low = raw.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or 56 * 56
    high = raw.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or 28 * 28 * 1280
    limits = {"min_pixels": low, "max_pixels": high}
    defaults = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, **raw}
    spec = ImageSpec(
        min_pixels=require_integer(limits, "min_pixels", path, _MOST_PIXELS),
        max_pixels=require_integer(limits, "max_pixels", path, _MOST_PIXELS),
        patch=require_integer(defaults, "patch_size", path, 4096),
        merge=require_integer(defaults, "merge_size", path, 4096),
        temporal=require_integer(defaults, "temporal_patch_size", path, 4096),
        mean=config.vision.image_mean,
        std=config.vision.image_std,
    )
    if spec.min_pixels > spec.max_pixels:
        raise ValueError(f"{path}: min_pixels {low} and max_pixels {high} leave no size for an image")
    model = [config.vision.patch_size, config.vision.merge, 2]
    if model != [spec.patch, spec.merge, spec.temporal]:
        raise ValueError(
            f"{path}: patch, merge and temporal sizes {[spec.patch, spec.merge, spec.temporal]} are not those"
            f" of the vision tower in config.json, {model}"
        )
    return spec


def _model(
    family: str, raw: dict, name: str, vision: VisionConfig, out: Any, *, theta: float, **kinds: Any
) -> ModelConfig:
    """The config with the language model's sizes.

    Args:
      out: the width that the tower's features have, by the file; None if it does not say.
      theta: base of the rotary embedding, where the file does not say.
      kinds: further fields of `ModelConfig`.

    Raises:
      ValueError: a feature that mmrl does not compute, or a key that is missing or not what it should be.
    """
    text = text_section(raw, name)
    rope = rope_section(text, name, theta)
    rope_type = rope.get("rope_type", rope.get("type", "mrope"))
    if rope_type not in ("mrope", "default"):
        raise ValueError(f"{name}: rope type {short_repr(rope_type)} is not supported, only 'mrope' unscaled")
    interleaved = "mrope_section" in _SECTIONS[family]
    if flag({"mrope_interleaved": interleaved, **rope}, "mrope_interleaved", name) != interleaved:
        raise ValueError(f"{name}: mrope_interleaved is not {str(interleaved).lower()}, as it is in {family}")
    fields = text_fields(raw, text, rope, name, _DEFAULTS[family])
    if out is not None and out != fields["width"]:
        raise ValueError(f"{name}: vision out_hidden_size differs from the text width {fields['width']}")
    config = ModelConfig(
        family=family,
        mrope_sections=_sections({**_SECTIONS[family], **rope}, name),
        mrope_interleaved=interleaved,
        vision=vision,
        **fields,
        **kinds,
    )
    return check_sizes(config, name)


_DEFAULTS: dict[str, dict[str, Any]] = {  # of transformers, for keys that a file leaves out
    "qwen2_vl": {"rms_norm_eps": 1e-5},
    "qwen2_5_vl": {"rms_norm_eps": 1e-5},
    "qwen3_vl": {"rms_norm_eps": 1e-6, "head_dim": 128},
    "qwen3_vl_moe": {"rms_norm_eps": 1e-6, "head_dim": 128},
}
_SECTIONS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {},
    "qwen2_5_vl": {},
    "qwen3_vl": {"mrope_section": [24, 20, 20]},
    "qwen3_vl_moe": {"mrope_section": [24, 20, 20]},
}


def _tower(given: dict, name: str) -> dict[str, Any]:
    """Fields of `VisionConfig` that have the same keys in all files."""
    if given.get("spatial_merge_size", 2) != 2 or given.get("temporal_patch_size", 2) != 2:
        raise ValueError(f"{name}: spatial_merge_size and temporal_patch_size must be 2")
    if given.get("in_channels", given.get("in_chans", 3)) != 3:
        raise ValueError(f"{name}: in_channels must be 3")
    return {
        "layers": require_integer(given, "depth", name, MOST_LAYERS),
        "heads": require_integer(given, "num_heads", name, MOST_HEADS),
        "patch_size": require_integer(given, "patch_size", name, LARGEST_WINDOW),
    }


def _activation(given: dict, known: str, name: str) -> str:
    """The name of the tower's activation, which must be the ``known`` one of its family."""
    if given.get("hidden_act", known) != known:
        raise ValueError(
            f"{name}: the vision tower's hidden_act is {short_repr(given['hidden_act'])}, not {known!r}"
        )
    return known


def _sections(rope: dict, name: str) -> tuple[int, int, int]:
    value = rope.get("mrope_section")
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{name}: mrope_section is {short_repr(value)}, not three whole numbers")
    parts = dict(zip(("t", "h", "w"), value, strict=True))
    sizes = [
        require_integer({"mrope_section": parts[axis]}, "mrope_section", name, WIDEST, 0) for axis in parts
    ]
    return sizes[0], sizes[1], sizes[2]
