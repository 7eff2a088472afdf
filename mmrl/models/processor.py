"""Everything of a Hugging Face model directory that preprocessing needs; torch is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer

from mmrl.models.images import ImageSpec

# Qwen2's control tokens, in its order: what a data set is looked through for where no model is named.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True)
class Processor:
    """Everything of a model directory that preprocessing needs.

    ``tokenizer`` encodes the name of a control token as the text that it is; `mmrl.models.prompts` alone
    makes control tokens, of what the chat template writes.
    """

    tokenizer: Any
    image: ImageSpec
    window: int  # side of an attention window, in merge blocks
    image_pad: int  # the token that stands for one merged image token
    placeholders: tuple[int, ...]  # all vision token ids: never part of a text, never to be sampled
    eos: int  # ends a turn
    stop: tuple[int, ...]  # ids that end a response, eos among them
    pad: int
    control: Mapping[str, int]  # all control tokens: special tokens, placeholders, what ends or pads

    @property
    def slots(self) -> int:
        """Patch slots of one attention window; the patch axis of `Images` is a multiple of this."""
        return (self.window * self.image.merge) ** 2


def load_processor(model_dir: str | Path) -> Processor:
    """Read tokenizer, chat template, image sizes and special ids of a Hugging Face directory.

    Raises ValueError, naming the path and the mend, for a missing directory or file, another model family,
    unsupported preprocessing, a tokenizer larger than the model's vocabulary, or no chat template.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise ValueError(f"model directory {folder} does not exist")
    config = _read_json(folder, "config.json")
    if config.get("model_type") != "qwen2_5_vl":
        raise ValueError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not 'qwen2_5_vl'"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, split_special_tokens=True
        )
    except Exception as error:  # transformers raises whatever its parsers do; all mean the same to a user
        raise ValueError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
    _attach_chat_template(tokenizer, folder)

    text = config.get("text_config", config)
    top = max(tokenizer.get_vocab().values())
    if top >= text["vocab_size"]:
        raise ValueError(
            f"{folder}: vocabulary mismatch: the tokenizer has ids up to {top}, the model embeds"
            f" {text['vocab_size']} (vocab_size of config.json). Use the model's own tokenizer."
        )
    vision = config.get("vision_config", {})
    spec = _image_spec(folder, vision)
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    absent = [n for n in names if not isinstance(config.get(n), int) or config[n] > top]
    if absent:
        raise ValueError(f"{folder / 'config.json'}: {absent[0]} is absent or not a token of the tokenizer")
    extra = [config["vision_token_id"]] if "vision_token_id" in config else []
    stop = _stop_ids(folder, config, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[-1]
    placeholders = tuple(sorted({config[n] for n in names} | set(extra)))
    return Processor(
        tokenizer=tokenizer,
        image=spec,
        window=vision.get("window_size", 112) // spec.merge // spec.patch,
        image_pad=config["image_token_id"],
        placeholders=placeholders,
        eos=stop[0],
        stop=stop,
        pad=pad,
        control=_control_tokens(tokenizer, (*placeholders, *stop, pad)),
    )


def _control_tokens(tokenizer: Any, used: Sequence[int]) -> dict[str, int]:
    """Ids of the tokens that no text may become, by name: special ones, and those ``used`` as if they were.

    The latter are made special, if a tokenizer adds them to its vocabulary without saying so.
    """
    added = tokenizer.added_tokens_decoder
    plain = [str(added[token]) for token in used if token in added and not added[token].special]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in plain])
    return {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {name}. Is it a Hugging Face model directory?") from None
    except ValueError as error:
        raise ValueError(f"{folder / name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{folder / name} holds no JSON object")
    return value


def _attach_chat_template(tokenizer: Any, folder: Path) -> None:
    if tokenizer.chat_template is None and (folder / "chat_template.json").is_file():
        tokenizer.chat_template = _read_json(folder, "chat_template.json").get("chat_template")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{folder} has no chat template. Put one in tokenizer_config.json or chat_template.json."
        )


def _stop_ids(folder: Path, config: dict[str, Any], tokenizer: Any) -> tuple[int, ...]:
    """The id that ends a turn first, then the other ids generation_config.json stops at."""
    path = folder / "generation_config.json"
    listed = (_read_json(folder, path.name) if path.is_file() else config).get("eos_token_id")
    ids = [listed] if isinstance(listed, int) else list(listed or [])
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else (ids or [None])[0]
    if eos is None:
        raise ValueError(f"{folder}: no end-of-sequence token in the tokenizer or in {path.name}")
    return (eos, *(i for i in ids if i != eos))


def _image_spec(folder: Path, vision: dict[str, Any]) -> ImageSpec:
    """Image sizes of preprocessor_config.json, in the hub's form or transformers 5's (``size``)."""
    if not (folder / "preprocessor_config.json").is_file() and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"
        raw = _read_json(folder, path.name).get("image_processor", {})
    else:
        path = folder / "preprocessor_config.json"
        raw = _read_json(folder, path.name)
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if raw.get(key) is False:
            raise ValueError(f"{path}: {key} is false, which mmrl does not support")
    if raw.get("resample", 3) != 3 or abs(raw.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-9:
        raise ValueError(f"{path}: mmrl resizes bicubic (resample 3) and scales by 1/255, nothing else")
    size = raw.get("size") or {}
    low = raw.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or 56 * 56
    high = raw.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or 28 * 28 * 1280
    spec = ImageSpec(
        min_pixels=int(low),
        max_pixels=int(high),
        patch=raw.get("patch_size", 14),
        merge=raw.get("merge_size", 2),
        temporal=raw.get("temporal_patch_size", 2),
        mean=tuple(raw.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
        std=tuple(raw.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
    )
    if not 0 < spec.min_pixels <= spec.max_pixels:
        raise ValueError(f"{path}: min_pixels {low} and max_pixels {high} leave no size for an image")
    model = [
        vision.get(k, d)
        for k, d in (("patch_size", 14), ("spatial_merge_size", 2), ("temporal_patch_size", 2))
    ]
    if model != [spec.patch, spec.merge, spec.temporal]:
        raise ValueError(
            f"{path}: patch, merge and temporal sizes {[spec.patch, spec.merge, spec.temporal]} are not those"
            f" of the vision tower in config.json, {model}"
        )
    return spec
