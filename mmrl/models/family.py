"""Model families as values: what reads their directories, describes their weights and computes their passes.

Nothing outside `mmrl.models` names a family: a config knows the one that it is of.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmrl.models import qwen2_5_vl, qwen2_5_vl_config, vision_tower
from mmrl.models.config import ModelConfig
from mmrl.models.full_prompts import full_prompts
from mmrl.models.model_files import image_settings, read_json, short_repr


@dataclass(frozen=True)
class Family:
    """A family of models: its functions, of which all but the first two take a `ModelConfig`.

    Passes are pure functions of weights, config and inputs, with the caches of `mmrl.models.config`.
    """

    from_hf: Callable[[dict, dict, str, str], ModelConfig]  # config.json, image settings, their files
    unembedding: Callable[[dict], Any]  # weights: the output table
    describe: Callable[[ModelConfig], dict]  # a nested dict of `mmrl.models.params.Param`
    embed: Callable[..., Any]  # text tokens
    embed_prompts: Callable[..., Any]  # text and images
    extend: Callable[..., Any]  # a cache by some tokens
    encode_rows: Callable[..., Any]  # packed rows of patches: image features
    row_states: Callable[..., Any]  # packed rows of tokens: hidden states
    prefill_rows: Callable[..., Any]  # the same, with the keys and values of each layer
    full_prompts: Callable[..., Any]  # prompts of given sizes, text and an image


FAMILIES: Mapping[str, Family] = MappingProxyType(  # by ``model_type`` of config.json
    {
        "qwen2_5_vl": Family(
            from_hf=qwen2_5_vl_config.from_hf,
            unembedding=qwen2_5_vl.unembedding,
            describe=qwen2_5_vl_config.describe,
            embed=qwen2_5_vl.embed,
            embed_prompts=qwen2_5_vl.embed_prompts,
            extend=qwen2_5_vl.extend,
            encode_rows=vision_tower.encode_rows,
            row_states=qwen2_5_vl.row_states,
            prefill_rows=qwen2_5_vl.prefill_rows,
            full_prompts=full_prompts,
        )
    }
)


def family_of(config: ModelConfig) -> Family:
    """The functions of the architecture that a model is of."""
    return FAMILIES[config.family]


def param_specs(config: ModelConfig) -> dict:
    """Shape, axes, initialisation and checkpoint name of each weight: a nested dict of `Param`, no arrays."""
    return family_of(config).describe(config)


def read_config(directory: str | Path) -> ModelConfig:
    """Read ``config.json`` and the pixel statistics of a model directory.

    Both layouts are understood: the hub's flat one, and the nested one that transformers 5 writes. A key that
    is absent has the value that transformers gives it, unless it is a size of the weights.

    Raises:
      ValueError: the directory or a file is missing or not what it should be, or of an unknown family.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"model directory {folder} does not exist")
    raw = read_json(folder, "config.json")
    files = ("preprocessor_config.json", "processor_config.json")
    source, preprocessor = (
        image_settings(folder) if any((folder / name).exists() for name in files) else (folder, {})
    )
    return from_hf(raw, preprocessor, str(folder / "config.json"), str(source))


def from_hf(
    raw: dict, preprocessor: dict, name: str = "config.json", source: str = "preprocessor_config.json"
) -> ModelConfig:
    """Translate Hugging Face's dictionaries; ``name`` and ``source`` stand for their files in messages.

    Raises:
      ValueError: an unknown family, a feature that mmrl does not compute, or a key that is missing or whose
        value is not what it should be (named).
    """
    family = next((family for key, family in FAMILIES.items() if key == raw.get("model_type")), None)
    if family is None:
        found, known = short_repr(raw.get("model_type")), ", ".join(map(repr, FAMILIES))
        raise ValueError(f"{name}: model_type is {found}; the families that mmrl knows are {known}")
    return family.from_hf(raw, preprocessor, name, source)
