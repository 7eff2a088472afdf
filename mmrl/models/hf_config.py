"""What the ``config.json`` of all families says alike: sizes of the language model, and what is not computed.

``name`` stands for the file in messages.
"""

from collections.abc import Mapping
from typing import Any

from mmrl.models.config import ModelConfig, RopeScaling
from mmrl.models.model_files import positive, require_integer, section, short_repr, triple

# What no model comes near; beyond, a file is damaged, and making sense of it costs memory.
MOST_LAYERS, MOST_HEADS, WIDEST, LARGEST_VOCABULARY, LARGEST_WINDOW = 1024, 1024, 1 << 20, 1 << 24, 4096

# Of pixels, as CLIP (arXiv:2103.00020) was trained; of several families, where a directory does not say.
CLIP_STATISTICS: dict[str, Any] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def image_statistics(
    preprocessor: dict, source: str, defaults: Mapping[str, Any] = CLIP_STATISTICS
) -> dict[str, Any]:
    """Fields of `VisionConfig` by which pixels are normalised; ``source`` stands for their file."""
    values = {**defaults, **preprocessor}
    return {
        "image_mean": triple(values, "image_mean", source, positive=False),
        "image_std": triple(values, "image_std", source, positive=True),
    }


def text_section(raw: dict, name: str) -> dict[str, Any]:
    """The language model's part: ``text_config``, or all of a flat file."""
    return raw if raw.get("text_config") is None else section(raw["text_config"], "text_config", name)


def rope_section(text: dict, name: str, theta: float) -> dict[str, Any]:
    """The rotary embedding's part, with the base that is ``theta`` where nothing is said."""
    rope = section(text.get("rope_scaling") or text.get("rope_parameters") or {}, "rope_scaling", name)
    return {"rope_theta": text.get("rope_theta", theta), **rope}


def text_fields(raw: dict, text: dict, rope: dict, name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ModelConfig` that every language model has, but for ``mrope_sections``.

    ``defaults`` are of keys that a file may leave out.

    Raises:
      ValueError: a size that is missing or not what it should be, or what mmrl does not compute (named).
    """
    _check_supported(raw, text, name)
    width = require_integer(text, "hidden_size", name, WIDEST)
    heads = require_integer(text, "num_attention_heads", name, MOST_HEADS)
    grouped = text if text.get("num_key_value_heads", 0) is not None else {"num_key_value_heads": heads}
    own_head = text if text.get("head_dim") is not None else {"head_dim": width // heads, **defaults}
    return {
        "vocabulary": require_integer(text, "vocab_size", name, LARGEST_VOCABULARY),
        "width": width,
        "layers": require_integer(text, "num_hidden_layers", name, MOST_LAYERS),
        "query_heads": heads,
        "kv_heads": require_integer(grouped, "num_key_value_heads", name, MOST_HEADS),
        "head_dim": require_integer(own_head, "head_dim", name, WIDEST),
        "mlp_width": require_integer(text, "intermediate_size", name, WIDEST),
        "rope_theta": positive(rope, "rope_theta", name),
        "norm_eps": positive({**defaults, **text}, "rms_norm_eps", name),
        "tied": flag(raw, "tie_word_embeddings", name) or flag(text, "tie_word_embeddings", name),
    }


def llama3_scaling(rope: dict, name: str) -> RopeScaling:
    """The stretching of rotary frequencies that the rope type "llama3" names."""
    low, high = (positive(rope, key, name) for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ValueError(f"{name}: low_freq_factor {low} is not below high_freq_factor {high}")
    length = require_integer(rope, "original_max_position_embeddings", name, 1 << 30)
    return RopeScaling(positive(rope, "factor", name), low, high, length)


def check_sizes(config: ModelConfig, name: str) -> ModelConfig:
    """The config as it is. Raises ValueError if sizes do not go together."""
    vision = config.vision
    parts = 1 if vision.tiles else 4  # that a head is rotated in
    wrong = {
        f"num_key_value_heads {config.kv_heads} does not divide num_attention_heads {config.query_heads}": (
            config.query_heads % config.kv_heads
        ),
        f"mrope_section {config.mrope_sections} does not sum to half of {config.head_dim}": (
            sum(config.mrope_sections) * 2 != config.head_dim
        ),
        f"the vision tower's num_heads {vision.heads} times {parts} does not divide {vision.width}": (
            vision.width % (parts * vision.heads)
        ),
        f"window_size {vision.window_size} holds no two patches of {vision.patch_size}": (
            not config.window_slots
        ),
        f"deepstack_visual_indexes {vision.taps} name more layers than the language model has": (
            len(vision.taps) > config.layers
        ),
    }
    for text, is_so in wrong.items():
        if is_so:
            raise ValueError(f"{name}: {text}")
    return config


def flag(values: dict, key: str, name: str) -> bool:
    """True or false under ``key``; false if it is not there. Raises ValueError naming file and key."""
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{name}: {key} is {short_repr(value)}, not true or false")
    return value


def layer_list(values: dict, key: str, name: str, default: list[int]) -> tuple[int, ...]:
    """Numbers of layers under ``key``. Raises ValueError naming file and key."""
    layers = values.get(key, default)
    if not isinstance(layers, list | tuple) or len(layers) > MOST_LAYERS:
        raise ValueError(f"{name}: {key} is {short_repr(layers)}, not a list of layers")
    return tuple(require_integer({key: layer}, key, name, MOST_LAYERS, 0) for layer in layers)


def _check_supported(raw: dict, text: dict, name: str) -> None:
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
    for key in ("attention_bias", "mlp_bias"):
        if text.get(key):
            raise ValueError(f"{name}: {key} is {short_repr(text[key])}; mmrl computes this family without")
    if text.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{name}: hidden_act is {short_repr(text['hidden_act'])}; mmrl computes 'silu'")
