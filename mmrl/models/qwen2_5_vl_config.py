"""Sizes of a Qwen2.5-VL model, translated from its ``config.json``, and the description of its weights."""

from mmrl.models.config import ModelConfig
from mmrl.models.model_files import positive, require_integer, section, short_repr, triple
from mmrl.models.params import Param

_IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the published models, where a directory does not say
_IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
# What no model of the family comes near; beyond, a file is damaged, and making sense of it costs memory.
_MOST_LAYERS, _MOST_HEADS, _WIDEST, _LARGEST_VOCABULARY, _LARGEST_WINDOW = 1024, 1024, 1 << 20, 1 << 24, 4096


def from_hf(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Translate Hugging Face's dictionaries; ``name`` and ``source`` stand for their files in messages.

    Raises:
      ValueError: a feature we do not compute, or a key that is missing or whose value
        is not what it should be (named).
    """
    text = raw if raw.get("text_config") is None else section(raw["text_config"], "text_config", name)
    vision = section(raw.get("vision_config"), "vision_config", name)
    _check_supported(raw, text, vision, name)
    rope = section(text.get("rope_scaling") or text.get("rope_parameters") or {}, "rope_scaling", name)
    rope_type = rope.get("rope_type", rope.get("type", "mrope"))
    if rope_type not in ("mrope", "default"):
        raise ValueError(f"{name}: rope type {short_repr(rope_type)} is not supported, only 'mrope' unscaled")
    rope = {"rope_theta": text.get("rope_theta", 1e6), **rope}
    width = require_integer(text, "hidden_size", name, _WIDEST)
    heads = require_integer(text, "num_attention_heads", name, _MOST_HEADS)
    grouped = text if text.get("num_key_value_heads", 0) is not None else {"num_key_value_heads": heads}
    own_head = text if text.get("head_dim") is not None else {"head_dim": width // heads}
    config = ModelConfig(
        family="qwen2_5_vl",
        vocabulary=require_integer(text, "vocab_size", name, _LARGEST_VOCABULARY),
        width=width,
        layers=require_integer(text, "num_hidden_layers", name, _MOST_LAYERS),
        query_heads=heads,
        kv_heads=require_integer(grouped, "num_key_value_heads", name, _MOST_HEADS),
        head_dim=require_integer(own_head, "head_dim", name, _WIDEST),
        mlp_width=require_integer(text, "intermediate_size", name, _WIDEST),
        rope_theta=positive(rope, "rope_theta", name),
        mrope_sections=_sections(rope, name),
        norm_eps=positive({"rms_norm_eps": 1e-5, **text}, "rms_norm_eps", name),
        tied=_flag(raw, "tie_word_embeddings", name) or _flag(text, "tie_word_embeddings", name),
        vision_layers=require_integer(vision, "depth", name, _MOST_LAYERS),
        vision_width=require_integer(vision, "hidden_size", name, _WIDEST),
        vision_heads=require_integer(vision, "num_heads", name, _MOST_HEADS),
        vision_mlp_width=require_integer(vision, "intermediate_size", name, _WIDEST),
        patch_size=require_integer({"patch_size": 14, **vision}, "patch_size", name, _LARGEST_WINDOW),
        window_size=require_integer({"window_size": 112, **vision}, "window_size", name, _LARGEST_WINDOW),
        full_attention_layers=_full_attention(vision, name),
        image_mean=triple({"image_mean": _IMAGE_MEAN, **preprocessor}, "image_mean", source, positive=False),
        image_std=triple({"image_std": _IMAGE_STD, **preprocessor}, "image_std", source, positive=True),
    )
    return _checked(config, vision, name)


def _check_supported(raw: dict, text: dict, vision: dict, name: str) -> None:
    """Raises ValueError for what changes the weights or the computation and that we do not do."""
    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None or text.get(key) is not None:
            raise ValueError(
                f"{name}: {key} says that the weights are quantised, which mmrl does not read; take the "
                "model's unquantised files"
            )
    if raw.get("transformers_weights") is not None:
        raise ValueError(
            f"{name}: transformers_weights names another weight file, which mmrl does not read; rename that "
            "file to model.safetensors and remove the key"
        )
    if text.get("use_sliding_window") or "sliding_attention" in f"{text.get('layer_types')}":
        raise ValueError(f"{name}: use_sliding_window is true; only full attention is supported")
    for tower in (text, vision):
        if tower.get("hidden_act", "silu") != "silu":
            raise ValueError(
                f"{name}: hidden_act is {short_repr(tower['hidden_act'])}; Qwen2.5-VL uses 'silu'"
            )
    if vision.get("spatial_merge_size", 2) != 2 or vision.get("temporal_patch_size", 2) != 2:
        raise ValueError(f"{name}: spatial_merge_size and temporal_patch_size must be 2")
    if vision.get("in_channels", vision.get("in_chans", 3)) != 3:
        raise ValueError(f"{name}: in_channels must be 3")


def _flag(values: dict, key: str, name: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name}: {key} is {short_repr(value)}, not true or false")
    return value


def _sections(rope: dict, name: str) -> tuple[int, int, int]:
    value = rope.get("mrope_section")
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{name}: mrope_section is {short_repr(value)}, not three whole numbers")
    parts = dict(zip(("t", "h", "w"), value, strict=True))
    sizes = [
        require_integer({"mrope_section": parts[axis]}, "mrope_section", name, _WIDEST, 0) for axis in parts
    ]
    return sizes[0], sizes[1], sizes[2]


def _full_attention(vision: dict, name: str) -> tuple[int, ...]:
    layers = vision.get("fullatt_block_indexes", [7, 15, 23, 31])
    if not isinstance(layers, list | tuple) or len(layers) > _MOST_LAYERS:
        raise ValueError(f"{name}: fullatt_block_indexes is {short_repr(layers)}, not a list of layers")
    key = "fullatt_block_indexes"
    return tuple(require_integer({key: layer}, key, name, _MOST_LAYERS, 0) for layer in layers)


def _checked(config: ModelConfig, vision: dict, name: str) -> ModelConfig:
    """Raises ValueError if sizes do not go together."""
    wrong = {
        f"num_key_value_heads {config.kv_heads} does not divide num_attention_heads {config.query_heads}": (
            config.query_heads % config.kv_heads
        ),
        f"mrope_section {config.mrope_sections} does not sum to half of {config.head_dim}": (
            sum(config.mrope_sections) * 2 != config.head_dim
        ),
        f"the vision tower's num_heads {config.vision_heads} times 4 does not divide its hidden_size"
        f" {config.vision_width}": config.vision_width % (4 * config.vision_heads),
        f"window_size {config.window_size} holds no two patches of {config.patch_size}": (
            not config.window_slots
        ),
        f"vision out_hidden_size differs from the text width {config.width}": (
            vision.get("out_hidden_size", config.width) != config.width
        ),
    }
    for text, is_so in wrong.items():
        if is_so:
            raise ValueError(f"{name}: {text}")
    return config


def describe(config: ModelConfig) -> dict:
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


def _text_layers(config: ModelConfig) -> dict:
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


def _vision(config: ModelConfig) -> dict:
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
