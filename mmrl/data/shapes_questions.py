"""Questions of the shapes world: text, true answer, and a scene drawn to fit it.

Each kind is a function ``(rng, level, choose) -> Question``. It first draws the words of the question, then
lets ``choose(problem, options)`` pick the answer (this is where the shortcut prior enters), and only then
draws a scene with that answer: so the distribution of answers given the text is exactly what ``choose`` makes
it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mmrl.data.shapes_scenes import COLOURS, DIGITS, SHAPES, Look, Scene, cell_name, draw_scene

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


@dataclass(frozen=True)
class Target:
    """What a question asks for: a colour, a shape, or both."""

    colour: str | None = None
    shape: str | None = None

    def fits(self, look: Look) -> bool:
        return self.colour in (None, look.colour) and self.shape in (None, look.shape)

    def words(self, plural: bool) -> str:
        names = PLURALS if plural else {shape: shape for shape in SHAPES}
        return " ".join(([self.colour] if self.colour else []) + ([names[self.shape]] if self.shape else []))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
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
    extra = _some(rng, free, int(rng.integers(len(free) + 1)))
    return draw_scene(rng, level, grid, {**required, **{cell: _pick(rng, distractors) for cell in extra}})


def _place(rng: np.random.Generator, grid: tuple[int, int], looks: Sequence[Look]) -> dict[Cell, Look]:
    return dict(zip(_some(rng, _cells(grid), len(looks)), looks, strict=True))


def _looks(rng: np.random.Generator, target: Target, count: int) -> list[Look]:
    return [_pick(rng, [look for look in LOOKS if target.fits(look)]) for _ in range(count)]


def _targets(rng: np.random.Generator, level: int, count: int) -> list[Target]:
    """Colours at level 1, shapes at level 2; at level 3 shapes of one colour or colours of one shape."""
    if level == 1:
        return [Target(colour=colour) for colour in _some(rng, tuple(COLOURS), count)]
    if level == 2:
        return [Target(shape=shape) for shape in _some(rng, SHAPES, count)]
    if rng.integers(2):
        colour = _pick(rng, tuple(COLOURS))
        return [Target(colour, shape) for shape in _some(rng, SHAPES, count)]
    shape = _pick(rng, SHAPES)
    return [Target(colour, shape) for colour in _some(rng, tuple(COLOURS), count)]


def count(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """How many objects fit. Seen: their cells, in reading order. Conclude: how many cells that is."""
    target = Target(_pick(rng, tuple(COLOURS)), _pick(rng, SHAPES) if level > 1 else None)
    words = target.words(plural=True) if target.shape else f"{target.colour} shapes"
    problem = f"How many {words}?"
    answer = choose(problem, "0123" if level == 1 else "01234")
    grid = _pick(rng, GRIDS[level])
    required = _place(rng, grid, _looks(rng, target, int(answer)))
    scene = _scene(rng, level, grid, required, [look for look in LOOKS if not target.fits(look)])
    return Question(problem, answer, tuple(cell_name(*cell) for cell in sorted(required)) or (NONE,), scene)


def compare(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """Which of two sorts there are more of. Seen: both numbers. Conclude: the sort, or ``same``."""
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
    more, less = _pick(rng, numbers)
    amounts = {names[0]: (more, less), names[1]: (less, more), "same": (less, less)}[answer]
    grid = _pick(rng, [grid for grid in GRIDS[level] if grid[0] * grid[1] >= sum(amounts)])
    required = _place(rng, grid, _looks(rng, first, amounts[0]) + _looks(rng, second, amounts[1]))
    others = [look for look in LOOKS if not first.fits(look) and not second.fits(look)]
    seen = (names[0], str(amounts[0]), names[1], str(amounts[1]))
    return Question(problem, answer, seen, _scene(rng, level, grid, required, others))


def locate(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """Row or column of the one object that fits. Seen: its cell. Conclude: the row's or column's name."""
    target = Target(_pick(rng, tuple(COLOURS)), _pick(rng, SHAPES) if level > 1 else None)
    axis = int(rng.integers(2))
    words = target.words(plural=False) if target.shape else f"{target.colour} shape"
    problem = f"Which {('row', 'column')[axis]} has the {words}?"
    longest = max(grid[axis] for grid in GRIDS[level])
    answer = choose(problem, ("1234", "abcd")[axis][:longest])
    index = ("1234", "abcd")[axis].index(answer)
    grid = _pick(rng, [grid for grid in GRIDS[level] if grid[axis] > index])
    cell = _pick(rng, [cell for cell in _cells(grid) if cell[axis] == index])
    required = {cell: _looks(rng, target, 1)[0]}
    scene = _scene(rng, level, grid, required, [look for look in LOOKS if not target.fits(look)])
    return Question(problem, answer, (cell_name(*cell),), scene)


def read(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """A digit, or the sum of two, which may be those of one colour. Seen: the digits. Conclude: the sum."""
    colour = _pick(rng, tuple(COLOURS))
    problem = ("Which digit?", "Sum of digits?", f"Sum of {colour} digits?")[level - 1]
    answer = choose(problem, DIGITS)
    part = int(rng.integers(int(answer) + 1))
    digits = [answer] if level == 1 else [str(part), str(int(answer) - part)]
    looks = [Look(colour if level == 3 else _pick(rng, tuple(COLOURS)), digit) for digit in digits]
    grid = _pick(rng, GRIDS[level])
    required = _place(rng, grid, looks)
    distractors = list(LOOKS)
    if level == 3:
        distractors += [Look(other, digit) for other in COLOURS if other != colour for digit in DIGITS]
    seen = tuple(required[cell].shape for cell in sorted(required))
    return Question(problem, answer, seen, _scene(rng, level, grid, required, distractors))


def missing(rng: np.random.Generator, level: int, choose: Choose) -> Question:
    """Which of three sorts is absent. Seen: the other two, in the question's order. Conclude: the third."""
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
    grid = _pick(rng, GRIDS[level])
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
