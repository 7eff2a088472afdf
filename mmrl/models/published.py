"""Sizes of published models, for planning without a checkpoint."""

from collections.abc import Mapping
from dataclasses import replace

from mmrl.models.config import Experts, ModelConfig, VisionConfig
from mmrl.models.hf_config import CLIP_STATISTICS

_7B = ModelConfig(
    family="qwen2_5_vl",
    vocabulary=152_064,
    width=3584,
    layers=28,
    query_heads=28,
    kv_heads=4,
    head_dim=128,
    mlp_width=18_944,
    rope_theta=1e6,
    mrope_sections=(16, 24, 24),
    norm_eps=1e-6,
    tied=False,
    qkv_bias=True,
    vision=VisionConfig(
        layers=32,
        width=1280,
        heads=16,
        mlp_width=3420,
        patch_size=14,
        window_size=112,
        full_attention_layers=(7, 15, 23, 31),
        norm="rms",
        activation="silu",
        **CLIP_STATISTICS,
    ),
)
_WIDER_VISION = replace(_7B.vision, mlp_width=3456)

_QWEN3_VL = ModelConfig(
    family="qwen3_vl",
    vocabulary=151_936,
    width=4096,
    layers=36,
    query_heads=32,
    kv_heads=8,
    head_dim=128,
    mlp_width=12_288,
    rope_theta=5e6,
    mrope_sections=(24, 20, 20),
    mrope_interleaved=True,
    norm_eps=1e-6,
    tied=False,
    qk_norm=True,
    vision=VisionConfig(
        layers=27,
        width=1152,
        heads=16,
        mlp_width=4304,
        patch_size=16,
        patch_bias=True,
        position_table=48,
        taps=(8, 16, 24),
    ),
)

_INTERNVL = replace(  # of Qwen3 8B, as Qwen3-VL 8B is
    _QWEN3_VL,
    family="internvl",
    rope_theta=1e6,
    mrope_sections=(64, 0, 0),
    mrope_interleaved=False,
    vision=VisionConfig(
        layers=24,
        width=1024,
        heads=16,
        mlp_width=4096,
        patch_size=14,
        window_size=448,
        tiles=True,
        activation="gelu",
        frames=1,
        patch_bias=True,
        class_token=True,
        layer_scale=True,
        connector="projector",
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    ),
)

PUBLISHED: Mapping[str, ModelConfig] = {
    "3b": replace(
        _7B,
        vocabulary=151_936,
        width=2048,
        layers=36,
        query_heads=16,
        kv_heads=2,
        mlp_width=11_008,
        tied=True,
    ),
    "7b": _7B,
    "32b": replace(
        _7B,
        width=5120,
        layers=64,
        query_heads=40,
        kv_heads=8,
        mlp_width=27_648,
        vision=_WIDER_VISION,
    ),
    "72b": replace(
        _7B,
        width=8192,
        layers=80,
        query_heads=64,
        kv_heads=8,
        mlp_width=29_568,
        vision=_WIDER_VISION,
    ),
    "qwen3-vl-4b": replace(
        _QWEN3_VL,
        width=2560,
        mlp_width=9728,
        tied=True,
        vision=replace(_QWEN3_VL.vision, layers=24, width=1024, mlp_width=4096, taps=(5, 11, 17)),
    ),
    "qwen3-vl-8b": _QWEN3_VL,
    "qwen3-vl-32b": replace(_QWEN3_VL, width=5120, layers=64, query_heads=64, mlp_width=25_600),
    "qwen3-vl-30b-a3b": replace(
        _QWEN3_VL,
        family="qwen3_vl_moe",
        width=2048,
        layers=48,
        kv_heads=4,
        mlp_width=6144,
        experts=Experts(count=128, per_token=8, width=768),
        expert_layers=tuple(range(48)),
    ),
    "internvl3.5-8b": _INTERNVL,
}
"""By name; as in ``config.json`` of the checkpoints Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct,
Qwen/Qwen3-VL-{4B,8B,32B,30B-A3B}-Instruct and OpenGVLab/InternVL3_5-8B-HF."""


def published(name: str) -> ModelConfig:
    """Sizes of a published model, ``"7b"`` or ``"7B"``.

    Raises:
      ValueError: there is no such model (all are named).
    """
    if name.lower() not in PUBLISHED:
        raise ValueError(f"--model-size={name}: published sizes are {', '.join(PUBLISHED)}")
    return PUBLISHED[name.lower()]
