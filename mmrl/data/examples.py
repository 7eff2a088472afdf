"""Examples of a data set to look at: text, small pictures, and a contact sheet of them."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmrl.atomic import atomic_file
from mmrl.models.images import open_image, to_rgb
from mmrl.models.prompts import IMAGE
from mmrl.sample import Sample

SIDE = 320  # pixels of the longer side of a picture
PICTURES = 8  # of a row
LONGEST = 2000  # characters of a text
JOINERS = "\u200c\u200d"  # unprintable, but needed to write several languages

CELL_WIDTH, PICTURE_HEIGHT, EDGE = 320, 240, 8  # pixels of a contact sheet
FONT_SIZE, LINE_HEIGHT, LINE_LETTERS, MOST_LINES = 11, 14, 48, 14
PAPER, INK, FAINT, RIGHT = "#ffffff", "#111111", "#777777", "#0a6b2d"


class Example(NamedTuple):
    """A row to look at; its text is `printable`."""

    id: str
    problem: str
    answer: str
    verifier: str
    facts: str  # JSON; "" if there are none
    demonstration: str  # solution or turns
    pictures: tuple[Image.Image, ...]  # RGB
    note: str  # what is not to be seen


def printable(text: str, longest: int = 200, *, lines: bool = False) -> str:
    """Text of a data set that does nothing to a terminal or a page: no control or direction characters.

    Longer text is cut; line breaks stay where ``lines`` is set.
    """
    cut = text if len(text) <= longest else text[:longest] + "..."
    kept = JOINERS + ("\n" if lines else "")
    return "".join(
        char if char.isprintable() or char in kept else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in cut
    )


def example(sample: Sample) -> Example:
    """The example of a row; pixels that cannot be decoded are noted."""
    pictures, notes = [], []
    for k, image in enumerate(sample.images[:PICTURES]):
        try:
            pictures.append(thumbnail(image, f"image {k}"))
        except Exception as error:  # Pillow's decoders raise what they like at damaged files
            notes.append(f"image {k} cannot be decoded: {error}")
    if len(sample.images) > PICTURES:
        notes.append(f"{len(sample.images) - PICTURES} more images")
    demonstration = "\n".join([*sample.turns] or [sample.solution or ""])
    return Example(
        id=printable(sample.id, 100),
        problem=printable(sample.problem, LONGEST, lines=True),
        answer=printable(sample.answer, LONGEST, lines=True),
        verifier=printable(sample.verifier, 100),
        facts=printable(json.dumps(sample.facts, ensure_ascii=False), LONGEST) if sample.facts else "",
        demonstration=printable(demonstration, LONGEST, lines=True),
        pictures=tuple(pictures),
        note=printable("; ".join(notes), LONGEST),
    )


def thumbnail(image: bytes | str, name: str) -> Image.Image:
    """An image in RGB, its longer side at most `SIDE` pixels. Raises whatever damage makes Pillow raise."""
    with open_image(image, name) as opened:
        opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a part of its size
        picture = to_rgb(opened)
    picture.thumbnail((SIDE, SIDE))
    return picture


def encode_picture(picture: Image.Image) -> tuple[str, bytes]:
    """Media type and bytes of a picture: PNG if that is small, as for drawings, else JPEG."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    if out.tell() < 20_000:
        return "image/png", out.getvalue()
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return "image/jpeg", out.getvalue()


def write_contact_sheet(path: Path, examples: Sequence[Example]) -> None:
    """Draw examples to a PNG file, whole or not at all."""
    with atomic_file(path) as part:
        contact_sheet(examples).save(part, format="png")


def contact_sheet(examples: Sequence[Example], columns: int = 4) -> Image.Image:
    """A picture of examples side by side. Raises ValueError if there are none."""
    if not examples:
        raise ValueError("there is no usable row to show")
    import matplotlib

    # The font that comes with matplotlib has more letters than Pillow's own.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)
    columns = min(columns, len(examples))
    texts = [_cell_lines(example) for example in examples]
    height = PICTURE_HEIGHT + (max(map(len, texts)) + 1) * LINE_HEIGHT
    sheet = Image.new("RGB", (CELL_WIDTH * columns, height * -(-len(examples) // columns)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for k, example in enumerate(examples):
        left, top = CELL_WIDTH * (k % columns), height * (k // columns)
        _paste(sheet, example.pictures, left, top)
        for number, (line, colour) in enumerate(texts[k]):
            place = (left + EDGE, top + PICTURE_HEIGHT + number * LINE_HEIGHT)
            pen.text(place, line, fill=colour, font=font)
    return sheet


def _paste(sheet: Image.Image, pictures: Sequence[Image.Image], left: int, top: int) -> None:
    """Pictures in as many columns as rows, each as large as its part of the cell allows."""
    across = math.isqrt(max(len(pictures) - 1, 0)) + 1
    down = -(-len(pictures) // across) or 1
    width, height = (CELL_WIDTH - EDGE) // across, (PICTURE_HEIGHT - EDGE) // down
    room = (width - EDGE, height - EDGE)
    for k, picture in enumerate(pictures):
        smaller = picture.width <= room[0] and picture.height <= room[1]
        method = Image.Resampling.NEAREST if smaller else Image.Resampling.BICUBIC
        place = (left + EDGE + width * (k % across), top + EDGE + height * (k // across))
        sheet.paste(ImageOps.contain(picture, room, method), place)


def _cell_lines(example: Example) -> list[tuple[str, str]]:
    """Lines below the pictures, each with its colour: name, question, answer."""
    question = example.problem.replace(IMAGE, " ").strip()
    lines = [line for part in question.splitlines() for line in textwrap.wrap(part, LINE_LETTERS)]
    answer = textwrap.wrap(example.answer, LINE_LETTERS)
    if len(answer) > 3:
        answer = [*answer[:2], "..."]
    if len(lines) > MOST_LINES - 1 - len(answer):
        lines = [*lines[: MOST_LINES - 2 - len(answer)], "..."]
    name = f"{example.id}  {example.verifier}"[:LINE_LETTERS]
    return [(name, FAINT), *((line, INK) for line in lines), *((line, RIGHT) for line in answer)]
