"""Everything of a Hugging Face model directory that preprocessing needs; torch is not."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer

from mmrl.models.chat_template import attach_chat_template
from mmrl.models.config import NO_VISION, ModelConfig
from mmrl.models.family import FAMILIES, Family, read_config
from mmrl.models.images import ImageLayout, ImageSpec
from mmrl.models.model_files import (
    check_whole,
    image_settings,
    positive,
    read_json,
    short_repr,
)
from mmrl.terminal import one_line

_MOST_TOKENS = 1 << 24
_NO_IMAGES = ImageSpec(
    1, 1, NO_VISION.patch_size, NO_VISION.merge, 1, NO_VISION.image_mean, NO_VISION.image_std
)

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
    image: ImageLayout
    window: int  # side of an attention window, in merge blocks
    image_pad: int  # the token that stands for one merged image token; -1 in a model of text alone
    placeholders: tuple[int, ...]  # all vision token ids: never part of a text, never to be sampled
    eos: int  # ends a turn
    stop: tuple[int, ...]  # ids that end a response, eos among them
    pad: int
    control: Mapping[str, int]  # all control tokens: special tokens, placeholders, what ends or pads

    @property
    def sees(self) -> bool:
        """True if the model reads images."""
        return self.image_pad >= 0

    @property
    def slots(self) -> int:
        """Patch slots of one attention window; the patch axis of `Images` is a multiple of this."""
        return (self.window * self.image.merge) ** 2


def load_processor(model_dir: str | Path) -> Processor:
    """Read tokenizer, chat template, image sizes and special ids of a Hugging Face directory.

    Raises ValueError, naming the path and the fix, for a missing directory or file, another model family,
    unsupported preprocessing, a tokenizer larger than the model's vocabulary, ids that are no tokens,
    or a chat template that is not there or does not work (see `mmrl.models.chat_template`).
    """
    folder = Path(model_dir)
    sizes = read_config(folder)
    sees = sizes.vision != NO_VISION
    config = read_json(folder, "config.json")
    family = FAMILIES[sizes.family]
    if sees:  # transformers reads them too, and says less
        _config_tokens(folder, config, family, range(_MOST_TOKENS))
    tokenizer = _read_tokenizer(folder)
    attach_chat_template(tokenizer, folder, images=sees)
    top = max(tokenizer.get_vocab().values())
    if top >= sizes.vocabulary:
        raise ValueError(
            f"{folder}: vocabulary mismatch: the tokenizer has ids up to {top}, the model embeds"
            f" {sizes.vocabulary} (vocab_size of config.json). Use the model's own tokenizer."
        )
    vision: dict[str, int] = {}
    if sees:
        vision = _config_tokens(folder, config, family, tokenizer.added_tokens_decoder)
        vision |= _tokenizer_tokens(folder, tokenizer, family)
    spec = _image_layout(folder, sizes, vision) if sees else _NO_IMAGES
    stop = _stop_ids(folder, config, tokenizer, top)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[-1]
    placeholders = tuple(sorted(set(vision.values())))
    return Processor(
        tokenizer=tokenizer,
        image=spec,
        window=sizes.vision.window_side,
        image_pad=vision["image_token_id"] if sees else -1,
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


def _read_tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json")
    for path in folder.glob("*.json"):
        check_whole(path)
    try:
        # No code of the directory is run, nor is anybody asked whether to.
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, split_special_tokens=True
        )
        if not tokenizer.get_vocab():
            raise ValueError("it has no token")
        # What tokenizer.json may ask for; transformers sets it aside in every call.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    except BaseException as error:  # transformers raises whatever its parsers do, a panic of Rust's among it
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f"{folder}: the tokenizer cannot be loaded from tokenizer.json and the files beside it:"
            f" {one_line(error)}"
        ) from error
    return tokenizer


def _config_tokens(
    folder: Path, config: dict[str, Any], family: Family, known: Container[int]
) -> dict[str, int]:
    """Ids of vision tokens that config.json names. Raises ValueError if one is missing or not ``known``."""
    names = [*family.tokens, *(name for name in family.more_tokens if config.get(name) is not None)]
    absent = [name for name in names if not _is_token(config.get(name)) or config[name] not in known]
    if absent:
        raise ValueError(
            f"{folder / 'config.json'}: {absent[0]} is absent or not a special token of the tokenizer"
        )
    return {name: config[name] for name in names}


def _tokenizer_tokens(folder: Path, tokenizer: Any, family: Family) -> dict[str, int]:
    """The ids of vision tokens that tokenizer_config.json names. Raises ValueError if one is missing."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    named = {name: getattr(tokenizer, name, None) for name in family.named_tokens}
    absent = [name for name, token in named.items() if str(token) not in added]
    if absent:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: {absent[0]} is absent or no special token of the tokenizer"
        )
    return {name: added[str(token)] for name, token in named.items()}


def _is_token(value: Any, top: int = _MOST_TOKENS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= top


def _stop_ids(folder: Path, config: dict[str, Any], tokenizer: Any, top: int) -> tuple[int, ...]:
    """The id that ends a turn first, then the other ids generation_config.json stops at."""
    path = folder / "generation_config.json"
    listed = (read_json(folder, path.name) if path.is_file() else config).get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    wrong = [number for number in ids if not _is_token(number, top)]
    if wrong:
        named = path if path.is_file() else folder / "config.json"
        raise ValueError(
            f"{named}: eos_token_id names {short_repr(wrong[0])}, which is no token of the tokenizer"
            f" (0 to {top})"
        )
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else (ids or [None])[0]
    if eos is None:
        raise ValueError(f"{folder}: no end-of-sequence token in the tokenizer or in {path.name}")
    return (eos, *dict.fromkeys(i for i in ids if i != eos))


def _image_layout(folder: Path, sizes: ModelConfig, vision: Mapping[str, int]) -> ImageLayout:
    """How images are shown, in the family's form."""
    path, raw = image_settings(folder)
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if raw.get(key) is False:
            raise ValueError(f"{path}: {key} is false, which mmrl does not support")
    factor = positive({"rescale_factor": 1 / 255, **raw}, "rescale_factor", path)
    if raw.get("resample", 3) != 3 or abs(factor * 255 - 1) > 1e-9:
        raise ValueError(f"{path}: mmrl resizes bicubic (resample 3) and scales by 1/255, nothing else")
    return FAMILIES[sizes.family].layout(raw, path, sizes, vision)
