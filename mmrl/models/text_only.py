"""Language models without images: Qwen2 and Qwen2.5, Qwen3, Llama, translated from their ``config.json``."""

from collections.abc import Collection
from typing import Any

from mmrl.models.config import ModelConfig
from mmrl.models.hf_config import check_sizes, llama3_scaling, rope_section, text_fields
from mmrl.models.model_files import short_repr


def qwen2(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen2 (arXiv:2407.10671) and Qwen2.5 (arXiv:2412.15115): biases of queries, keys and values."""
    return _text_model("qwen2", raw, name)


def qwen3(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen3 (arXiv:2505.09388): norms of queries and keys in place of biases."""
    return _text_model("qwen3", raw, name)


def llama(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Llama 3 (arXiv:2407.21783), and others of its kind: neither."""
    return _text_model("llama", raw, name)


_KINDS: dict[str, dict[str, bool]] = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}, "llama": {}}
_DEFAULTS = {  # of transformers, for keys that a file leaves out
    "qwen2": {"rms_norm_eps": 1e-6},
    "qwen3": {"rms_norm_eps": 1e-6, "head_dim": 128},
    "llama": {"rms_norm_eps": 1e-6},
}


def _text_model(family: str, raw: dict, name: str) -> ModelConfig:
    return check_sizes(ModelConfig(family=family, **language_fields(family, raw, raw, name)), name)


def language_fields(
    kind: object, raw: dict, text: dict, name: str, unstretched: Collection[str] = ()
) -> dict[str, Any]:
    """Fields of `ModelConfig` of a language model of this kind: "qwen2", "qwen3" or "llama".

    Args:
      kind: ``model_type`` of the file, or of its part about the language model.
      raw, text: the whole file, and that part.
      name: stands for the file in messages.
      unstretched: rope types to take for "default" besides.

    Raises:
      ValueError: a feature that mmrl does not compute, or a key that is missing or not what it should be.
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"{name}: the language model's model_type is {short_repr(kind)}; known are {', '.join(_KINDS)}"
        )
    rope = rope_section(text, name, theta=10_000.0)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3", *unstretched):
        raise ValueError(
            f"{name}: rope type {short_repr(rope_type)} is not supported, only 'default' and 'llama3'"
        )
    fields = text_fields(raw, text, rope, name, _DEFAULTS[kind])
    return {
        "mrope_sections": (fields["head_dim"] // 2, 0, 0),
        "rope_scaling": llama3_scaling(rope, name) if rope_type == "llama3" else None,
        **_KINDS[kind],
        **fields,
    }
