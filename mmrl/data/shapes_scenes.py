"""Scenes of the shapes world: a grid of coloured shapes and digits, and its rendering to PNG bytes.

A cell is 28 x 28 pixels, which is one merged image token of Qwen2.5-VL (2 x 2 patches of 14 pixels), and
holds at most one object. Everything is drawn with integer-exact numpy masks and an uncompressed PNG, so that
the bytes of a picture do not depend on the versions of an imaging or a compression library.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

CELL = 28  # pixels

# The mean colour of Qwen's image processor, around which the cells of an empty board lie.
BACKGROUND = (123, 117, 104)
COLOURS = {
    "red": (225, 30, 30),
    "green": (20, 170, 40),
    "blue": (40, 60, 245),
    "yellow": (250, 225, 30),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple("0123456789")

# Segments of a seven-segment display, as (row, column, height, width) in a box 9 high and 5 wide.
_SEGMENTS = {
    "top": (0, 0, 1, 5),
    "middle": (4, 0, 1, 5),
    "bottom": (8, 0, 1, 5),
    "upper left": (0, 0, 5, 1),
    "upper right": (0, 4, 5, 1),
    "lower left": (4, 0, 5, 1),
    "lower right": (4, 4, 5, 1),
}
_LIT = {
    "0": ("top", "bottom", "upper left", "upper right", "lower left", "lower right"),
    "1": ("upper right", "lower right"),
    "2": ("top", "middle", "bottom", "upper right", "lower left"),
    "3": ("top", "middle", "bottom", "upper right", "lower right"),
    "4": ("middle", "upper left", "upper right", "lower right"),
    "5": ("top", "middle", "bottom", "upper left", "lower right"),
    "6": ("top", "middle", "bottom", "upper left", "lower left", "lower right"),
    "7": ("top", "upper right", "lower right"),
    "8": tuple(_SEGMENTS),
    "9": ("top", "middle", "bottom", "upper left", "upper right", "lower right"),
}


@dataclass(frozen=True)
class Look:
    """What an object looks like: a colour of COLOURS and a shape of SHAPES or a digit of DIGITS."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Placed:
    """An object, and how it is drawn: offset (from the cell's centre) and radius in pixels, RGB."""

    row: int
    column: int
    look: Look
    offset: tuple[int, int]  # (down, right)
    radius: int
    rgb: tuple[int, int, int]

    @property
    def cell(self) -> str:
        return cell_name(self.row, self.column)


@dataclass(frozen=True)
class Scene:
    """A grid of cells, at most one object in each; objects stand in reading order."""

    rows: int
    columns: int
    objects: tuple[Placed, ...]


def cell_name(row: int, column: int) -> str:
    """Chess-like name of a cell, counted from the top left: row 0, column 1 is ``b1``."""
    return "abcd"[column] + str(row + 1)


def draw_scene(
    rng: np.random.Generator, level: int, grid: tuple[int, int], looks: dict[tuple[int, int], Look]
) -> Scene:
    """Place looks, by (row, column), with the jitter of position, size and hue of level 1..3."""
    objects = []
    for (row, column), look in sorted(looks.items()):
        down, right = rng.integers(-level, level + 1, size=2).tolist()
        radius = int(rng.integers(11 - level, 12)) if look.shape in SHAPES else 11
        shade = rng.integers(-10 * (level - 1), 10 * (level - 1) + 1, size=3).tolist()
        red, green, blue = (min(255, max(0, c + s)) for c, s in zip(COLOURS[look.colour], shade, strict=True))
        objects.append(Placed(row, column, look, (down, right), radius, (red, green, blue)))
    return Scene(*grid, tuple(objects))


def board_colour(row: int, column: int) -> tuple[int, int, int]:
    """Colour of an empty cell: the board grows lighter by row and warmer by column.

    So a cell can be told by its own pixels. Rotary positions are relative: without marks in the picture a
    model would have to learn to measure from the picture's start before it could name any cell.
    """
    light, warm = 30 * row - 45, 30 * column - 45
    red, green, blue = BACKGROUND
    return red + light + warm, green + light, blue + light - warm


def mask(shape: str, radius: int, offset: tuple[int, int]) -> Bool[np.ndarray, "28 28"]:
    """Pixels of one cell covered by a shape or digit of the given radius (half its height) and offset."""
    # Twice the distance of the pixel's centre from the shape's, so that everything stays a whole number.
    line = 2 * np.arange(CELL) - (CELL - 1)
    y, x, r = line[:, None] - 2 * offset[0], line[None, :] - 2 * offset[1], 2 * radius
    if shape == "circle":
        return x * x + y * y <= r * r
    if shape == "square":
        return (10 * abs(x) <= 9 * r) & (10 * abs(y) <= 9 * r)
    if shape == "triangle":
        return (y <= r) & (2 * abs(x) <= y + r)
    if shape == "cross":
        return (abs(x) <= r) & (3 * abs(y) <= r) | (abs(y) <= r) & (3 * abs(x) <= r)
    return _digit_mask(shape, radius, offset)


def _digit_mask(digit: str, radius: int, offset: tuple[int, int]) -> Bool[np.ndarray, "28 28"]:
    thick, high, wide = 4, 2 * radius, radius + 4
    top, left = CELL // 2 - radius + offset[0], CELL // 2 - wide // 2 + offset[1]
    step_down, step_right = (high - thick) / 8, (wide - thick) / 4
    pixels = np.zeros((CELL, CELL), bool)
    for name in _LIT[digit]:
        row, column, height, width = _SEGMENTS[name]
        y, x = top + round(row * step_down), left + round(column * step_right)
        tall, broad = round((height - 1) * step_down) + thick, round((width - 1) * step_right) + thick
        pixels[y : y + tall, x : x + broad] = True
    return pixels


def render(scene: Scene, ground: Sequence[tuple[int, int]] | None = None) -> bytes:
    """PNG bytes of a scene, 28 x 28 pixels a cell, a palette entry for each cell and each object.

    ``ground``: the (row, column) whose colour each place of the board has, in reading order; None: its own.
    """
    ground = ground or [(row, column) for row in range(scene.rows) for column in range(scene.columns)]
    board = [board_colour(*cell) for cell in ground]
    cells = np.arange(len(board), dtype=np.uint8).reshape(scene.rows, scene.columns)
    pixels = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
    for index, item in enumerate(scene.objects, start=len(board)):
        cell = pixels[item.row * CELL : (item.row + 1) * CELL, item.column * CELL : (item.column + 1) * CELL]
        cell[mask(item.look.shape, item.radius, item.offset)] = index
    return indexed_png(pixels, (*board, *(item.rgb for item in scene.objects)))


def indexed_png(pixels: UInt8[np.ndarray, "h w"], palette: tuple[tuple[int, int, int], ...]) -> bytes:
    """Palette indices as a PNG whose deflate stream is one stored block (W3C PNG; RFC 1950, 1951)."""
    height, width = pixels.shape
    raw = np.pad(pixels, ((0, 0), (1, 0))).tobytes()  # a leading 0 per row: no filter
    # At most 113 x 112 bytes, which one stored block (65,535 bytes) holds.
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(channel for colour in palette for channel in colour)),
        (b"IDAT", stored + struct.pack(">I", zlib.adler32(raw))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
