"""Conversations and images to `Prompts`: tokens, mRoPE positions and patches in window slots.

The order of work is: headers of the images -> number of tokens -> does the prompt fit -> pixels. Nothing is
ever truncated: a prompt over its budget is an `OverBudget`, or its images are shrunk by a stated rule.

Control tokens are made here alone, of what the chat template itself writes. A text that spells one, or parts
that put together spell one, stay text: `text_ids` and `encode` are how any text becomes ids.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from mmrl.models.images import ImageLayout, Shown, image_size, open_image
from mmrl.models.positions import patch_grid, positions, window_blocks, window_count
from mmrl.models.processor import Processor
from mmrl.terminal import one_line
from mmrl.types import Images, Prompts

_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: no tokenizer takes one
Messages = Sequence[dict[str, Any]]
IMAGE = "<image>"  # the placeholder in the text of a problem
TOKEN_STEP = 32  # lengths of prompts that are not given are multiples of it
MARK = "the assistant's content"  # stands for it while a template is rendered
ROLES = ("system", "user", "assistant", "tool")


class OverBudget(ValueError):
    """A prompt needs more tokens, or more patch slots, than the largest bucket has."""


@dataclass(frozen=True)
class Encoded:
    """One prompt, unpadded: the rows of `Prompts` and `Images`."""

    tokens: Int32[np.ndarray, "p"]
    position: Int32[np.ndarray, "p 3"]
    next_position: int
    image_token: Int32[np.ndarray, "p"]
    patches: UInt8[np.ndarray, "n c"]
    patch_position: Int32[np.ndarray, "n 2"]
    patch_image: Int32[np.ndarray, "n"]
    image_tokens: int  # that the slots have room for


def chat_messages(problem: str, system: str | None = None, suffix: str = "") -> list[dict[str, Any]]:
    """A problem as a conversation: each "<image>" of its text becomes an image, the rest stays as it is.

    ``system`` replaces the template's default system message; ``suffix`` (the format instruction) is
    appended to the problem as it stands.
    """
    content: list[dict[str, str]] = []
    for k, text in enumerate((problem + suffix).split(IMAGE)):
        if k:
            content.append({"type": "image"})
        if text:
            content.append({"type": "text", "text": text})
    turns = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*turns, {"role": "user", "content": content}]


def encode(
    processor: Processor,
    conversation: Messages,
    images: Sequence[Any] = (),
    *,
    name: str = "prompt",
    prompt_budget: int | None = None,
    patch_budget: int | None = None,
    overlong: str = "error",
) -> Encoded:
    """Encode one conversation, the assistant's turn opened at its end.

    Args: conversation (see `chat_messages`); its images in order of appearance (bytes, paths or PIL images);
    the name of the row for messages; budgets in tokens and in patch slots (None: no limit); ``overlong``:
    "error" raises `OverBudget`, "resize" lowers max_pixels equally for all the prompt's images until it fits.

    Raises ValueError naming the row: image count not matching the placeholders, unreadable image, a role that
    there is not; OverBudget if it does not fit.
    """
    if overlong not in ("error", "resize"):
        raise ValueError(f'overlong is {overlong!r}; it must be "error" or "resize"')
    tokens = _tokens(processor, conversation, len(images), name)
    return _encoded(processor, tokens, images, name, prompt_budget, patch_budget, overlong)


def encode_turn(
    processor: Processor,
    text: str,
    images: Sequence[Any] = (),
    *,
    ended: bool,
    name: str = "observation",
    token_budget: int | None = None,
    patch_budget: int | None = None,
) -> Encoded:
    """Encode what stands between an assistant's content and its next: the end of the turn, a user's, a start.

    Args: the user's text, each "<image>" of it one of ``images``; ``ended``: the token that ends a turn was
    already sampled, so it is left out; the rest as in `encode`. Positions count from 0, the first token's.

    The tokens are those that the chat template puts after a marked content, so they are equal to the slice of
    the whole conversation for every template that renders a turn without looking at its content.

    Raises ValueError and OverBudget as `encode` does, and ValueError if the template rewrites the content.
    """
    before = [{"role": "user", "content": ""}, {"role": "assistant", "content": MARK}]
    whole, hidden = _rendered(processor, [*before, *chat_messages(text)], name)
    after = whole.partition(MARK)[2]
    end = processor.tokenizer.convert_ids_to_tokens(processor.eos)
    if not after.startswith(end):
        raise ValueError(f"{name}: the chat template does not show a content with {end} after it")
    after = after.removeprefix(end) if ended else after
    tokens = _tokenised(processor, after, hidden, len(images), name)
    return _encoded(processor, tokens, images, name, token_budget, patch_budget, "error")


def measure(
    processor: Processor, conversation: Messages, sizes: Sequence[tuple[int, int]], name: str = "prompt"
) -> tuple[int, int]:
    """(tokens, patch slots) a prompt will need, from the (height, width) of its images; no pixel is read.

    Raises ValueError, naming the row, as `encode` does, but for the images' contents.
    """
    tokens = _tokens(processor, conversation, len(sizes), name)
    try:
        return _need(processor, processor.image, len(tokens), sizes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def largest_bucket(buckets: Sequence[int]) -> int | None:
    """The largest of ``buckets``; None, no limit, where there are none."""
    return max(buckets, default=None)


def bucket(n: int, buckets: Sequence[int], step: int = 1) -> int:
    """The smallest of ``buckets`` that holds n; without any, the next of few multiples of ``step``.

    These are 0 to 8 steps, and beyond them four from each power of two to the next.

    Raises OverBudget if no bucket does.
    """
    if not buckets:
        steps = -(-n // step)
        coarse = 1 << max((steps - 1).bit_length() - 3, 0)
        return -(-steps // coarse) * coarse * step
    fitting = [size for size in buckets if size >= n]
    if not fitting:
        raise OverBudget(f"{n} does not fit the largest bucket of {sorted(buckets)}")
    return min(fitting)


def padded(
    tokens: int,
    patches: int,
    processor: Processor,
    prompt_buckets: Sequence[int],
    patch_buckets: Sequence[int],
) -> tuple[int, int]:
    """Tokens and slots of a batch, padded, by the most that a prompt of it has. Raises OverBudget."""
    return bucket(tokens, prompt_buckets, TOKEN_STEP), bucket(patches, patch_buckets, processor.slots)


def collate(
    encoded: Sequence[Encoded], processor: Processor, prompt_bucket: int, patch_bucket: int
) -> Prompts:
    """Pad prompts on the right to ``prompt_bucket`` tokens and ``patch_bucket`` patch slots; numpy arrays.

    Raises ValueError if patch_bucket is not a whole number of windows, OverBudget if a prompt does not fit.
    """
    if patch_bucket % processor.slots:
        raise ValueError(
            f"patch bucket {patch_bucket} is not a multiple of {processor.slots}, the slots of a window"
        )
    bucket(max(len(e.tokens) for e in encoded), [prompt_bucket])
    bucket(max(len(e.patches) for e in encoded), [patch_bucket])

    def stack(rows: Sequence[np.ndarray], length: int, fill: int) -> Any:  # numpy until put on the device
        out = np.full((len(rows), length, *rows[0].shape[1:]), fill, rows[0].dtype)
        for k, row in enumerate(rows):
            out[k, : len(row)] = row
        return out

    following: Any = np.array([e.next_position for e in encoded], np.int32)
    return Prompts(
        tokens=stack([e.tokens for e in encoded], prompt_bucket, processor.pad),
        mask=stack([np.ones(len(e.tokens), bool) for e in encoded], prompt_bucket, False),
        position=stack([e.position for e in encoded], prompt_bucket, 0),
        next_position=following,
        image_token=stack([e.image_token for e in encoded], prompt_bucket, -1),
        images=Images(
            patches=stack([e.patches for e in encoded], patch_bucket, 0),
            position=stack([e.patch_position for e in encoded], patch_bucket, 0),
            image=stack([e.patch_image for e in encoded], patch_bucket, -1),
        ),
    )


def pad_prompts(prompts: Prompts, tokens: int, slots: int) -> Prompts:
    """Prompts padded further, to ``tokens`` and patch ``slots``; numpy arrays."""

    def pad(leaf: Any, width: int, fill: int = 0) -> Any:
        if width == leaf.shape[1]:
            return leaf
        more = [(0, 0), (0, width - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)]
        return np.pad(leaf, more, constant_values=fill)

    images = prompts.images
    return Prompts(
        tokens=pad(prompts.tokens, tokens),
        mask=pad(prompts.mask, tokens),
        position=pad(prompts.position, tokens),
        next_position=prompts.next_position,
        image_token=pad(prompts.image_token, tokens, -1),  # -1, not 0, stands for "no image"
        images=replace(
            images,
            patches=pad(images.patches, slots),
            position=pad(images.position, slots),
            image=pad(images.image, slots, -1),
        ),
    )


def _encoded(
    processor: Processor,
    tokens: Int32[np.ndarray, "t"],
    images: Sequence[Any],
    name: str,
    prompt_budget: int | None,
    patch_budget: int | None,
    overlong: str,
) -> Encoded:
    """Tokens with one pad an image, and those images, placed; the checks and budgets of `encode`."""
    opened = [open_image(image, f"{name}, image {k}") for k, image in enumerate(images)]
    sizes = [image_size(image, name) for image in opened]
    spec = processor.image
    try:
        need = _need(processor, spec, len(tokens), sizes)
        if overlong == "resize" and sizes and not _fits(need, prompt_budget, patch_budget):
            spec = _shrunk(processor, len(tokens), sizes, need, prompt_budget, patch_budget)
            need = _need(processor, spec, len(tokens), sizes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not _fits(need, prompt_budget, patch_budget):
        raise OverBudget(
            f"{name}: the prompt has {need[0]} tokens and {need[1]} patch slots, the budget is"
            f" {prompt_budget} and {patch_budget}. Raise the budget, lower max_pixels, or drop the row."
        )
    patches = [spec.cut(image, f"{name}, image {k}") for k, image in enumerate(opened)]
    return _place(processor, tokens, [spec.shown(size) for size in sizes], patches)


def _tokens(processor: Processor, conversation: Messages, images: int, name: str) -> Int32[np.ndarray, "p"]:
    """Token ids of a conversation with one image pad for each of the ``images``."""
    return _tokenised(processor, *_rendered(processor, conversation, name), images, name)


def text_ids(processor: Processor, text: str, name: str = "text") -> list[int]:
    """Token ids of a text that was written outside: never a control token, whatever it spells.

    Raises ValueError, with the ``name`` of the text, for a tokenizer that makes control tokens of plain text.
    """
    return _text_ids(processor, [text], name)[0]


def _text_ids(processor: Processor, texts: Sequence[str], name: str) -> list[list[int]]:
    backend = processor.tokenizer.backend_tokenizer
    if not backend.encode_special_tokens:  # a copy of a tokenizer forgets it
        backend.encode_special_tokens = True
    broken = [text for text in texts if _HALF.search(text)]
    if broken:
        raise ValueError(f"{name}: the text {one_line(broken[0], 60)} is not valid Unicode")
    # One by one: a batch wakes threads, which takes longer than these short texts do.
    found = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    forged = set(processor.control.values()) & set().union(*found)
    if forged:
        token = processor.tokenizer.convert_ids_to_tokens(min(forged))
        raise ValueError(f"{name}: the tokenizer makes {token} of plain text; fix tokenizer.json")
    return found


def spelt(texts: Iterable[str], control: Collection[str]) -> list[str]:
    """The control tokens whose names stand in one of ``texts``; they are text there."""
    texts = list(texts)
    return [token for token in control if any(token in text for text in texts)]


def rendered(processor: Processor, conversation: Messages) -> str:
    """The chat template's text, the assistant's turn opened at its end."""
    text, hidden = _rendered(processor, conversation, "conversation")
    return text.translate(hidden)


def _rendered(processor: Processor, conversation: Messages, name: str) -> tuple[str, dict[int, str]]:
    """The chat template's text, in which each control token is its own, and what to put back into it.

    Where the conversation's own texts could make up a control token, the characters that one begins and ends
    with are hidden from the template: characters for private use that stand nowhere else take their place.
    """
    wrong = [message["role"] for message in conversation if message["role"] not in ROLES]
    if wrong:
        raise ValueError(f"{name}: a turn of the role {wrong[0]!r}; there are {', '.join(ROLES)}")
    outside = "".join(text for message in conversation for text in _texts(message["content"]))
    hidden: dict[int, str] = {}
    if any(_makes_up(outside, token) for token in processor.control):
        edges = sorted({edge for token in processor.control for edge in (token[0], token[-1])})
        taken = set(map(ord, outside))
        private = (code for code in range(0x10FFFD, 0x20000, -1) if code not in taken)
        hidden = dict(zip(private, edges, strict=False))
    hiding = str.maketrans({edge: chr(one) for one, edge in hidden.items()})
    shown = [
        {"role": turn["role"], "content": _hidden_content(turn["content"], hiding)} for turn in conversation
    ]
    if not processor.sees:  # their templates take texts, not lists of parts
        shown = [{**turn, "content": "".join(_texts(turn["content"]))} for turn in shown]
    template = processor.tokenizer.apply_chat_template
    try:
        return template(shown, tokenize=False, add_generation_prompt=True), hidden
    except Exception as error:  # whatever a template raises, that was tried on another conversation
        raise ValueError(f"{name}: the chat template does not work: {one_line(error)}") from error


def _texts(content: str | Sequence[dict[str, Any]]) -> list[str]:
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]


def _hidden_content(
    content: str | Sequence[dict[str, Any]], hiding: dict[int, str]
) -> str | list[dict[str, str]]:
    """A content of which a template sees no more than kinds of parts, and texts."""
    if isinstance(content, str):
        return content.translate(hiding)
    return [
        {"type": part["type"], **({"text": part["text"].translate(hiding)} if "text" in part else {})}
        for part in content
    ]


def _makes_up(text: str, token: str) -> bool:
    """True if a token is left of a text if some of its characters are taken out, as a template may do."""
    rest = iter(text)
    return set(token) <= set(text) and all(character in rest for character in token)


@functools.cache
def _pattern(control: tuple[str, ...]) -> re.Pattern[str]:
    """One control token, in a group; of two that begin alike, the longer."""
    return re.compile("(" + "|".join(map(re.escape, sorted(control, key=len, reverse=True))) + ")")


def _tokenised(
    processor: Processor, text: str, hidden: dict[int, str], images: int, name: str
) -> Int32[np.ndarray, "p"]:
    """Token ids of a template's text, of which ``hidden`` says what to put back (see `_rendered`)."""
    parts = _pattern(tuple(processor.control)).split(text)  # text, control token, text, ..., text
    first, *others = _text_ids(processor, [part.translate(hidden) for part in parts[::2]], name)
    ids = list(first)
    for token, following in zip(parts[1::2], others, strict=True):
        ids += [processor.control[token], *following]
    tokens = np.array(ids, np.int32)
    if images and not processor.sees:
        raise ValueError(f"{name}: the model reads no images; take a vision-language model, or rows of text")
    check_placeholders(int((tokens == processor.image_pad).sum()), images, name)
    return tokens


def check_placeholders(placeholders: int, images: int, name: str) -> None:
    """Raises ValueError naming the row unless its text has a placeholder for each image."""
    if placeholders != images:
        raise ValueError(
            f"{name}: {images} images but {placeholders} placeholders in the text."
            f' Write one "{IMAGE}" for each image.'
        )


def _need(
    processor: Processor, spec: ImageLayout, length: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """(tokens, patch slots) of a prompt of ``length`` tokens before its image pads are expanded."""
    shown, merge = [spec.shown(size) for size in sizes], spec.merge
    windows = sum(
        window_count(rows // merge, columns // merge, processor.window)
        for image in shown
        for rows, columns in image.grids
    )
    return length + sum(image.count(merge) - 1 for image in shown), windows * processor.slots


def _fits(need: tuple[int, int], prompt_budget: int | None, patch_budget: int | None) -> bool:
    budgets = (prompt_budget, patch_budget)
    return all(limit is None or n <= limit for n, limit in zip(need, budgets, strict=True))


def _shrunk(
    processor: Processor,
    length: int,
    sizes: Sequence[tuple[int, int]],
    need: tuple[int, int],
    prompt_budget: int | None,
    patch_budget: int | None,
) -> ImageLayout:
    """The spec with the largest max_pixels, in whole tokens an image, under which the prompt fits.

    If none does, the spec of the smallest images, which `encode` then finds over budget.
    """
    spec = processor.image
    area = (spec.patch * spec.merge) ** 2
    limits = [need[0], spec.max_pixels // area]
    limits += [prompt_budget] if prompt_budget is not None else []
    limits += [patch_budget // spec.merge**2] if patch_budget is not None else []
    for tokens in range(min(limits), 0, -1):
        smaller = spec.limited(min(spec.min_pixels, tokens * area), tokens * area)
        if smaller == spec:
            continue
        spec = smaller
        if _fits(_need(processor, spec, length, sizes), prompt_budget, patch_budget):
            break
    return spec


def _place(
    processor: Processor,
    tokens: Int32[np.ndarray, "t"],
    shown: Sequence[Shown],
    patches: Sequence[UInt8[np.ndarray, "_ c"]],
) -> Encoded:
    """Expand each image's one pad, and lay the patches of its pictures out in window slots."""
    spec, side = processor.image, processor.window
    merge, unit = spec.merge, spec.merge**2
    expanded = [image.tokens(processor.image_pad, merge) for image in shown]
    spots = np.flatnonzero(tokens == processor.image_pad)
    counts = np.ones(len(tokens), np.int64)
    counts[spots] = [len(ids) for ids in expanded]
    starts = (np.cumsum(counts) - counts)[spots]
    length = int(counts.sum())
    written = np.repeat(tokens, counts)
    for start, ids in zip(starts, expanded, strict=True):
        written[start : start + len(ids)] = ids
    grids = [grid for image in shown for grid in image.grids]
    merged = [(rows // merge, columns // merge) for rows, columns in grids]
    spans = [] if spec.flat else [(int(s), *g) for s, g in zip(starts, merged, strict=True)]
    position, after = positions(length, spans)
    windows = [window_count(rows, columns, side) for rows, columns in merged]
    n = sum(windows) * processor.slots
    encoded = Encoded(
        tokens=written,
        position=position,
        next_position=after,
        image_token=np.full(length, -1, np.int32),
        patches=np.zeros((n, 3 * spec.patch**2), np.uint8),
        patch_position=np.zeros((n, 2), np.int32),
        patch_image=np.full(n, -1, np.int32),
        image_tokens=n // unit,
    )
    pads = np.flatnonzero(written == processor.image_pad)
    pixels = np.concatenate([encoded.patches[:0], *patches])
    taken = window = 0  # merge blocks and windows of the pictures before
    for k, (rows, columns) in enumerate(merged):
        blocks = slice(taken, taken := taken + rows * columns)
        place = window * side**2 + window_blocks(rows, columns, side)
        slot = (place[:, None] * unit + np.arange(unit)).reshape(-1)
        encoded.image_token[pads[blocks]] = place
        encoded.patches[slot] = pixels[blocks.start * unit : blocks.stop * unit]
        encoded.patch_position[slot] = patch_grid(*grids[k], merge)
        encoded.patch_image[slot] = k
        window += windows[k]
    return encoded
