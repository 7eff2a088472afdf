"""Examples of a data set to look at: their text, and their images small and encoded anew."""

from __future__ import annotations

import io
import json
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmrl.data.inspection import Findings
from mmrl.data.inspection_report import shown
from mmrl.data.sources import Source
from mmrl.models.images import open_image, to_rgb
from mmrl.sample import Sample

SIDE = 320  # pixels of the longer side of a picture
PICTURES = 8  # of a row
LONGEST = 2000  # characters of a text


class Example(NamedTuple):
    """A row to look at; its text is `shown`."""

    id: str
    problem: str
    answer: str
    verifier: str
    facts: str  # JSON; "" if there are none
    written: str  # what it gives to imitate
    pictures: tuple[Image.Image, ...]  # RGB
    note: str  # what is not to be seen


def examples(source: Source, found: Findings, count: int) -> list[Example]:
    """So many of the usable rows, evenly spread over the source."""
    places = np.unique(np.linspace(0, len(found.usable) - 1, min(count, len(found.usable))).astype(int))
    return [example(source[int(found.usable[place])]) for place in places]


def example(sample: Sample) -> Example:
    """What there is to see of a row; pixels that cannot be decoded are noted."""
    pictures, notes = [], []
    for k, image in enumerate(sample.images[:PICTURES]):
        try:
            pictures.append(small(image, f"image {k}"))
        except Exception as error:  # Pillow's decoders raise what they like at damaged files
            notes.append(f"image {k} cannot be decoded: {error}")
    if len(sample.images) > PICTURES:
        notes.append(f"{len(sample.images) - PICTURES} more images")
    written = "\n".join([*sample.turns] or [sample.solution or ""])
    return Example(
        id=shown(sample.id, 100),
        problem=shown(sample.problem, LONGEST, lines=True),
        answer=shown(sample.answer, LONGEST, lines=True),
        verifier=shown(sample.verifier, 100),
        facts=shown(json.dumps(sample.facts, ensure_ascii=False), LONGEST) if sample.facts else "",
        written=shown(written, LONGEST, lines=True),
        pictures=tuple(pictures),
        note=shown("; ".join(notes), LONGEST),
    )


def small(image: bytes | str, name: str) -> Image.Image:
    """An image in RGB, its longer side at most `SIDE` pixels. Raises whatever damage makes Pillow raise."""
    with open_image(image, name) as opened:
        opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a part of its size
        picture = to_rgb(opened)
    picture.thumbnail((SIDE, SIDE))
    return picture


def encoded(picture: Image.Image) -> tuple[str, bytes]:
    """Its media type and bytes: PNG if that is small, as for drawings, else JPEG."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    if out.tell() < 20_000:
        return "image/png", out.getvalue()
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return "image/jpeg", out.getvalue()
