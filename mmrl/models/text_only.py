"""Language models without images: Qwen2 and Qwen2.5, Qwen3, Llama, translated from their ``config.json``."""

from mmrl.models.config import ModelConfig
from mmrl.models.hf_config import check_sizes, llama3_scaling, rope_section, text_fields
from mmrl.models.model_files import short_repr


def qwen2(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen2 (arXiv:2407.10671) and Qwen2.5 (arXiv:2412.15115): biases of queries, keys and values."""
    return _text_model("qwen2", raw, name, qkv_bias=True)


def qwen3(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Qwen3 (arXiv:2505.09388): norms of queries and keys in place of biases."""
    return _text_model("qwen3", raw, name, qk_norm=True)


def llama(raw: dict, preprocessor: dict, name: str, source: str) -> ModelConfig:
    """Llama 3 (arXiv:2407.21783), and others of its kind: neither."""
    return _text_model("llama", raw, name)


_DEFAULTS = {  # of transformers, for keys that a file leaves out
    "qwen2": {"rms_norm_eps": 1e-6},
    "qwen3": {"rms_norm_eps": 1e-6, "head_dim": 128},
    "llama": {"rms_norm_eps": 1e-6},
}


def _text_model(
    family: str, raw: dict, name: str, *, qkv_bias: bool = False, qk_norm: bool = False
) -> ModelConfig:
    """A config of these sizes.

    Raises:
      ValueError: a feature that mmrl does not compute, or a key that is missing or not what it should be.
    """
    rope = rope_section(raw, name, theta=10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(
            f"{name}: rope type {short_repr(kind)} is not supported, only 'default' and 'llama3'"
        )
    fields = text_fields(raw, raw, rope, name, _DEFAULTS[family])
    config = ModelConfig(
        family=family,
        mrope_sections=(fields["head_dim"] // 2, 0, 0),
        rope_scaling=llama3_scaling(rope, name) if kind == "llama3" else None,
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        **fields,
    )
    return check_sizes(config, name)
