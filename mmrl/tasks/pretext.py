"""Pretext rows: questions about images whose answer is what was done to the image, so no label is needed.

A row is a pure function of (seed, index). Tasks come in turn, pictures in an order that the seed fixes anew
for every pass through them. A picture that cannot be read, or is not suited to a question, is passed over for
the next one in that order.

Every answer is equally likely, and options stand in a random order. What would give an answer away without
looking at what is shown is taken out: pictures are square, so that a turned one has no other shape; tiles
lose their edges, by amounts that vary, so that they cannot be fitted together by their pixels; all parts of a
question are cut, scaled and stored alike.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from mmrl.data.folders import METADATA
from mmrl.data.sources import Source, read
from mmrl.models.images import open_image, to_rgb
from mmrl.tasks.captions import Caption, vocabulary, wrong_word
from mmrl.tasks.entries import ImageFolder

CAPTION_ERROR = "caption_error"
TRIES = 64  # pictures in turn of which one must do
AHEAD = 64  # rows that are made at once
QUALITY = 90  # of JPEG
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
)
LEAST_SIDE = 64  # pixels; smaller images have nothing to ask about

LETTERS = "ABCD"
GREY = (128, 128, 128)
ALIKE = 6.0  # of 255: two parts whose coarse pixels differ by less on average cannot be told apart
COARSE = 16  # pixels of a side at which parts are compared
CELLS = 3  # of a row and a column, between two of which a relative position is asked
HOLE = 4  # the part of a picture's side that is covered; leaves room for other patches wherever it lies
PATCH_TRIES = 60  # places looked at for a patch that is unlike the others
TURNS = {
    "90 degrees": Image.Transpose.ROTATE_270,  # Pillow turns against the clock
    "180 degrees": Image.Transpose.ROTATE_180,
    "270 degrees": Image.Transpose.ROTATE_90,
}
SIDES = {"to the left": (-1, 0), "to the right": (1, 0), "above": (0, -1), "below": (0, 1)}

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Unsuited(ValueError):
    """No question of this kind can be asked about a picture: its parts look the same."""


@dataclass(frozen=True)
class Options:
    """Options of pretext questions."""

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


# Tasks: pure functions of a square picture, others of the same size, a generator and options


def rotation(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """The multiple of 90 degrees by which the picture was turned clockwise (Gidaris et al. 2018)."""
    turned = {"0 degrees": picture, **{name: picture.transpose(turn) for name, turn in TURNS.items()}}
    _check_unlike(list(turned.values()))
    names, right = _draw_options(rng, tuple(turned))
    problem = f"<image>By how much was this picture turned clockwise?\n{_list_options(names)}"
    return PretextQuestion(problem, LETTERS[right], "choice", (turned[names[right]],), names)


def jigsaw(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """The place of each piece of a shuffled picture, piece after piece (Noroozi and Favaro 2016)."""
    rows, columns = options.grid
    count = rows * columns
    cells = [_cell(options.side, rows, columns, place) for place in range(count)]
    pieces = _cut(picture, cells, rng, options.gap)
    home = rng.permutation(count).tolist()
    board = Image.new("RGB", (options.side, options.side), GREY)
    for place, piece in enumerate(home):
        left, top, right, bottom = cells[place]
        wide, high = pieces[piece].size
        board.paste(pieces[piece], (left + (right - left - wide) // 2, top + (bottom - top - high) // 2))
    problem = (
        f"<image>A picture was cut into {rows} x {columns} pieces, and these were laid down again in a random"
        f" order. Places are numbered from 1 to {count}, row by row from the top left. For the piece that"
        " lies on each place now, in the order of the places, name the place where it belongs:"
        f" {count} numbers with commas between them."
    )
    return PretextQuestion(problem, ", ".join(str(piece + 1) for piece in home), "order", (board,))


def patch_order(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """The order, from left to right, of patches cut side by side."""
    count, high = options.patches, options.side // 2
    top = int(rng.integers(options.side - high + 1))
    columns = [_cell(options.side, 1, count, place) for place in range(count)]
    pieces = _cut(
        picture, [(left, top, right, top + high) for left, _, right, _ in columns], rng, options.gap
    )
    shown = rng.permutation(count)
    listed = "\n".join(f"{number}. <image>" for number in range(1, count + 1))
    problem = (
        f"These {count} patches were cut out of a picture side by side, and mixed up:\n{listed}\nIn which"
        " order do they stand in the picture, from left to right? Give their numbers, with commas between."
    )
    answer = ", ".join(str(place + 1) for place in np.argsort(shown))
    return PretextQuestion(problem, answer, "order", tuple(pieces[piece] for piece in shown))


def relative_position(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """The side of a patch on which another one was (after Doersch et al. 2015, with four sides)."""
    names, right = _draw_options(rng, tuple(SIDES))
    across, down = SIDES[names[right]]
    column = int(rng.integers(max(0, -across), CELLS - max(0, across)))
    row = int(rng.integers(max(0, -down), CELLS - max(0, down)))
    places = (row * CELLS + column, (row + down) * CELLS + column + across)
    cells = [_cell(options.side, CELLS, CELLS, place) for place in places]
    problem = (
        "Two patches were cut out of a picture next to each other. The first:\n<image>\nThe second:\n"
        f"<image>\nWhere was the second one, seen from the first?\n{_list_options(names)}"
    )
    pieces = _cut(picture, cells, rng, options.gap)
    return PretextQuestion(problem, LETTERS[right], "choice", tuple(pieces), names)


def masked_region(
    picture: Image.Image, others: Sequence[Image.Image], rng: np.random.Generator, options: Options
) -> PretextQuestion:
    """The one of four patches that fills the hole in a picture; wrong ones are of it and of ``others``."""
    size = options.side // HOLE
    hole = _place_square(rng, options.side, size)
    patches = [picture.crop(_trim(hole, rng, options.gap))]
    here = int(rng.integers(1, len(LETTERS) - 1)) if others else len(LETTERS) - 1
    for _ in range(PATCH_TRIES):
        if len(patches) == len(LETTERS):
            break
        box = _place_square(rng, options.side, size)
        source = picture if len(patches) <= here else others[len(patches) % len(others)]
        patch = source.crop(_trim(box, rng, options.gap))
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


def caption_error(
    picture: Image.Image, text: str, words: Mapping[str, Counter[str]], rng: np.random.Generator
) -> PretextQuestion:
    """The wrong word of the caption, if one is (in half of the questions), in the manner of ViCrit.

    Args: the picture; its caption; the `vocabulary` of all; the generator.

    Raises Unsuited if no caption has another word of the kinds that this one has.
    """
    exchanged = wrong_word(text, words, rng)
    if exchanged is None:
        raise Unsuited("no other caption has a word to exchange with one of this one")
    text, answer = exchanged
    problem = (
        f"<image>A caption of this picture: {text}\nOne word of it may be wrong. Name the wrong word as it"
        ' stands in the caption, or say "none" if there is none.'
    )
    return PretextQuestion(problem, answer, "text", (picture,))


TASKS: Mapping[str, Callable[..., PretextQuestion]] = {
    task.__name__: task for task in (rotation, jigsaw, patch_order, relative_position, masked_region)
}
NAMES = (*TASKS, CAPTION_ERROR)


def _cell(side: int, rows: int, columns: int, place: int) -> Box:
    """A cell of a grid over the picture, all of one size."""
    wide, high = side // columns, side // rows
    row, column = divmod(place, columns)
    return column * wide, row * high, (column + 1) * wide, (row + 1) * high


def _cut(
    picture: Image.Image, boxes: Sequence[Box], rng: np.random.Generator, gap: float
) -> list[Image.Image]:
    """The parts of a picture in boxes that lose their edges. Raises Unsuited if two look the same."""
    pieces = [picture.crop(_trim(box, rng, gap)) for box in boxes]
    _check_unlike(pieces)
    return pieces


def _trim(box: Box, rng: np.random.Generator, gap: float) -> Box:
    """A box with so large a share of its sides cut away, half of that here or there at random."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    cut = round(gap * min(wide, high))
    x, y = (cut // 4 + int(rng.integers(cut - 2 * (cut // 4) + 1)) for _ in range(2))
    return left + x, top + y, left + x + wide - cut, top + y + high - cut


def _place_square(rng: np.random.Generator, side: int, size: int) -> Box:
    left, top = (int(rng.integers(side - size + 1)) for _ in range(2))
    return left, top, left + size, top + size


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _check_unlike(parts: Sequence[Image.Image]) -> None:
    if _any_alike(parts):
        raise Unsuited("its parts look the same")


def _any_alike(parts: Sequence[Image.Image]) -> bool:
    coarse = [np.asarray(part.resize((COARSE, COARSE), Image.Resampling.BOX), np.float32) for part in parts]
    return any(np.abs(a - b).mean() < ALIKE for a, b in itertools.combinations(coarse, 2))


def _draw_options(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """The names in a random order, and the place of the right one."""
    return tuple(names[k] for k in rng.permutation(len(names)).tolist()), int(rng.integers(len(names)))


def _list_options(names: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {name}" for letter, name in zip(LETTERS, names, strict=True))


# Pictures


class Pictures(NamedTuple):
    """Encoded images by number."""

    length: int
    id: Callable[[int], str]
    image: Callable[[int], bytes | str]  # encoded bytes or a path; ValueError if there is none


def find_pictures(spec: str) -> Pictures:
    """The images of a folder at any depth, by name; or the first image of each row of a data set.

    Raises ValueError if there are none, or no data set can be opened.
    """
    folder = Path(spec)
    if folder.is_dir() and not any((folder / name).is_file() for name in METADATA):
        files = sorted(
            os.path.relpath(os.path.join(where, name), folder)
            for where, _, names in os.walk(folder)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES
        )
        if files:
            return Pictures(len(files), lambda k: files[k], lambda k: str(folder / files[k]))
    source = read(spec)
    return Pictures(len(source), source.id, lambda k: _first_image(source, k))


def captioned_pictures(spec: str, names: list[str]) -> Pictures:
    """The images of a folder that have these names. Raises ValueError if it is no folder."""
    if not Path(spec).is_dir():
        raise ValueError(f"{spec} is no folder: captions name the images of one")
    images = ImageFolder(Path(spec).absolute())
    return Pictures(len(names), lambda k: names[k], lambda k: images.path(names[k]))


def _first_image(source: Source, row: int) -> bytes | str:
    images = source[row].images
    if not images:
        raise ValueError("a row without an image")
    return images[0]


def _decode(image: bytes | str, name: str, side: int) -> Image.Image:
    """An image in RGB, upright, of ``2 * side`` pixels or more where it has them.

    Raises ValueError if the image cannot be read or is too small.
    """
    with open_image(image, name) as opened:
        if min(opened.size) < LEAST_SIDE:
            raise ValueError(f"{opened.width}x{opened.height} pixels are too few to ask about")
        try:
            opened.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a part of its size
            return to_rgb(opened)
        except Exception as error:  # Pillow's decoders raise what they like at damaged files
            raise ValueError(f"its pixels cannot be decoded: {error}") from error


def _square(image: bytes | str, name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """The largest square of an image, anywhere along its longer side, at ``side`` pixels."""
    picture = _decode(image, name, side)
    least = min(picture.size)
    left = int(rng.integers(picture.width - least + 1))
    top = int(rng.integers(picture.height - least + 1))
    box = (left, top, left + least, top + least)
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


# Rows


@dataclass(frozen=True)
class Material:
    """Pictures, tasks and captions that rows are made of."""

    pictures: Pictures
    tasks: tuple[str, ...]
    options: Options = field(default_factory=Options)
    captioned: Pictures | None = None  # the pictures of the captions, in their order
    captions: Sequence[Caption] = ()
    words: Mapping[str, Counter[str]] = field(init=False)  # their vocabulary

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
        object.__setattr__(self, "words", vocabulary(self.captions))


class PretextRow(NamedTuple):
    """A row, and the pictures that were passed over for it, with the reasons."""

    row: dict[str, Any]
    passed_over: tuple[tuple[str, str], ...]


def example(material: Material, seed: int, index: int) -> PretextRow:
    """The row at a position.

    Returns: ``problem``, ``answer``, ``images`` (JPEG bytes without a name), ``verifier``, ``facts`` (the
    ``options`` of a choice), ``kind`` (the task), ``origin`` (the image).

    Raises ValueError if none of many pictures will do.
    """
    task = material.tasks[index % len(material.tasks)]
    pool = material.pictures if task != CAPTION_ERROR or material.captioned is None else material.captioned
    turn, position = divmod(index, pool.length)
    order = _picture_order(seed, turn, pool.length)
    passed_over: list[tuple[str, str]] = []
    for tried in range(min(TRIES, pool.length)):
        rng = np.random.default_rng([seed, index, tried])
        chosen, after = (int(order[(position + k) % pool.length]) for k in (tried, tried + 1))
        try:
            question = _ask(material, task, pool, chosen, after, rng)
        except ValueError as error:
            passed_over.append((pool.id(chosen), str(error)))
            continue
        row = {
            "problem": question.problem,
            "answer": question.answer,
            "images": [{"bytes": _jpeg(picture)} for picture in question.pictures],
            "verifier": question.verifier,
            "facts": {"options": list(question.options)} if question.options else {},
            "kind": task,
            "origin": pool.id(chosen),
        }
        return PretextRow(row, tuple(passed_over))
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

    Args: ``passed_over`` gets the pictures that would not do, and why; ``progress``, rows made and wanted.
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


@lru_cache(maxsize=2)
def _picture_order(seed: int, turn: int, length: int) -> Int64[np.ndarray, "n"]:
    """The order of a pass through all pictures; kept, as all rows of the pass need it."""
    return np.random.default_rng([seed, turn]).permutation(length)


def _ask(
    material: Material, task: str, pool: Pictures, chosen: int, after: int, rng: np.random.Generator
) -> PretextQuestion:
    side = material.options.side
    image, name = pool.image(chosen), pool.id(chosen)
    if task == CAPTION_ERROR:
        picture = _decode(image, name, side)
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
        return caption_error(picture, material.captions[chosen].text, material.words, rng)
    picture = _square(image, name, side, rng)
    others: list[Image.Image] = []
    if task == "masked_region" and after != chosen:
        with contextlib.suppress(ValueError):  # it is named when its own turn comes
            others.append(_square(pool.image(after), pool.id(after), side, rng))
    return TASKS[task](picture, others, rng, material.options)


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
