"""The mixed world: four tasks on the scenes of the shapes world, each with a verifier of its own.

``count``: how many objects have a colour. ``box``: the box around all of a colour, in cells:
``[left, top, right, bottom]``. ``choice``: where the one object of a colour is, by the letter of an option.
``jigsaw``: a board whose pieces are shuffled; of each piece, the place where it belongs. Every task states
what it sees and then concludes, ``<think> b1 a2 </think> \\boxed{2}``: one policy and one format for all.

A world is a pure function, as in ``shapes_world``: ``example(seed, task, split, index)``. Answers are
balanced in every split: no text of a question suggests its answer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.config import WorldConfig
from mmrl.models import tiny_model
from mmrl.models.tiny_model import CELL, WORDS, ModelSpec
from mmrl.tasks import shapes_world
from mmrl.tasks.shapes_world import (
    COLOURS,
    SCHEMA,
    SHAPES,
    SPLITS,
    Cell,
    Look,
    Question,
    cell_name,
    draw_scene,
    pick,
    render,
    solution,
    some,
    write_splits,
)

SIDE = 2  # cells of a board's row and column
CELLS = tuple((row, column) for row in range(SIDE) for column in range(SIDE))  # in reading order
# Cells have the grounds of the corners of the shapes world's largest board, which differ most.
GROUNDS = {(row, column): (3 * row, 3 * column) for row, column in CELLS}
LETTERS = "ABCD"


def count(rng: np.random.Generator) -> Question:
    """The number of objects of a colour, 0 to 3."""
    return shapes_world.count(rng, 1, lambda _, options: pick(rng, options))


def box(rng: np.random.Generator) -> Question:
    """The box around all objects of a colour; all boxes are equally likely."""
    colour = pick(rng, tuple(COLOURS))
    top, bottom = sorted(pick(rng, _PAIRS))
    left, right = sorted(pick(rng, _PAIRS))
    inside = [(row, column) for row in range(top, bottom) for column in range(left, right)]
    while True:
        cells = sorted(cell for cell in inside if rng.integers(2))
        if cells and _around(cells) == (left, top, right, bottom):
            break
    others = [name for name in COLOURS if name != colour]
    looks = {cell: _look(rng, colour) for cell in cells}
    for cell in CELLS:
        if cell not in looks and rng.integers(2):
            looks[cell] = _look(rng, pick(rng, others))
    return Question(
        f"Box of the {colour} shapes?",
        json.dumps([left, top, right, bottom]),
        tuple(cell_name(*cell) for cell in cells),
        draw_scene(rng, 1, (SIDE, SIDE), looks),
        {"threshold": 0.75},  # of the overlap; a wrong box overlaps the right one by half at most
    )


def choice(rng: np.random.Generator) -> Question:
    """The option that names the cell of the only object of a colour; all letters are equally likely.

    The options name the cells by rows or by columns, forwards or backwards.
    """
    colour = pick(rng, tuple(COLOURS))
    others = [name for name in COLOURS if name != colour]
    order = CELLS if rng.integers(2) else tuple(sorted(CELLS, key=lambda cell: cell[::-1]))
    order = order if rng.integers(2) else order[::-1]
    letter = pick(rng, LETTERS)
    target = order[LETTERS.index(letter)]
    looks = {target: _look(rng, colour)}
    for cell in CELLS:
        if cell != target and rng.integers(2):
            looks[cell] = _look(rng, pick(rng, others))
    options = [cell_name(*cell) for cell in order]
    listed = " ".join(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=True))
    return Question(
        f"Where is the {colour} shape? {listed}",
        letter,
        (cell_name(*target),),
        draw_scene(rng, 1, (SIDE, SIDE), looks),
        {"options": options},
    )


def jigsaw(rng: np.random.Generator) -> Question:
    """The place of each piece of a shuffled board, piece after piece, numbered in reading order."""
    places = tuple(some(rng, CELLS, len(CELLS)))
    looks = {cell: _look(rng, pick(rng, tuple(COLOURS))) for cell in CELLS if rng.integers(2)}
    return Question(
        "Where does each piece belong?",
        ", ".join(str(CELLS.index(cell) + 1) for cell in places),
        tuple(cell_name(*cell) for cell in places),
        draw_scene(rng, 1, (SIDE, SIDE), looks),
        ground=places,
    )


# Each task, by name, and the verifier that grades it.
TASKS: Mapping[str, tuple[Callable[[np.random.Generator], Question], str]] = {
    "count": (count, "count"),
    "box": (box, "box"),
    "choice": (choice, "choice"),
    "jigsaw": (jigsaw, "order"),
}


def example(seed: int, task: str, split: str, index: int) -> dict[str, Any]:
    """The row at a position in a split of a task, as in ``shapes_world``; its ``kind`` is the task.

    Raises ValueError for an unknown task or split.
    """
    if task not in TASKS:
        raise ValueError(f"mixed world: unknown task {task!r}; give one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"mixed world: unknown split {split!r}; give one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, list(TASKS).index(task), SPLITS.index(split), index])
    make, verifier = TASKS[task]
    question = make(rng)
    picture = render(question.scene, [GROUNDS[cell] for cell in question.ground or CELLS])
    return {
        "problem": f"<image>{question.problem}",
        "answer": question.answer,
        "images": [{"bytes": picture, "path": f"{task}_{split}_{index}.png"}],
        "verifier": verifier,
        "solution": solution(question),
        "facts": json.dumps(question.facts),
        "kind": task,
        "difficulty": 1,
    }


def model_spec() -> ModelSpec:
    """The words and picture sizes of this world: all its pictures have one size."""
    rng = np.random.default_rng(0)
    texts = {"user\n", "assistant\n", "system\n"}
    for make, _ in TASKS.values():
        for question in (make(rng) for _ in range(200)):
            texts |= {question.problem, solution(question)}
    pixels = SIDE**2 * CELL**2
    # An option's letter with its dot, a coordinate with its comma and the ends of a list are one word each.
    words = r" ?[A-D]\.|, \p{N}|\[\p{N}|\]\}|" + WORDS
    return ModelSpec(tuple(sorted(texts)), words, (pixels, pixels))


def write_model(directory: Path, seed: int, family: str = "", **overrides: Any) -> None:
    """Write the tiny model of this world; see `mmrl.models.tiny_model.write_model`."""
    tiny_model.write_model(directory, seed, model_spec(), family, **overrides)


def write_data(directory: Path, seed: int, *, cold_start: int, train: int, heldout: int) -> None:
    """Write ``train/{task}`` and ``heldout/{task}``, of so many examples each, and ``cold_start``, of all.

    Each is a folder with one parquet file, so that its data set is called as the task is.
    """
    tasks = list(TASKS)
    folders = [("cold_start", "cold_start", tasks, cold_start)]
    for split, size in (("train", train), ("heldout", heldout)):
        folders += [(f"{split}/{task}", split, [task], size) for task in tasks]
    for folder, split, mixed, size in folders:

        def row(_: str, index: int, split: str = split, mixed: Sequence[str] = mixed) -> dict[str, Any]:
            position, number = divmod(index, len(mixed))
            return example(seed, mixed[number], split, position)

        write_splits(directory / folder, {"rows": size}, row, SCHEMA, f"mixed world, {folder}")


def write(directory: Path, seed: int, world: WorldConfig) -> None:
    """Write data, and the tiny model to ``directory / "model"``."""
    write_data(directory, seed, **{split: getattr(world, split) for split in SPLITS})
    write_model(directory / "model", seed, world.family)


_PAIRS = tuple((a, b) for a in range(SIDE + 1) for b in range(a + 1, SIDE + 1))


def _around(cells: list[Cell]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the smallest box that holds all cells."""
    rows, columns = zip(*cells, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def _look(rng: np.random.Generator, colour: str) -> Look:
    return Look(colour, pick(rng, SHAPES))
