"""Examples of a data set side by side in one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmrl.data.inspection_examples import Example
from mmrl.models.prompts import IMAGE

WIDE, PICTURE = 320, 240  # pixels of a cell: its width, and the height of its pictures
EDGE = 8
FONT_SIZE = 11
LINES = 14  # of text, at most
LINE = FONT_SIZE + 3
LETTERS_A_LINE = 48
PAPER, INK, FAINT, RIGHT = "#ffffff", "#111111", "#777777", "#0a6b2d"


def contact_sheet(examples: Sequence[Example], columns: int = 4) -> Image.Image:
    """A picture of examples: images, question and answer, for people. Raises ValueError if there are none."""
    if not examples:
        raise ValueError("there is no usable row to show")
    columns = min(columns, len(examples))
    rows = -(-len(examples) // columns)
    told = [_lines(example) for example in examples]
    high = PICTURE + (max(map(len, told)) + 1) * LINE
    sheet = Image.new("RGB", (WIDE * columns, high * rows), PAPER)
    pen, font = ImageDraw.Draw(sheet), _font()
    for k, example in enumerate(examples):
        left, top = WIDE * (k % columns), high * (k // columns)
        _paste(sheet, example.pictures, left, top)
        for number, (line, colour) in enumerate(told[k]):
            pen.text((left + EDGE, top + PICTURE + number * LINE), line, fill=colour, font=font)
    return sheet


def _paste(sheet: Image.Image, pictures: Sequence[Image.Image], left: int, top: int) -> None:
    """Pictures in as many columns as rows, each as large as its part of the cell allows."""
    across = next((n for n in range(1, len(pictures) + 1) if n * n >= len(pictures)), 1)
    down = -(-len(pictures) // across) or 1
    wide, high = (WIDE - EDGE) // across, (PICTURE - EDGE) // down
    for k, picture in enumerate(pictures):
        scale = min((wide - EDGE) / picture.width, (high - EDGE) / picture.height)
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
        place = (left + EDGE + wide * (k % across), top + EDGE + high * (k // across))
        sheet.paste(picture.resize(size, way), place)


def _lines(example: Example) -> list[tuple[str, str]]:
    """What is written below the pictures, each line with its colour: name, question, answer."""
    question = example.problem.replace(IMAGE, " ").strip()
    lines = [line for part in question.splitlines() for line in textwrap.wrap(part, LETTERS_A_LINE)]
    right = textwrap.wrap(example.answer, LETTERS_A_LINE)
    if len(right) > 3:
        right = [*right[:2], "..."]
    if len(lines) > LINES - 1 - len(right):
        lines = [*lines[: LINES - 2 - len(right)], "..."]
    name = f"{example.id}  {example.verifier}"[:LETTERS_A_LINE]
    return [(name, FAINT), *((line, INK) for line in lines), *((line, RIGHT) for line in right)]


def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, which has more letters than Pillow's own."""
    import matplotlib

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, FONT_SIZE)
