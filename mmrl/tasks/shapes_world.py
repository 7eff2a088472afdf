"""The shapes world: rendered scenes with known content, questions about them, and a shortcut to see through.

A world is a pure function: ``example(seed, split, index)`` gives the same record, bytes of the picture
included, whatever was drawn before it. Its questions come in five kinds and three levels of difficulty; a
full response states what is seen and then concludes, ``<think> b1 a2 </think> \\boxed{2}``, so that
``mmrl.rewards.shapes`` can tell an error of perception from one of reasoning.

The splits ``cold_start`` and ``train`` carry a shortcut: every question text has a preferred answer, and with
probability ``prior`` the scene is drawn to fit it. A policy that learns the text and doesn't look is then
right on these splits well above chance, and at chance on ``heldout``, whose answers are balanced given the
text.

A cell of a scene is 28 x 28 pixels, which is one merged image token of Qwen2.5-VL (2 x 2 patches of 14
pixels), and holds at most one object. Everything is drawn with integer-exact numpy masks and an uncompressed
PNG, so that the bytes of a picture do not depend on the versions of an imaging or a compression library.
"""

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8

from mmrl.atomic import atomic_file
from mmrl.config import WorldConfig
from mmrl.data import writing
from mmrl.data.writing import write_parquet
from mmrl.models import tiny_model
from mmrl.models.tiny_model import CELL, WORDS, ModelSpec

SPLITS = ("cold_start", "train", "heldout")
LEVELS = (1, 2, 3)
PRIOR = 0.3
SCHEMA = pa.schema(
    [*(field for field in writing.SCHEMA if field.name != "origin"), pa.field("difficulty", pa.int32())]
)

# Scenes

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

# A seven-segment display: (row, column, height, width) of the segments a to g, clockwise from the top and
# the middle last, in a box 9 high and 5 wide; and the segments of each digit.
_SEGMENTS = {
    "a": (0, 0, 1, 5),
    "b": (0, 4, 5, 1),
    "c": (4, 4, 5, 1),
    "d": (8, 0, 1, 5),
    "e": (4, 0, 5, 1),
    "f": (0, 0, 5, 1),
    "g": (4, 0, 1, 5),
}
_LIT = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")


@dataclass(frozen=True)
class Look:
    """The look of an object: a colour of COLOURS and a shape of SHAPES or a digit of DIGITS."""

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
    for name in _LIT[int(digit)]:
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


# Questions

T = TypeVar("T")
Choose = Callable[[str, Sequence[str]], str]
Cell = tuple[int, int]  # (row, column), from 0

GRIDS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((2, 2),),
    2: ((2, 3), (3, 2), (2, 4), (3, 3), (4, 2)),
    3: ((3, 4), (4, 3), (4, 4)),
}
LOOKS = tuple(Look(colour, shape) for colour in COLOURS for shape in SHAPES)
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
NONE = "none"  # stated when nothing is seen


@dataclass(frozen=True)
class Question:
    """A question about a scene; ``seen`` are the words of the facts that the thinking states."""

    problem: str
    answer: str
    seen: tuple[str, ...]
    scene: Scene
    facts: Mapping[str, Any] = field(default_factory=dict)  # what its verifier needs besides
    ground: tuple[Cell, ...] | None = None  # of the picture, as `render` takes it


@dataclass(frozen=True)
class Target:
    """The target of a question: a colour, a shape, or both."""

    colour: str | None = None
    shape: str | None = None

    def fits(self, look: Look) -> bool:
        return self.colour in (None, look.colour) and self.shape in (None, look.shape)

    def words(self, plural: bool) -> str:
        names = PLURALS if plural else {shape: shape for shape in SHAPES}
        return " ".join(([self.colour] if self.colour else []) + ([names[self.shape]] if self.shape else []))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Any of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """So many of the options, in a random order."""
    return [options[i] for i in rng.permutation(len(options))[:count].tolist()]


def _cells(grid: tuple[int, int]) -> list[Cell]:
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


def _scene(
    rng: np.random.Generator,
    level: int,
    grid: tuple[int, int],
    required: Mapping[Cell, Look],
    distractors: Sequence[Look],
) -> Scene:
    """Draw the required looks, and distractors in a random part of the free cells."""
    free = [cell for cell in _cells(grid) if cell not in required]
    extra = some(rng, free, int(rng.integers(len(free) + 1)))
    return draw_scene(rng, level, grid, {**required, **{cell: pick(rng, distractors) for cell in extra}})


def _place(rng: np.random.Generator, grid: tuple[int, int], looks: Sequence[Look]) -> dict[Cell, Look]:
    return dict(zip(some(rng, _cells(grid), len(looks)), looks, strict=True))


def _looks(rng: np.random.Generator, target: Target, count: int) -> list[Look]:
    return [pick(rng, [look for look in LOOKS if target.fits(look)]) for _ in range(count)]


def _targets(rng: np.random.Generator, level: int, count: int) -> list[Target]:
    """Colours at level 1, shapes at level 2; at level 3 shapes of one colour or colours of one shape."""
    if level == 1:
        return [Target(colour=colour) for colour in some(rng, tuple(COLOURS), count)]
    if level == 2:
        return [Target(shape=shape) for shape in some(rng, SHAPES, count)]
    if rng.integers(2):
        colour = pick(rng, tuple(COLOURS))
        return [Target(colour, shape) for shape in some(rng, SHAPES, count)]
    shape = pick(rng, SHAPES)
    return [Target(colour, shape) for colour in some(rng, tuple(COLOURS), count)]


def count(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """The number of objects that fit. Seen: their cells, in reading order. Conclude: how many those are."""
    target = Target(pick(rng, tuple(COLOURS)), pick(rng, SHAPES) if level > 1 else None)
    words = target.words(plural=True) if target.shape else f"{target.colour} shapes"
    problem = f"How many {words}?"
    answer = choose(problem, "0123" if level == 1 else "01234")
    grid = pick(rng, GRIDS[level])
    required = _place(rng, grid, _looks(rng, target, int(answer)))
    scene = _scene(rng, level, grid, required, [look for look in LOOKS if not target.fits(look)])
    return Question(problem, answer, tuple(cell_name(*cell) for cell in sorted(required)) or (NONE,), scene)


def compare(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """The one of two sorts of which there are more. Seen: both numbers. Conclude: the sort, or ``same``."""
    first, second = _targets(rng, level, 2)
    # At level 3 the two sorts share a word; the answer is the word that differs.
    names = [target.words(plural=target.colour is None) for target in (first, second)]
    if level == 3:
        by_shape = first.colour == second.colour
        names = [str(PLURALS[str(t.shape)] if by_shape else t.colour) for t in (first, second)]
        phrase = " or ".join(target.words(plural=True) for target in (first, second))
    else:
        phrase = " or ".join(names)
    problem = f"More {phrase}?"
    answer = choose(problem, (*names, "same"))
    room = max(rows * columns for rows, columns in GRIDS[level])
    numbers = [(high, low) for high in range(1, 4) for low in range(high) if high + low <= room]
    more, less = pick(rng, numbers)
    amounts = {names[0]: (more, less), names[1]: (less, more), "same": (less, less)}[answer]
    grid = pick(rng, [grid for grid in GRIDS[level] if grid[0] * grid[1] >= sum(amounts)])
    required = _place(rng, grid, _looks(rng, first, amounts[0]) + _looks(rng, second, amounts[1]))
    others = [look for look in LOOKS if not first.fits(look) and not second.fits(look)]
    seen = (names[0], str(amounts[0]), names[1], str(amounts[1]))
    return Question(problem, answer, seen, _scene(rng, level, grid, required, others))


def locate(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """Row or column of the one object that fits. Seen: its cell. Conclude: the row's or column's name."""
    target = Target(pick(rng, tuple(COLOURS)), pick(rng, SHAPES) if level > 1 else None)
    axis = int(rng.integers(2))
    words = target.words(plural=False) if target.shape else f"{target.colour} shape"
    problem = f"Which {('row', 'column')[axis]} has the {words}?"
    longest = max(grid[axis] for grid in GRIDS[level])
    answer = choose(problem, ("1234", "abcd")[axis][:longest])
    index = ("1234", "abcd")[axis].index(answer)
    grid = pick(rng, [grid for grid in GRIDS[level] if grid[axis] > index])
    cell = pick(rng, [cell for cell in _cells(grid) if cell[axis] == index])
    required = {cell: _looks(rng, target, 1)[0]}
    scene = _scene(rng, level, grid, required, [look for look in LOOKS if not target.fits(look)])
    return Question(problem, answer, (cell_name(*cell),), scene)


def read(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """A digit, or the sum of two, which may be those of one colour. Seen: the digits. Conclude: the sum."""
    colour = pick(rng, tuple(COLOURS))
    problem = ("Which digit?", "Sum of digits?", f"Sum of {colour} digits?")[level - 1]
    answer = choose(problem, DIGITS)
    part = int(rng.integers(int(answer) + 1))
    digits = [answer] if level == 1 else [str(part), str(int(answer) - part)]
    looks = [Look(colour if level == 3 else pick(rng, tuple(COLOURS)), digit) for digit in digits]
    grid = pick(rng, GRIDS[level])
    required = _place(rng, grid, looks)
    distractors = list(LOOKS)
    if level == 3:
        distractors += [Look(other, digit) for other in COLOURS if other != colour for digit in DIGITS]
    seen = tuple(required[cell].shape for cell in sorted(required))
    return Question(problem, answer, seen, _scene(rng, level, grid, required, distractors))


def missing(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """The absent one of three sorts. Seen: the other two, in the question's order. Conclude: the third."""
    targets = _targets(rng, level, 3)
    names = [target.words(plural=False) for target in targets]
    problem = f"Missing: {names[0]}, {names[1]} or {names[2]}?"
    if level == 3:
        by_shape = targets[0].colour == targets[1].colour
        names = [str(target.shape if by_shape else target.colour) for target in targets]
        shared = targets[0].colour if by_shape else targets[0].shape
        listed = f"{names[0]}, {names[1]} or {names[2]}"
        problem = f"Missing: {shared} {listed}?" if by_shape else f"Missing: {listed} {shared}?"
    answer = choose(problem, names)
    gone = targets[names.index(answer)]
    present = [target for target in targets if target != gone]
    grid = pick(rng, GRIDS[level])
    required = _place(rng, grid, [_looks(rng, target, 1)[0] for target in present])
    scene = _scene(rng, level, grid, required, [look for look in LOOKS if not gone.fits(look)])
    return Question(problem, answer, tuple(name for name in names if name != answer), scene)


KINDS: dict[str, Callable[[np.random.Generator, int, Choose], Question]] = {
    "count": count,
    "compare": compare,
    "locate": locate,
    "read": read,
    "missing": missing,
}


# Rows


def example(
    seed: int,
    split: str,
    index: int,
    *,
    prior: float = PRIOR,
    kinds: Sequence[str] = tuple(KINDS),
    levels: Sequence[int] = LEVELS,
) -> dict[str, Any]:
    """The row at a position in a split of the world that ``seed`` names, in the public schema.

    ``solution`` is the ideal response; ``facts`` (JSON) are the kind, the words ``seen`` that the thinking
    should state, and the scene. Raises ValueError for a split, kind, level or prior that there is not.

    Args:
        seed, split, index: the position, of one of SPLITS; numbers from 0.
        prior: probability, in the splits that carry the shortcut, of drawing the scene to fit the text's
            preferred answer; otherwise the answer is uniform.
        kinds, levels: what to draw from, uniformly.
    """
    _check(split, prior, kinds, levels)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    kind, level = pick(rng, kinds), pick(rng, levels)
    bias = 0.0 if split == "heldout" else prior

    def choose(problem: str, options: Sequence[str]) -> str:
        if rng.random() < bias:
            return preferred_answer(seed, problem, options)
        return pick(rng, options)

    question = KINDS[kind](rng, level, choose)
    facts = {
        "kind": kind,
        "seen": list(question.seen),
        "grid": [question.scene.rows, question.scene.columns],
        "objects": {item.cell: str(item.look) for item in question.scene.objects},
    }
    return {
        "problem": f"<image>{question.problem}",
        "answer": question.answer,
        "images": [{"bytes": render(question.scene), "path": f"{split}_{index}.png"}],
        "verifier": "shapes",
        "solution": solution(question),
        "facts": json.dumps(facts),
        "kind": kind,
        "difficulty": level,
    }


def solution(question: Question) -> str:
    """The ideal response: it states the facts, then concludes."""
    return f"<think> {' '.join(question.seen)} </think> \\boxed{{{question.answer}}}"


def preferred_answer(seed: int, problem: str, options: Sequence[str]) -> str:
    """The answer that the shortcut of this world favours for a question text."""
    return options[zlib.crc32(f"{seed}: {problem}".encode()) % len(options)]


def _check(split: str, prior: float, kinds: Sequence[str], levels: Sequence[int]) -> None:
    if split not in SPLITS:
        raise ValueError(f"shapes world: unknown split {split!r}; give one of {', '.join(SPLITS)}")
    if not 0 <= prior <= 1:
        raise ValueError(f"shapes world: prior is {prior}, but a probability lies in [0, 1]")
    for name, given, known in (("kinds", kinds, tuple(KINDS)), ("levels", levels, LEVELS)):
        unknown = [value for value in given if value not in known]
        if unknown or not given:
            raise ValueError(f"shapes world: {name} is {list(given)}; choose from {list(known)}")


def write_splits(
    directory: Path,
    sizes: Mapping[str, int],
    row: Callable[[str, int], dict[str, Any]],
    schema: pa.Schema,
    world: str,
) -> dict[str, Path]:
    """Write ``{split}.parquet`` of ``row(split, 0..size - 1)`` for each split; all or none of them appear.

    Returns the path of each split's file. Raises ValueError for a size below 1.
    """
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"{world}: {split} has {size} examples; give at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    paths = {split: directory / f"{split}.parquet" for split in sizes}
    with ExitStack() as all_or_none:
        for split, size in sizes.items():
            part = all_or_none.enter_context(atomic_file(paths[split]))
            write_parquet(part, (row(split, index) for index in range(size)), schema)
    return paths


def write_data(
    directory: Path, seed: int, *, cold_start: int, train: int, heldout: int, **choices: Any
) -> dict[str, Path]:
    """`write_splits` of this world, each of so many examples, with the choices that `example` has."""
    sizes = dict(zip(SPLITS, (cold_start, train, heldout), strict=True))
    return write_splits(directory, sizes, partial(example, seed, **choices), SCHEMA, "shapes world")


@cache
def model_spec() -> ModelSpec:
    """The words and picture sizes of this world. Pictures are left as they are."""
    rng = np.random.default_rng(0)
    texts = {"user\n", "assistant\n", "system\n"}
    for kind in KINDS.values():
        for level in LEVELS:
            for _ in range(60):
                question = kind(rng, level, lambda _, options: pick(rng, options))
                texts |= {question.problem, solution(question)}
    cells = [rows * columns for grids in GRIDS.values() for rows, columns in grids]
    return ModelSpec(tuple(sorted(texts)), WORDS, (min(cells) * CELL**2, max(cells) * CELL**2))


def write_model(directory: Path, seed: int, family: str = "", **overrides: Any) -> None:
    """Write the tiny model of this world; see `mmrl.models.tiny_model.write_model`."""
    tiny_model.write_model(directory, seed, model_spec(), family, **overrides)


def write(directory: Path, seed: int, world: WorldConfig) -> None:
    """Write data, and the tiny model to ``directory / "model"``."""
    choices: dict[str, Any] = {"prior": world.prior, "kinds": world.kinds, "levels": world.levels}
    write_data(directory, seed, **{split: getattr(world, split) for split in SPLITS}, **choices)
    write_model(directory / "model", seed, world.family)
