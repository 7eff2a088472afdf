"""The mixed world: the pictures show the answers, the real verifiers say so, and answers are balanced."""

import io
import json
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from mmrl.data.sources import read
from mmrl.models.tiny_model import build_tokenizer
from mmrl.rewards.verifiers import VERIFIERS
from mmrl.sample import Sample
from mmrl.tasks.mixed_world import CELLS, GROUNDS, LETTERS, TASKS, example, model_spec, write_data
from mmrl.tasks.shapes_world import CELL, COLOURS, board_colour, cell_name

SPANS = ((0, 1), (0, 2), (1, 2))
BOXES = [[left, top, right, bottom] for left, right in SPANS for top, bottom in SPANS]
NAMES = {rgb: name for name, rgb in COLOURS.items()}


@pytest.fixture(scope="module")
def rows():
    return {task: [example(3, task, "train", index) for index in range(240)] for task in TASKS}


def listed(rows):
    return [(task, row) for task, of_task in rows.items() for row in of_task]


def as_sample(row):
    facts = json.loads(row["facts"])
    return Sample("mixed:0", row["problem"], row["answer"], verifier=row["verifier"], facts=facts)


def picture(row):
    """Of each place in reading order: the cell whose ground it has, and the colour on it or None."""
    with Image.open(io.BytesIO(row["images"][0]["bytes"])) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    grounds = {board_colour(*ground): cell for cell, ground in GROUNDS.items()}
    out = []
    for row_, column in CELLS:
        part = pixels[row_ * CELL : (row_ + 1) * CELL, column * CELL : (column + 1) * CELL]
        ground, middle = (tuple(part[at, at].tolist()) for at in (0, CELL // 2))
        out.append((grounds[ground], NAMES.get(middle)))
    return out


def read_off(task, row):
    """The answer as somebody would give it who sees the picture and knows what the words mean."""
    seen = picture(row)
    words = row["problem"].removeprefix("<image>").rstrip("?").split()
    if task == "jigsaw":
        return ", ".join(str(CELLS.index(cell) + 1) for cell, _ in seen)
    assert [cell for cell, _ in seen] == list(CELLS)
    colour = words[2] if task == "count" else words[3]
    cells = [cell for cell, found in seen if found == colour]
    if task == "choice":
        (cell,) = cells
        return words[words.index(cell_name(*cell)) - 1].rstrip(".")
    if task == "count":
        return str(len(cells))
    rows, columns = zip(*cells, strict=True)
    return json.dumps([min(columns), min(rows), max(columns) + 1, max(rows) + 1])


def test_rows_are_a_function_of_their_place():
    one = example(3, "box", "train", 5)
    assert one == example(3, "box", "train", 5)
    others = [
        (3, "box", "train", 6),
        (3, "box", "heldout", 5),
        (4, "box", "train", 5),
        (3, "count", "train", 5),
    ]
    assert all(example(*other) != one for other in others)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_what_the_pictures_show(task, rows):
    assert [row["answer"] for row in rows[task]] == [read_off(task, row) for row in rows[task]]


def test_solutions_are_right_and_other_answers_wrong(rows):
    for task, row in listed(rows)[::12]:
        sample, verifier = as_sample(row), VERIFIERS[TASKS[task][1]]
        assert row["verifier"] == TASKS[task][1]
        graded = verifier(sample, row["solution"])
        assert graded["accuracy"] == graded["format"] == 1.0
        for other in {one["answer"] for one in rows[task]} - {row["answer"]}:
            response = row["solution"].replace(f"{{{row['answer']}}}", f"{{{other}}}")
            assert verifier(sample, response)["accuracy"] == 0.0


def test_a_wrong_box_has_partial_credit(rows):
    row = next(row for row in rows["box"] if row["answer"] == "[0, 0, 1, 1]")
    graded = VERIFIERS["box"](as_sample(row), "<think> a1 </think> \\boxed{[0, 0, 2, 1]}")
    assert graded["accuracy"] == 0.0
    assert graded["iou"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        ("count", set("0123")),
        ("box", {json.dumps(box) for box in BOXES}),
        ("choice", set(LETTERS)),
        ("jigsaw", {", ".join(order) for order in permutations("1234")}),
    ],
)
def test_answers_are_balanced(task, answers, rows):
    counts = Counter(row["answer"] for row in rows[task])
    assert set(counts) == answers
    total, share = len(rows[task]), 1 / len(answers)
    assert max(abs(n / total - share) for n in counts.values()) < 4.5 * np.sqrt(share * (1 - share) / total)


def test_the_text_of_a_choice_says_nothing():
    """In whichever order the options stand, every letter and every cell is as often right."""
    rows = [example(0, "choice", "heldout", index) for index in range(600)]
    options = [json.loads(row["facts"])["options"] for row in rows]
    letters = [LETTERS.index(row["answer"]) for row in rows]
    cells = [names[letter] for names, letter in zip(options, letters, strict=True)]
    orders = ["".join(names) for names in options]
    assert len(set(orders)) == 4
    for right in (letters, cells):
        counts = Counter(zip(orders, right, strict=True))
        assert len(counts) == 16
        assert max(abs(n - 600 / 16) for n in counts.values()) < 4.5 * np.sqrt(600 / 16)


def test_everything_is_few_tokens(rows):
    tokenizer = build_tokenizer(model_spec())
    assert tokenizer.get_vocab_size() <= 448
    for task, row in listed(rows):
        assert len(tokenizer.encode(row["problem"].removeprefix("<image>")).ids) <= 14
        assert len(tokenizer.encode(row["solution"]).ids) <= 12, task


@pytest.mark.parametrize(("task", "split"), [("tset", "train"), ("box", "test")])
def test_what_is_refused(task, split):
    with pytest.raises(ValueError, match="unknown"):
        example(0, task, split, 0)


def test_files(tmp_path):
    write_data(tmp_path, 7, cold_start=6, train=3, heldout=2)
    tasks = list(TASKS)
    for split, size in (("train", 3), ("heldout", 2)):
        sources = [read(tmp_path / split / task) for task in tasks]
        assert [source.name for source in sources] == tasks
        assert [[one.problem for one in source] for source in sources] == [
            [example(7, task, split, index)["problem"] for index in range(size)] for task in tasks
        ]
    demonstrated = [one.solution for one in read(tmp_path / "cold_start")]
    expected = [example(7, tasks[k % 4], "cold_start", k // 4)["solution"] for k in range(6)]
    assert demonstrated == expected
