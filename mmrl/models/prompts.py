"""Conversations and images to `Prompts`: tokens, mRoPE positions and patches in window slots.

The order of work is: headers of the images -> number of tokens -> does the prompt fit -> pixels. Nothing is
ever truncated: a prompt over its budget is an `OverBudget`, or its images are shrunk by a stated rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from mmrl.models.images import ImageSpec, grid_of, open_image, patchify
from mmrl.models.positions import patch_grid, positions, window_blocks, window_count
from mmrl.models.processor import Processor
from mmrl.types import Images, Prompts

Messages = Sequence[dict[str, Any]]
IMAGE = "<image>"  # the placeholder in the text of a problem
MARK = "[assistant's content]"  # stands for it while a template is rendered


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


def messages(problem: str, system: str | None = None, suffix: str = "") -> list[dict[str, Any]]:
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

    Args: conversation (see `messages`); its images in order of appearance (bytes, paths or PIL images);
    the name of the row for messages; budgets in tokens and in patch slots (None: no limit); ``overlong``:
    "error" raises `OverBudget`, "resize" lowers max_pixels equally for all the prompt's images until it fits.

    Raises ValueError naming the row: image count not matching the placeholders, unreadable image, vision
    tokens inside the text; OverBudget if it does not fit.
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
    conversation = [*before, *messages(text)]
    _refuse_special(processor, conversation, name)
    after = rendered(processor, conversation).partition(MARK)[2]
    end = processor.tokenizer.convert_ids_to_tokens(processor.eos)
    if not after.startswith(end):
        raise ValueError(f"{name}: the chat template does not show a content with {end} after it")
    tokens = _tokenised(processor, after.removeprefix(end) if ended else after, len(images), name)
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


def bucket(n: int, buckets: Sequence[int]) -> int:
    """The smallest of ``buckets`` that holds n. Raises OverBudget if none does."""
    fitting = [size for size in buckets if size >= n]
    if not fitting:
        raise OverBudget(f"{n} does not fit the largest bucket of {sorted(buckets)}")
    return min(fitting)


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
    sizes = [(image.height, image.width) for image in opened]
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
    blocks = [patchify(image, spec, f"{name}, image {k}") for k, image in enumerate(opened)]
    return _place(processor, tokens, [grid_of(size, spec) for size in sizes], blocks)


def _tokens(processor: Processor, conversation: Messages, images: int, name: str) -> Int32[np.ndarray, "p"]:
    """Token ids of a conversation with one image pad for each of the ``images``."""
    _refuse_special(processor, conversation, name)
    return _tokenised(processor, rendered(processor, conversation), images, name)


def _refuse_special(processor: Processor, conversation: Messages, name: str) -> None:
    forbidden = processor.tokenizer.convert_ids_to_tokens(list(processor.placeholders))
    for message in conversation:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [c.get("text", "") for c in content]
        found = [token for token in forbidden for part in parts if token in part]
        if found:
            raise ValueError(
                f"{name}: the text holds the special token {found[0]}, which would be taken for an image."
                f' Mark images by "{IMAGE}" and remove it.'
            )


def rendered(processor: Processor, conversation: Messages) -> str:
    """The chat template's text, the assistant's turn opened at its end."""
    template = processor.tokenizer.apply_chat_template
    return template(list(conversation), tokenize=False, add_generation_prompt=True)


def _tokenised(processor: Processor, text: str, images: int, name: str) -> Int32[np.ndarray, "p"]:
    tokens = np.array(processor.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    pads = int((tokens == processor.image_pad).sum())
    check_placeholders(pads, images, name)
    return tokens


def check_placeholders(placeholders: int, images: int, name: str) -> None:
    """Raises ValueError naming the row unless its text has a placeholder for each image."""
    if placeholders != images:
        raise ValueError(
            f"{name}: {images} images but {placeholders} placeholders in the text."
            f' Write one "{IMAGE}" for each image.'
        )


def _need(
    processor: Processor, spec: ImageSpec, length: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """(tokens, patch slots) of a prompt of ``length`` tokens before its image pads are expanded."""
    blocks = [(rows // spec.merge, cols // spec.merge) for rows, cols in (grid_of(s, spec) for s in sizes)]
    windows = sum(window_count(rows, columns, processor.window) for rows, columns in blocks)
    return length + sum(r * c - 1 for r, c in blocks), windows * processor.slots


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
) -> ImageSpec:
    """The spec with the largest max_pixels, in whole tokens an image, under which the prompt fits.

    If none does, the spec of one token an image, which `encode` then finds over budget.
    """
    spec = processor.image
    area = (spec.patch * spec.merge) ** 2
    limits = [need[0], spec.max_pixels // area]
    limits += [prompt_budget] if prompt_budget is not None else []
    limits += [patch_budget // spec.merge**2] if patch_budget is not None else []
    for tokens in range(min(limits), 0, -1):
        spec = replace(spec, max_pixels=tokens * area, min_pixels=min(spec.min_pixels, tokens * area))
        if _fits(_need(processor, spec, length, sizes), prompt_budget, patch_budget):
            break
    return spec


def _place(
    processor: Processor,
    tokens: Int32[np.ndarray, "t"],
    grids: Sequence[tuple[int, int]],
    blocks: Sequence[np.ndarray],
) -> Encoded:
    """Expand each image's one pad, and lay its patches out in window slots."""
    merge, side, unit = processor.image.merge, processor.window, processor.image.merge**2
    merged = [(rows // merge, columns // merge) for rows, columns in grids]
    spots = np.flatnonzero(tokens == processor.image_pad)
    counts = np.ones(len(tokens), np.int64)
    counts[spots] = [rows * columns for rows, columns in merged]
    starts = (np.cumsum(counts) - counts)[spots]
    length = int(counts.sum())
    position, after = positions(length, [(int(s), *g) for s, g in zip(starts, merged, strict=True)])
    windows = [window_count(rows, columns, side) for rows, columns in merged]
    n = sum(windows) * processor.slots
    encoded = Encoded(
        tokens=np.repeat(tokens, counts),
        position=position,
        next_position=after,
        image_token=np.full(length, -1, np.int32),
        patches=np.zeros((n, 3 * processor.image.patch**2), np.uint8),
        patch_position=np.zeros((n, 2), np.int32),
        patch_image=np.full(n, -1, np.int32),
    )
    first = 0  # merge-block place of the image's first window
    for k, (rows, columns) in enumerate(merged):
        place = first + window_blocks(rows, columns, side)
        slot = (place[:, None] * unit + np.arange(unit)).reshape(-1)
        encoded.image_token[starts[k] : starts[k] + rows * columns] = place
        encoded.patches[slot] = blocks[k]
        encoded.patch_position[slot] = patch_grid(*grids[k], merge)
        encoded.patch_image[slot] = k
        first += windows[k] * side**2
    return encoded
