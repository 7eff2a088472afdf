"""Questions about a picture that need no label, because what was done to the picture is the answer.

Each task is a pure function of a square RGB picture, others of the same size, a generator and options. Every
answer is equally likely, and options stand in a random order. What would give an answer away without looking
at what is shown is taken out: pictures are square, so that a turned one has no other shape; tiles lose their
edges, by amounts that vary, so that they cannot be fitted together by their pixels; all parts of a question
are cut, scaled and stored alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom

LETTERS = "ABCD"
GREY = (128, 128, 128)
ALIKE = 6.0  # of 255: two parts whose coarse pixels differ by less on average cannot be told apart
COARSE = 16  # pixels of a side at which parts are compared
CELLS = 3  # of a row and a column, between two of which a relative position is asked
HOLE = 4  # the part of a picture's side that is covered; leaves room for other patches wherever it lies
TRIES = 60  # places looked at for a patch that is unlike the others

TURNS = {
    "90 degrees": Image.Transpose.ROTATE_270,  # Pillow turns against the clock
    "180 degrees": Image.Transpose.ROTATE_180,
    "270 degrees": Image.Transpose.ROTATE_90,
}
SIDES = {"to the left": (-1, 0), "to the right": (1, 0), "above": (0, -1), "below": (0, 1)}


class Unsuited(ValueError):
    """No question of this kind can be asked about a picture: its parts look the same."""


@dataclass(frozen=True)
class Options:
    """What pretext questions are like."""

    side: int = 336  # pixels of a picture
    grid: tuple[int, int] = (2, 2)  # rows and columns of a jigsaw
    patches: int = 4  # of a patch order
    gap: float = 0.1  # share of a tile's side that is cut away

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if min(self.grid) < 1 or max(self.grid) > 9 or rows * columns < 2:
            raise ValueError(f"a jigsaw of {rows}x{columns}: 1 to 9 rows and columns, and 2 pieces or more")
        if not 2 <= self.patches <= 9:
            raise ValueError(f"an order of {self.patches} patches: 2 to 9")
        if not 0 <= self.gap <= 0.5:
            raise ValueError(f"a gap of {self.gap}: a share from 0 to 0.5 of a tile's side")
        if self.side < 28 * max(*self.grid, self.patches, CELLS, HOLE):
            raise ValueError(f"pictures of {self.side} pixels: a part must have 28 at least")


@dataclass(frozen=True)
class PretextQuestion:
    """A question, its pictures in the order of its placeholders, and how its answer is graded."""

    problem: str
    answer: str
    verifier: str
    pictures: tuple[Image.Image, ...]
    options: tuple[str, ...] = ()  # of a choice


Task = Callable[[Image.Image, Sequence[Image.Image], np.random.Generator, Options], PretextQuestion]


def rotation(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """By which multiple of 90 degrees the picture was turned clockwise (Gidaris et al. 2018)."""
    turned = {"0 degrees": picture, **{name: picture.transpose(turn) for name, turn in TURNS.items()}}
    _check_unlike(list(turned.values()))
    names = _shuffled(rng, tuple(turned))
    right = int(rng.integers(len(names)))
    return PretextQuestion(
        f"<image>By how much was this picture turned clockwise?\n{_listed(names)}",
        LETTERS[right],
        "choice",
        (turned[names[right]],),
        names,
    )


def jigsaw(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """Where each piece of a shuffled picture belongs, piece after piece (Noroozi and Favaro 2016)."""
    rows, columns = options.grid
    count = rows * columns
    cells = [_cell(options.side, rows, columns, place) for place in range(count)]
    pieces = [picture.crop(_trimmed(cell, rng, options.gap)) for cell in cells]
    _check_unlike(pieces)
    home = rng.permutation(count).tolist()
    board = Image.new("RGB", (options.side, options.side), GREY)
    for place, piece in enumerate(home):
        left, top, right, bottom = cells[place]
        wide, high = pieces[piece].size
        board.paste(pieces[piece], (left + (right - left - wide) // 2, top + (bottom - top - high) // 2))
    return PretextQuestion(
        f"<image>A picture was cut into {rows} x {columns} pieces, and these were laid down again in a random"
        f" order. Places are numbered from 1 to {count}, row by row from the top left. For the piece that"
        " lies on each place now, in the order of the places, name the place where it belongs:"
        f" {count} numbers with commas between them.",
        ", ".join(str(piece + 1) for piece in home),
        "order",
        (board,),
    )


def patch_order(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """The order, from left to right, of patches cut side by side."""
    count, high = options.patches, options.side // 2
    top = int(rng.integers(options.side - high + 1))
    cells = [_cell(options.side, 1, count, place) for place in range(count)]
    pieces = [
        picture.crop(_trimmed((left, top, right, top + high), rng, options.gap))
        for left, _, right, _ in cells
    ]
    _check_unlike(pieces)
    shown = rng.permutation(count)
    listed = "\n".join(f"{number}. <image>" for number in range(1, count + 1))
    return PretextQuestion(
        f"These {count} patches were cut out of a picture side by side, and mixed up:\n{listed}\nIn which"
        " order do they stand in the picture, from left to right? Give their numbers, with commas between.",
        ", ".join(str(place + 1) for place in np.argsort(shown)),
        "order",
        tuple(pieces[piece] for piece in shown),
    )


def relative_position(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """On which side of a patch another one was (after Doersch et al. 2015, with four sides)."""
    names = _shuffled(rng, tuple(SIDES))
    right = int(rng.integers(len(names)))
    across, down = SIDES[names[right]]
    column = int(rng.integers(max(0, -across), CELLS - max(0, across)))
    row = int(rng.integers(max(0, -down), CELLS - max(0, down)))
    places = (row * CELLS + column, (row + down) * CELLS + column + across)
    cells = [_cell(options.side, CELLS, CELLS, place) for place in places]
    pieces = [picture.crop(_trimmed(cell, rng, options.gap)) for cell in cells]
    _check_unlike(pieces)
    return PretextQuestion(
        "Two patches were cut out of a picture next to each other. The first:\n<image>\nThe second:\n"
        "<image>\n"
        f"Where was the second one, seen from the first?\n{_listed(names)}",
        LETTERS[right],
        "choice",
        tuple(pieces),
        names,
    )


def masked_region(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """Which of four patches fills the hole in a picture; the wrong ones are of it and of ``others``."""
    size = options.side // HOLE
    hole = _anywhere(rng, options.side, size)
    patches = [picture.crop(_trimmed(hole, rng, options.gap))]
    here = int(rng.integers(1, len(LETTERS) - 1)) if others else len(LETTERS) - 1
    for _ in range(TRIES):
        if len(patches) == len(LETTERS):
            break
        box = _anywhere(rng, options.side, size)
        source = picture if len(patches) <= here else others[len(patches) % len(others)]
        patch = source.crop(_trimmed(box, rng, options.gap))
        if not (source is picture and _overlap(box, hole)) and not _any_alike([*patches, patch]):
            patches.append(patch)
    if len(patches) < len(LETTERS):
        raise Unsuited("its parts look the same")
    covered = picture.copy()
    covered.paste(GREY, hole)
    order = rng.permutation(len(LETTERS)).tolist()
    listed = "\n".join(f"{letter}. <image>" for letter in LETTERS)
    return PretextQuestion(
        f"<image>A square of this picture is covered in grey. Which patch was there?\n{listed}",
        LETTERS[order.index(0)],
        "choice",
        (covered, *(patches[k] for k in order)),
        ("the first patch", "the second patch", "the third patch", "the fourth patch"),
    )


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "rotation": rotation,
        "jigsaw": jigsaw,
        "patch_order": patch_order,
        "relative_position": relative_position,
        "masked_region": masked_region,
    }
)


def _cell(side: int, rows: int, columns: int, place: int) -> Box:
    """A cell of a grid over the picture, all of one size."""
    wide, high = side // columns, side // rows
    row, column = divmod(place, columns)
    return column * wide, row * high, (column + 1) * wide, (row + 1) * high


def _trimmed(box: Box, rng: np.random.Generator, gap: float) -> Box:
    """A box with so large a share of its sides cut away, half of that here or there at random."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    cut = round(gap * min(wide, high))
    x, y = (cut // 4 + int(rng.integers(cut - 2 * (cut // 4) + 1)) for _ in range(2))
    return left + x, top + y, left + x + wide - cut, top + y + high - cut


def _anywhere(rng: np.random.Generator, side: int, size: int) -> Box:
    left, top = (int(rng.integers(side - size + 1)) for _ in range(2))
    return left, top, left + size, top + size


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _check_unlike(parts: Sequence[Image.Image]) -> None:
    if _any_alike(parts):
        raise Unsuited("its parts look the same")


def _any_alike(parts: Sequence[Image.Image]) -> bool:
    coarse = [np.asarray(part.resize((COARSE, COARSE), Image.Resampling.BOX), np.float32) for part in parts]
    return any(np.abs(a - b).mean() < ALIKE for a, b in itertools.combinations(coarse, 2))


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))


def _shuffled(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(names[k] for k in rng.permutation(len(names)).tolist())
