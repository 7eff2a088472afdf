"""Rows out of images alone: pretext questions, each a pure function of (seed, index).

A row does not depend on which others are made, nor on their order. Pictures come in an order that the seed
fixes anew for every pass through them, tasks in turn. A picture that cannot be read, or is not suited to a
question, is passed over for the next one in that order.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from mmrl.tasks.pretext_captions import Caption, caption_error
from mmrl.tasks.pretext_images import Pictures, square, whole
from mmrl.tasks.pretext_tasks import TASKS, Options, PretextQuestion

CAPTION_ERROR = "caption_error"
NAMES = (*TASKS, CAPTION_ERROR)
TRIES = 64  # pictures in turn of which one must do
AHEAD = 64  # rows that are made at once
QUALITY = 90  # of JPEG


@dataclass(frozen=True)
class Material:
    """What rows are made of."""

    pictures: Pictures
    tasks: tuple[str, ...]
    options: Options = field(default_factory=Options)
    captioned: Pictures | None = None  # the pictures of the captions, in their order
    captions: Sequence[Caption] = ()
    words: Mapping[str, Counter[str]] = field(default_factory=dict)  # their vocabulary

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in NAMES]
        if unknown or not self.tasks:
            raise ValueError(f"pretext tasks {', '.join(unknown)!r}: choose from {', '.join(NAMES)}")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"pretext tasks {', '.join(self.tasks)}: one stands twice")
        if CAPTION_ERROR in self.tasks and not self.captions:
            raise ValueError(f"{CAPTION_ERROR} needs captions of the images")
        if not self.pictures.length:
            raise ValueError("there are no images")


class Made(NamedTuple):
    """A row, and the pictures that were passed over for it, with the reasons."""

    row: dict[str, Any]
    passed_over: tuple[tuple[str, str], ...]


def example(material: Material, seed: int, index: int) -> Made:
    """The row at a position.

    Returns: ``problem``, ``answer``, ``images`` (JPEG bytes without a name), ``verifier``, ``facts`` (the
    ``options`` of a choice), ``kind`` (the task), ``origin`` (the image).

    Raises ValueError if none of many pictures will do.
    """
    task = material.tasks[index % len(material.tasks)]
    passed_over: list[tuple[str, str]] = []
    pool = material.pictures if task != CAPTION_ERROR or material.captioned is None else material.captioned
    order = _order(seed, index, pool.length)
    for tried in range(min(TRIES, pool.length)):
        rng = np.random.default_rng([seed, index, tried])
        chosen = order(tried)
        try:
            question = _question(material, task, pool, chosen, order(tried + 1), rng)
        except ValueError as error:
            passed_over.append((pool.id(chosen), str(error)))
            continue
        return Made(_row(question, task, pool.id(chosen)), tuple(passed_over))
    last, why = passed_over[-1]
    raise ValueError(f"{task}: none of {len(passed_over)} pictures in turn will do; the last, {last}: {why}")


def rows(
    material: Material,
    seed: int,
    count: int,
    *,
    passed_over: Callable[[str, str], object],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """The first ``count`` rows, in order.

    Args: ``passed_over`` is told the pictures that would not do, and why; ``progress``, rows made and wanted.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, AHEAD):
            wanted = range(start, min(start + AHEAD, count))
            for made in pool.map(lambda index: example(material, seed, index), wanted):
                for name, why in made.passed_over:
                    passed_over(name, why)
                yield made.row
            if progress:
                progress(wanted.stop, count)


def _order(seed: int, index: int, length: int) -> Callable[[int], int]:
    """The picture for a row, and those after it, in the order of this pass through all."""
    turn, position = divmod(index, length)
    order = _pass(seed, turn, length)
    return lambda step: int(order[(position + step) % length])


@lru_cache(maxsize=2)
def _pass(seed: int, turn: int, length: int) -> Int64[np.ndarray, "n"]:
    """The order of a pass; kept, as all rows of the pass need it."""
    return np.random.default_rng([seed, turn]).permutation(length)


def _question(
    material: Material, task: str, pool: Pictures, chosen: int, after: int, rng: np.random.Generator
) -> PretextQuestion:
    side = material.options.side
    image, name = pool.image(chosen), pool.id(chosen)
    if task == CAPTION_ERROR:
        return caption_error(whole(image, name, side), material.captions[chosen].text, material.words, rng)
    picture = square(image, name, side, rng)
    others: list[Image.Image] = []
    if task == "masked_region" and after != chosen:
        with contextlib.suppress(ValueError):  # it is named when its own turn comes
            others.append(square(pool.image(after), pool.id(after), side, rng))
    return TASKS[task](picture, others, rng, material.options)


def _row(question: PretextQuestion, task: str, origin: str) -> dict[str, Any]:
    return {
        "problem": question.problem,
        "answer": question.answer,
        "images": [{"bytes": _jpeg(picture)} for picture in question.pictures],
        "verifier": question.verifier,
        "facts": {"options": list(question.options)} if question.options else {},
        "kind": task,
        "origin": origin,
    }


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
