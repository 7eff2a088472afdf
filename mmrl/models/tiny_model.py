"""Tiny models of the built-in worlds, as Hugging Face directories with random weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mmrl.atomic import atomic_folder
from mmrl.models import checkpoint
from mmrl.models.family import param_specs, read_config
from mmrl.models.params import initialise
from mmrl.models.processor import SPECIAL_TOKENS

CELL = 28  # pixels of a side that one image token of the model covers

# A cell's name, a tag and an opening box are one word each; the rest splits as Qwen2 splits, but for numbers,
# which take the space before them as words do.
WORDS = (
    r"<think>| ?</think>| ?\\boxed\{| ?[a-d][1-4]| ?\p{N}|"
    r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


TINY_FAMILIES = {  # and how their classes in transformers begin
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
}
_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_heads": 4,
    "out_hidden_size": 128,
    "patch_size": CELL // 2,
    "spatial_merge_size": 2,
    "window_size": 2 * CELL,
    "fullatt_block_indexes": [2],
    "tokens_per_second": 4,
    "temporal_patch_size": 2,
    "in_chans": 3,
    "spatial_patch_size": CELL // 2,
}
_QWEN3_VL: tuple[dict[str, Any], dict[str, Any]] = (
    {
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
        "head_dim": 32,
    },
    {
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": 256,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    },
)
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 192}
# Entries of a family's config.json, and of its "vision_config", that are not as in Qwen2.5-VL's.
_CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ({}, {"hidden_act": "quick_gelu", "mlp_ratio": 4}),
    "qwen2_5_vl": ({}, {}),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": (_QWEN3_VL[0] | _EXPERTS, _QWEN3_VL[1]),
}
_QWEN3_VL_ABSENT = ("window_size", "fullatt_block_indexes", "tokens_per_second", "spatial_patch_size")
_ABSENT = {
    "qwen2_vl": (
        "intermediate_size",
        "out_hidden_size",
        "window_size",
        "fullatt_block_indexes",
        "tokens_per_second",
    ),
    "qwen3_vl": _QWEN3_VL_ABSENT,
    "qwen3_vl_moe": _QWEN3_VL_ABSENT,
}
# Those that stand beside "text_config", where there is one.
_OUTER = ("architectures", "model_type", "tie_word_embeddings", "torch_dtype")


@dataclass(frozen=True)
class ModelSpec:
    """Words and picture sizes that a tiny model must know."""

    texts: tuple[str, ...]  # every pre-token of these becomes one token
    words: str  # a regular expression of pre-tokens
    pixels: tuple[int, int]  # bounds of an image's area, min and max


def build_tokenizer(spec: ModelSpec) -> Tokenizer:
    """Byte-level BPE trained on the words of ``spec`` until each is a single token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(spec.words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than there are merges to make
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(spec.texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(directory: Path, spec: ModelSpec) -> None:
    """Write tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and chat_template.jinja."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(spec)
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer.model.save(str(directory))
    added = {str(token.pop("id")): token for token in json.loads(tokenizer.to_str())["added_tokens"]}
    config = {
        # Not Qwen2Tokenizer: that class would put Qwen2's way of splitting words in place of
        # tokenizer.json's.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", config)


def model_config(spec: ModelSpec, family: str = "", **overrides: Any) -> dict[str, Any]:
    """Contents of config.json, in the layout of the published models of the family; "" is Qwen2.5-VL.

    ``overrides`` replace entries by name; ``vision_config`` takes a dict of the entries to replace in it.

    Raises:
        ValueError: an override names no entry, or there is no tiny model of the family.
    """
    family = _family(family)
    text_changes, vision_changes = _CHANGES[family]
    config = _text_entries(spec, family) | text_changes
    vision = _VISION | vision_changes
    vision_overrides = overrides.pop("vision_config", {})
    for given, known in ((overrides, config), (vision_overrides, vision)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f"model_config: no entry {unknown[0]!r}; it has {', '.join(known)}")
    config |= overrides
    vision |= {"out_hidden_size": config["hidden_size"]} | vision_overrides
    if family == "qwen2_vl":  # where "hidden_size" is that of the language model
        vision |= {"embed_dim": vision["hidden_size"], "hidden_size": config["hidden_size"]}
    vision = {key: value for key, value in vision.items() if key not in _ABSENT.get(family, ())}
    if not family.startswith("qwen3_vl"):
        return config | {"vision_config": vision}
    outer = {key: config.pop(key) for key in [*config] if key in _OUTER or key.endswith("token_id")}
    config |= {key: outer[key] for key in ("bos_token_id", "eos_token_id")}
    return outer | {
        "text_config": {"model_type": f"{family}_text", **config},
        "vision_config": {"model_type": family, **vision},
    }


def _family(name: str) -> str:
    """The family of that name, or that of worlds which name none."""
    name = name or "qwen2_5_vl"
    if name not in TINY_FAMILIES:
        known = ", ".join(TINY_FAMILIES)
        raise ValueError(f"no tiny model of the family {name!r} (config.world.family); there are {known}")
    return name


def _text_entries(spec: ModelSpec, family: str) -> dict[str, Any]:
    tokenizer = build_tokenizer(spec)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    return {
        "architectures": [f"{TINY_FAMILIES[family]}ForConditionalGeneration"],
        "model_type": family,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 512,
        "max_window_layers": 4,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        # The rows and columns of an image turn at the lowest frequencies. At Qwen's base of 1e6 neighbouring
        # cells would differ by 0.03 and 0.0002 radians, which only images of hundreds of cells and long
        # training can use.
        "rope_theta": 20.0,
        "sliding_window": 512,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
    }


def write_model(directory: Path, seed: int, spec: ModelSpec, family: str = "", **overrides: Any) -> None:
    """Write a whole model directory: tokenizer, processor, config, and random weights drawn from ``seed``.

    ``family``, ``overrides``: see ``model_config``.
    """
    with atomic_folder(directory) as part:
        write_tokenizer(part, spec)
        write_config(part, model_config(spec, family, **overrides))
        write_processor(part, spec, family)
        description = param_specs(read_config(part))
        checkpoint.write_weights(initialise(description, seed), description, part)


def write_config(directory: Path, config: dict[str, Any]) -> None:
    """Write config.json (as from ``model_config``) and generation_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config)
    text = config.get("text_config", config)
    generation = {
        "bos_token_id": text["bos_token_id"],
        "eos_token_id": [text["eos_token_id"], text["bos_token_id"]],
        "pad_token_id": text["bos_token_id"],
        "do_sample": True,
        "temperature": 1.0,
    }
    _write_json(directory / "generation_config.json", generation)


def write_processor(directory: Path, spec: ModelSpec, family: str = "") -> None:
    """Write preprocessor_config.json: Qwen's normalisation, the pixel bounds of ``spec``."""
    directory.mkdir(parents=True, exist_ok=True)
    low, high = spec.pixels
    config = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": f"{TINY_FAMILIES[_family(family)].removesuffix('Moe')}Processor",
        "patch_size": CELL // 2,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": low,
        "max_pixels": high,
    }
    if family.startswith("qwen3_vl"):
        config |= {
            "size": {"shortest_edge": config.pop("min_pixels"), "longest_edge": config.pop("max_pixels")}
        }
    _write_json(directory / "preprocessor_config.json", config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
