"""Model families as values: what reads their directories, describes their weights and computes their passes.

Nothing outside `mmrl.models` names a family: a config knows the one that it is of.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mmrl.models import internvl, qwen_vl, text_only
from mmrl.models.config import ModelConfig
from mmrl.models.images import ImageLayout
from mmrl.models.model_files import image_settings, read_json, short_repr
from mmrl.models.weights import CheckpointNames, describe


@dataclass(frozen=True)
class Family:
    """A family of models: how its directories are read, and what its tensors are called there.

    Without images, the tokens and the layout are not read.
    """

    from_hf: Callable[[dict, dict, str, str], ModelConfig]  # config.json, image settings, their files
    names: CheckpointNames = CheckpointNames()  # noqa: RUF009 (frozen)
    # Keys of config.json that name vision tokens, first the one that stands for an image; those that may be
    # absent; and names that tokenizer_config.json gives to others.
    tokens: tuple[str, ...] = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    )
    more_tokens: tuple[str, ...] = ("vision_token_id",)
    named_tokens: tuple[str, ...] = ()
    # How images are shown: of image settings and their file, with the ids of vision tokens by those names.
    layout: Callable[[dict, Path, ModelConfig, Mapping[str, int]], ImageLayout] = qwen_vl.image_layout


_QWEN2_VL = CheckpointNames(
    vision_mlp={"up": "mlp.fc1", "down": "mlp.fc2"}, merger={"norm": "ln_q", "in": "mlp.0", "out": "mlp.2"}
)
_QWEN3_VL = CheckpointNames(
    text="model.language_model",
    vision="model.visual",
    connector="model.visual.merger",
    vision_mlp={"up": "mlp.linear_fc1", "down": "mlp.linear_fc2"},
    merger={"norm": "norm", "in": "linear_fc1", "out": "linear_fc2"},
)

_INTERNVL = CheckpointNames(
    text="language_model.model",
    vision="vision_tower",
    head="language_model.lm_head.weight",
    patch_embedding="embeddings.patch_embeddings.projection",
    block="encoder.layer.{}",
    vision_norms=("layernorm_before", "layernorm_after"),
    vision_attention={
        **{name: f"attention.{name[0]}_proj" for name in ("query", "key", "value")},
        "query_norm": "attention.q_norm",
        "key_norm": "attention.k_norm",
        "out": "attention.projection_layer",
    },
    vision_mlp={"up": "mlp.fc1", "down": "mlp.fc2"},
    connector="multi_modal_projector",
    merger={"norm": "layer_norm", "in": "linear_1", "out": "linear_2"},
)

FAMILIES: Mapping[str, Family] = MappingProxyType(  # by ``model_type`` of config.json
    {
        "qwen2_vl": Family(qwen_vl.qwen2_vl, _QWEN2_VL),
        "qwen2_5_vl": Family(qwen_vl.qwen2_5_vl),
        "qwen3_vl": Family(qwen_vl.qwen3_vl, _QWEN3_VL),
        "qwen3_vl_moe": Family(qwen_vl.qwen3_vl_moe, _QWEN3_VL),
        "internvl": Family(
            internvl.internvl,
            _INTERNVL,
            tokens=("image_token_id",),
            more_tokens=(),
            named_tokens=("start_image_token", "end_image_token", "video_token"),
            layout=internvl.tile_layout,
        ),
        "qwen2": Family(text_only.qwen2),
        "qwen3": Family(text_only.qwen3),
        "llama": Family(text_only.llama),
    }
)


def param_specs(config: ModelConfig) -> dict:
    """Shape, axes, initialisation and checkpoint name of each weight: a nested dict of `Param`, no arrays."""
    return describe(config, FAMILIES[config.family].names)


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
