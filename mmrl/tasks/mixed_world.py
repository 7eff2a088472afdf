"""The mixed world: four tasks on the scenes of the shapes world, each with a verifier of its own.

``count``: how many objects have a colour. ``box``: the box around all of a colour, in cells:
``[left, top, right, bottom]``. ``choice``: where the one object of a colour is, by the letter of an option.
``jigsaw``: a board whose pieces are shuffled; of each piece, the place where it belongs. Every task states
what it sees and then concludes, ``<think> b1 a2 </think> \\boxed{2}``: one policy and one format for all.

A world is a pure function, as in ``shapes_world``: ``example(seed, task, split, index)``. Answers are
balanced in every split: no text of a question suggests its answer.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.config import WorldConfig
from mmrl.tasks import shapes_world, tiny_model
from mmrl.tasks.shapes_world import (
    COLOURS,
    SCHEMA,
    SHAPES,
    SPLITS,
    Cell,
    Look,
    Scene,
    cell_name,
    draw_scene,
    render,
    write_splits,
)
from mmrl.tasks.tiny_model import CELL, WORDS, ModelSpec

SIDE = 2  # cells of a board's row and column
CELLS = tuple((row, column) for row in range(SIDE) for column in range(SIDE))  # in reading order
# Cells have the grounds of the corners of the shapes world's largest board, which differ most.
GROUNDS = {(row, column): (3 * row, 3 * column) for row, column in CELLS}
LETTERS = "ABCD"


@dataclass(frozen=True)
class Puzzle:
    """A question, its answer, and what to draw."""

    problem: str
    answer: str
    seen: tuple[str, ...]  # the words of the thinking
    scene: Scene
    facts: dict[str, Any] = field(default_factory=dict)  # what the verifier needs
    places: tuple[Cell, ...] = CELLS  # the cell whose ground each place of the board has


def count(rng: np.random.Generator) -> Puzzle:
    """How many objects have a colour, 0 to 3."""
    question = shapes_world.count(rng, 1, lambda _, options: _pick(rng, options))
    return Puzzle(question.problem, question.answer, question.seen, question.scene)


def box(rng: np.random.Generator) -> Puzzle:
    """The box around all objects of a colour; all boxes are equally likely."""
    colour = _pick(rng, tuple(COLOURS))
    top, bottom = sorted(_pick(rng, _PAIRS))
    left, right = sorted(_pick(rng, _PAIRS))
    inside = [(row, column) for row in range(top, bottom) for column in range(left, right)]
    while True:
        cells = sorted(cell for cell in inside if rng.integers(2))
        if cells and _around(cells) == (left, top, right, bottom):
            break
    others = [name for name in COLOURS if name != colour]
    looks = {cell: _look(rng, colour) for cell in cells}
    for cell in CELLS:
        if cell not in looks and rng.integers(2):
            looks[cell] = _look(rng, _pick(rng, others))
    return Puzzle(
        f"Box of the {colour} shapes?",
        json.dumps([left, top, right, bottom]),
        tuple(cell_name(*cell) for cell in cells),
        draw_scene(rng, 1, (SIDE, SIDE), looks),
        {"threshold": 0.75},  # of the overlap; a wrong box overlaps the right one by half at most
    )


def choice(rng: np.random.Generator) -> Puzzle:
    """Which of four options names the cell of the one object of a colour; all letters are equally likely.

    The options name the cells by rows or by columns, forwards or backwards.
    """
    colour = _pick(rng, tuple(COLOURS))
    others = [name for name in COLOURS if name != colour]
    order = CELLS if rng.integers(2) else tuple(sorted(CELLS, key=lambda cell: cell[::-1]))
    order = order if rng.integers(2) else order[::-1]
    letter = _pick(rng, LETTERS)
    target = order[LETTERS.index(letter)]
    looks = {target: _look(rng, colour)}
    for cell in CELLS:
        if cell != target and rng.integers(2):
            looks[cell] = _look(rng, _pick(rng, others))
    options = [cell_name(*cell) for cell in order]
    listed = " ".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True))
    return Puzzle(
        f"Where is the {colour} shape? {listed}",
        letter,
        (cell_name(*target),),
        draw_scene(rng, 1, (SIDE, SIDE), looks),
        {"options": options},
    )


def jigsaw(rng: np.random.Generator) -> Puzzle:
    """Where each piece of a shuffled board belongs, piece after piece; places are numbered as one reads."""
    places = _shuffled(rng, CELLS)
    looks = {cell: _look(rng, _pick(rng, tuple(COLOURS))) for cell in CELLS if rng.integers(2)}
    return Puzzle(
        "Where does each piece belong?",
        ", ".join(str(CELLS.index(cell) + 1) for cell in places),
        tuple(cell_name(*cell) for cell in places),
        draw_scene(rng, 1, (SIDE, SIDE), looks),
        places=places,
    )


# Each task, by name, and the verifier that grades it.
TASKS: Mapping[str, tuple[Callable[[np.random.Generator], Puzzle], str]] = {
    "count": (count, "count"),
    "box": (box, "box"),
    "choice": (choice, "choice"),
    "jigsaw": (jigsaw, "order"),
}


def example(seed: int, task: str, split: str, index: int) -> dict[str, Any]:
    """One record of the world, by position.

    Args:
        seed: names the world, 0 or more.
        task: a key of TASKS.
        split: one of ``mmrl.tasks.shapes_world.SPLITS``.
        index: position in the split of this task, 0 or more.

    Returns:
        The row of the public schema: ``problem`` (one ``<image>``), ``answer``, ``images`` (one ``{bytes,
        path}``), ``verifier``, ``solution`` (the ideal response), ``facts`` (JSON: what the
        verifier needs), ``kind`` (the task), ``difficulty``.

    Raises:
        ValueError: an unknown task or split.
    """
    if task not in TASKS:
        raise ValueError(f"mixed world: unknown task {task!r}; give one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"mixed world: unknown split {split!r}; give one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, list(TASKS).index(task), SPLITS.index(split), index])
    make, verifier = TASKS[task]
    puzzle = make(rng)
    picture = render(puzzle.scene, [GROUNDS[cell] for cell in puzzle.places])
    return {
        "problem": f"<image>{puzzle.problem}",
        "answer": puzzle.answer,
        "images": [{"bytes": picture, "path": f"{task}_{split}_{index}.png"}],
        "verifier": verifier,
        "solution": solution(puzzle),
        "facts": json.dumps(puzzle.facts),
        "kind": task,
        "difficulty": 1,
    }


def solution(puzzle: Puzzle) -> str:
    """The ideal response: it states what is seen, then concludes."""
    return f"<think> {' '.join(puzzle.seen)} </think> \\boxed{{{puzzle.answer}}}"


def model_spec() -> ModelSpec:
    """The words and picture sizes of this world: all its pictures have one size."""
    rng = np.random.default_rng(0)
    texts = {"user\n", "assistant\n", "system\n"}
    for make, _ in TASKS.values():
        for puzzle in (make(rng) for _ in range(200)):
            texts |= {puzzle.problem, solution(puzzle)}
    pixels = SIDE**2 * CELL**2
    # An option's letter with its dot, a coordinate with its comma and the ends of a list are one word each.
    words = r" ?[A-D]\.|, \p{N}|\[\p{N}|\]\}|" + WORDS
    return ModelSpec(tuple(sorted(texts)), words, (pixels, pixels))


def write_model(directory: Path, seed: int, **overrides: Any) -> None:
    """Write the tiny model of this world; see `mmrl.tasks.tiny_model.write_model`."""
    tiny_model.write_model(directory, seed, model_spec(), **overrides)


def write_data(directory: Path, seed: int, *, cold_start: int, train: int, heldout: int) -> None:
    """Write ``train/{task}`` and ``heldout/{task}``, of so many examples each, and ``cold_start``, of all.

    Each is a folder with one parquet file, so that its data set is called as the task is.

    Raises:
        ValueError: a size below 1, or what ``example`` refuses.
    """
    tasks = list(TASKS)

    def write(folder: str, size: int, row: Callable[[int], dict[str, Any]]) -> None:
        sizes, name = {"rows": size}, f"mixed world, {folder}"
        write_splits(directory / folder, sizes, lambda _, index: row(index), SCHEMA, name)

    def demonstration(index: int) -> dict[str, Any]:
        position, number = divmod(index, len(tasks))
        return example(seed, tasks[number], "cold_start", position)

    write("cold_start", cold_start, demonstration)
    for split, size in (("train", train), ("heldout", heldout)):
        for task in tasks:
            write(f"{split}/{task}", size, partial(example, seed, task, split))


def write(directory: Path, seed: int, world: WorldConfig) -> None:
    """Write data, and the tiny model to ``directory / "model"``."""
    write_data(directory, seed, cold_start=world.cold_start, train=world.train, heldout=world.heldout)
    write_model(directory / "model", seed)


_PAIRS = tuple((a, b) for a in range(SIDE + 1) for b in range(a + 1, SIDE + 1))


def _around(cells: list[Cell]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the smallest box that holds all cells."""
    rows, columns = zip(*cells, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def _look(rng: np.random.Generator, colour: str) -> Look:
    return Look(colour, _pick(rng, SHAPES))


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _shuffled(rng: np.random.Generator, values: tuple) -> tuple:
    return tuple(values[k] for k in rng.permutation(len(values)).tolist())
