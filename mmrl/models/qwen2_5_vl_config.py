"""Sizes of a Qwen2.5-VL model, read from its ``config.json``, and the description of its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from mmrl.models.params import Param

_IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the published models, where a directory does not say
_IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Config:
    """Static sizes and choices; hashable, so it can be a static argument of a jitted function."""

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
    image_mean: tuple[float, float, float] = _IMAGE_MEAN
    image_std: tuple[float, float, float] = _IMAGE_STD
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
        side = self.window_size // (2 * self.patch_size) * 2
        return side * side


def read_config(directory: str | Path) -> Config:
    """Read ``config.json`` (and the pixel statistics of ``preprocessor_config.json``) of a model directory.

    Both layouts are understood: the hub's flat one, and the nested one that transformers 5 writes.

    Raises:
      ValueError: the directory or file is missing, or the model is of another family.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"no model at {directory}: {path} does not exist (expected a Hugging Face directory)"
        )
    raw = _read_json(path)
    preprocessor = Path(directory) / "preprocessor_config.json"
    return from_hf(raw, _read_json(preprocessor) if preprocessor.is_file() else {}, str(path))


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return value


def from_hf(raw: dict, preprocessor: dict, name: str = "config.json") -> Config:
    """Translate Hugging Face's dictionaries; ``name`` stands in error messages.

    Raises:
      ValueError: another model family, a feature we do not compute, or a missing key (named).
    """
    if raw.get("model_type") != "qwen2_5_vl":
        raise ValueError(f"{name}: model_type is {raw.get('model_type')!r}; mmrl reads 'qwen2_5_vl'")
    if "vision_config" not in raw:
        raise ValueError(f"{name}: the key 'vision_config' is missing")
    text, vision = {**raw, **raw.get("text_config", {})}, raw["vision_config"]
    if text.get("use_sliding_window"):
        raise ValueError(f"{name}: use_sliding_window is true; only full attention is supported")
    for key, tower in (("hidden_act", text), ("hidden_act", vision)):
        if tower.get(key, "silu") != "silu":
            raise ValueError(f"{name}: {key} is {tower[key]!r}; Qwen2.5-VL uses 'silu'")
    if vision.get("spatial_merge_size", 2) != 2 or vision.get("temporal_patch_size", 2) != 2:
        raise ValueError(f"{name}: spatial_merge_size and temporal_patch_size must be 2")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "mrope"))
    if rope_type not in ("mrope", "default"):
        raise ValueError(f"{name}: rope type {rope_type!r} is not supported, only 'mrope' unscaled")
    try:
        config = Config(
            vocabulary=text["vocab_size"],
            width=text["hidden_size"],
            layers=text["num_hidden_layers"],
            query_heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            mlp_width=text["intermediate_size"],
            rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))),
            mrope_sections=tuple(rope["mrope_section"]),
            norm_eps=float(text.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            vision_layers=vision["depth"],
            vision_width=vision["hidden_size"],
            vision_heads=vision["num_heads"],
            vision_mlp_width=vision["intermediate_size"],
            patch_size=vision.get("patch_size", 14),
            window_size=vision.get("window_size", 112),
            full_attention_layers=tuple(vision.get("fullatt_block_indexes", ())),
            image_mean=tuple(preprocessor.get("image_mean", _IMAGE_MEAN)),
            image_std=tuple(preprocessor.get("image_std", _IMAGE_STD)),
        )
    except KeyError as error:
        raise ValueError(f"{name}: the key {error} is missing") from error
    return _checked(config, vision, name)


def _checked(config: Config, vision: dict, name: str) -> Config:
    if sum(config.mrope_sections) * 2 != config.head_dim:
        raise ValueError(
            f"{name}: mrope_section {config.mrope_sections} does not sum to half of {config.head_dim}"
        )
    if vision.get("out_hidden_size", config.width) != config.width:
        raise ValueError(f"{name}: vision out_hidden_size differs from the text width {config.width}")
    return config


def describe(config: Config) -> dict:
    """The weights of the model: a nested dict of `Param`."""
    tree: dict = {
        "embedding": Param(
            (config.vocabulary, config.width),
            ("vocab", "embed"),
            "model.embed_tokens.weight",
            "v d -> v d",
            "embedding",
        ),
        "layers": _text_layers(config),
        "final_norm": Param((config.width,), (None,), "model.norm.weight", "d -> d", "ones"),
        "vision": _vision(config),
    }
    if not config.tied:
        tree["lm_head"] = Param(
            (config.vocabulary, config.width), ("vocab", "embed"), "lm_head.weight", "v d -> v d", "embedding"
        )
    return tree


def _text_layers(config: Config) -> dict:
    layers, d, f = config.layers, config.width, config.mlp_width
    h, k = config.kv_heads, config.head_dim
    q = config.query_heads // h

    def weight(shape: tuple, axes: tuple, name: str, layout: str, init: str = "fan_in") -> Param:
        return Param((layers, *shape), ("layers", *axes), f"model.layers.{{}}.{name}", layout, init)

    def norm(name: str) -> Param:
        return weight((d,), (None,), f"{name}.weight", "d -> d", "ones")

    attention = {
        "norm": norm("input_layernorm"),
        "query": weight(
            (d, h, q, k), ("embed", "heads", None, None), "self_attn.q_proj.weight", "(h q k) d -> d h q k"
        ),
        "query_bias": weight(
            (h, q, k), ("heads", None, None), "self_attn.q_proj.bias", "(h q k) -> h q k", "zeros"
        ),
        "out": weight(
            (h, q, k, d), ("heads", None, None, "embed"), "self_attn.o_proj.weight", "d (h q k) -> h q k d"
        ),
    }
    for ours, theirs in (("key", "k_proj"), ("value", "v_proj")):
        attention[ours] = weight(
            (d, h, k), ("embed", "heads", None), f"self_attn.{theirs}.weight", "(h k) d -> d h k"
        )
        attention[f"{ours}_bias"] = weight(
            (h, k), ("heads", None), f"self_attn.{theirs}.bias", "(h k) -> h k", "zeros"
        )
    mlp = {
        "gate": weight((d, f), ("embed", "mlp"), "mlp.gate_proj.weight", "f d -> d f"),
        "up": weight((d, f), ("embed", "mlp"), "mlp.up_proj.weight", "f d -> d f"),
        "down": weight((f, d), ("mlp", "embed"), "mlp.down_proj.weight", "d f -> f d"),
    }
    return {"attention": attention, "mlp_norm": norm("post_attention_layernorm"), "mlp": mlp}


def _vision(config: Config) -> dict:
    layers, d, f = config.vision_layers, config.vision_width, config.vision_mlp_width
    h, k, merged = config.vision_heads, config.vision_head_dim, 4 * config.vision_width

    def weight(shape: tuple, axes: tuple, name: str, layout: str, init: str = "fan_in") -> Param:
        return Param((layers, *shape), ("layers", *axes), f"visual.blocks.{{}}.{name}", layout, init)

    mlp = {}
    for ours, axes in (("gate", ("embed", "mlp")), ("up", ("embed", "mlp")), ("down", ("mlp", "embed"))):
        i, o = (f, d) if ours == "down" else (d, f)
        mlp[ours] = weight((i, o), axes, f"mlp.{ours}_proj.weight", "o i -> i o")
        mlp[f"{ours}_bias"] = weight((o,), (axes[1],), f"mlp.{ours}_proj.bias", "o -> o", "zeros")
    blocks = {
        "attention_norm": weight((d,), (None,), "norm1.weight", "d -> d", "ones"),
        "qkv": weight(
            (d, 3, h, k), ("embed", None, "heads", None), "attn.qkv.weight", "(x h k) d -> d x h k"
        ),
        "qkv_bias": weight((3, h, k), (None, "heads", None), "attn.qkv.bias", "(x h k) -> x h k", "zeros"),
        "out": weight((h, k, d), ("heads", None, "embed"), "attn.proj.weight", "d (h k) -> h k d"),
        "out_bias": weight((d,), (None,), "attn.proj.bias", "d -> d", "zeros"),
        "mlp_norm": weight((d,), (None,), "norm2.weight", "d -> d", "ones"),
        "mlp": mlp,
    }
    merger = {
        "norm": Param((d,), (None,), "visual.merger.ln_q.weight", "d -> d", "ones"),
        "in": Param((merged, merged), ("embed", "mlp"), "visual.merger.mlp.0.weight", "o i -> i o"),
        "in_bias": Param((merged,), ("mlp",), "visual.merger.mlp.0.bias", "o -> o", "zeros"),
        "out": Param((merged, config.width), ("mlp", "embed"), "visual.merger.mlp.2.weight", "o i -> i o"),
        "out_bias": Param((config.width,), (None,), "visual.merger.mlp.2.bias", "o -> o", "zeros"),
    }
    patch_embedding = Param(
        (2, 3, config.patch_size, config.patch_size, d),
        (None, None, None, None, "embed"),
        "visual.patch_embed.proj.weight",
        "d channel t row column -> t channel row column d",
    )
    return {"patch_embedding": patch_embedding, "layers": blocks, "merger": merger}
