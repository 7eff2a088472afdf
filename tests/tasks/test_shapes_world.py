"""The world as a function: determinism, facts against pixels, solutions, and the shortcut."""

import collections
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrl.rewards.shapes import shapes
from mmrl.sample import Sample
from mmrl.tasks import shapes_world
from mmrl.tasks.shapes_world import (
    CELL,
    COLOURS,
    DIGITS,
    KINDS,
    LEVELS,
    PLURALS,
    SCHEMA,
    SHAPES,
    SPLITS,
    board_colour,
    example,
    mask,
    preferred_answer,
    write_data,
)


@pytest.fixture(scope="module")
def records():
    return [example(5, "heldout", index) for index in range(1200)]


def pixels(record):
    with Image.open(io.BytesIO(record["images"][0]["bytes"])) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def seen_in(record):
    """Colour and shape of every cell that isn't empty, from the pixels: nearest colour, equal outline."""
    picture = pixels(record)
    names = list(COLOURS)
    palette = np.array(list(COLOURS.values()))
    found = {}
    for row in range(picture.shape[0] // CELL):
        for column in range(picture.shape[1] // CELL):
            cell = picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            drawn = (cell != board_colour(row, column)).any(axis=-1)
            if not drawn.any():
                continue
            mean = cell[drawn].mean(axis=0)
            nearest = int(np.abs(palette - mean).sum(axis=-1).argmin())
            found["abcd"[column] + str(row + 1)] = f"{names[nearest]} {best_shape(drawn)}"
    return found


def best_shape(drawn):
    """The shape or digit whose outline, over all sizes and offsets, is exactly what was drawn."""
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    box = drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    matches = {name for name, crop in TEMPLATES if crop.shape == box.shape and (crop == box).all()}
    assert len(matches) == 1
    return matches.pop()


def templates():
    out = []
    for name in (*SHAPES, *DIGITS):
        for radius in range(8, 12):
            whole = mask(name, radius, (0, 0))
            rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
            out.append((name, whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
    return out


TEMPLATES = templates()


def test_same_position_same_record_whatever_was_drawn_before(records):
    again = [example(5, "heldout", index) for index in (1199, 3, 700)]
    assert again == [records[index] for index in (1199, 3, 700)]


def test_bytes_are_the_same_everywhere():
    """A fixed digest: numpy's bit stream, the drawing and the PNG depend on no library version or machine."""
    import hashlib

    digest = hashlib.sha256()
    for split in SPLITS:
        for index in range(50):
            digest.update(json.dumps(example(1, split, index), default=bytes.hex).encode())
    assert digest.hexdigest() == "21d85fc77e73f3592ec936e45bbddfb91c176f915442d38f2754e238cf495a64"


def test_seeds_splits_and_positions_differ():
    drawn = {
        (seed, split, index): example(seed, split, index)["images"][0]["bytes"]
        for seed in (0, 1)
        for split in SPLITS
        for index in range(40)
    }
    # Pictures with one or no object do meet by chance.
    assert len(set(drawn.values())) > 0.9 * len(drawn)


def test_every_kind_and_level_occurs(records):
    counts = collections.Counter((record["kind"], record["difficulty"]) for record in records)
    assert set(counts) == {(kind, level) for kind in KINDS for level in LEVELS}
    assert min(counts.values()) > 40


def test_selection_of_kinds_and_levels():
    drawn = [example(0, "train", i, kinds=("read", "count"), levels=(2,)) for i in range(30)]
    assert {record["kind"] for record in drawn} == {"read", "count"}
    assert {record["difficulty"] for record in drawn} == {2}


def test_pictures_are_whole_cells_of_several_sizes(records):
    sizes = {pixels(record).shape[:2] for record in records}
    assert all(height % CELL == 0 and width % CELL == 0 for height, width in sizes)
    assert {(56, 56), (56, 84), (84, 56), (56, 112), (112, 112)} <= sizes


def test_facts_list_exactly_what_the_pixels_show(records):
    for record in records[:300]:
        facts = json.loads(record["facts"])
        assert seen_in(record) == facts["objects"]
        rows, columns = facts["grid"]
        assert pixels(record).shape == (rows * CELL, columns * CELL, 3)


def answer_from_objects(record):
    """The answer worked out again from the words of the question and the objects of the scene."""
    facts = json.loads(record["facts"])
    objects = {cell: set(look.split()) for cell, look in facts["objects"].items()}
    singular = {plural: name for name, plural in PLURALS.items()}
    text = record["problem"].removeprefix("<image>").rstrip("?").replace(",", "").replace(":", "")
    words = [singular.get(word, word) for word in text.split()]
    named = [word for word in words if word in COLOURS or word in SHAPES]

    def fits(*asked):
        return [
            cell
            for cell, look in sorted(objects.items(), key=lambda item: item[0][::-1])
            if set(asked) <= look
        ]

    if record["kind"] == "count":
        return str(len(fits(*named)))
    if record["kind"] == "locate":
        (cell,) = fits(*named)
        return cell[1] if "row" in words else cell[0]
    if record["kind"] == "read":
        return str(sum(int(word) for cell in fits(*named) for word in objects[cell] if word in DIGITS))
    if record["kind"] == "compare":
        asked = [part.split() for part in " ".join(words[1:]).split(" or ")]
        first, second = (len(fits(*part)) for part in asked)
        if first == second:
            return "same"
        return next(iter(set(asked[first < second]) - set(asked[first > second])))
    shared = [word for word in named if (word in COLOURS) != (named[1] in COLOURS)]
    (gone,) = [word for word in named if word not in shared and not fits(word, *shared)]
    return gone


@pytest.mark.parametrize("kind", list(KINDS))
def test_answer_follows_from_the_scene(kind, records):
    of_kind = [record for record in records if record["kind"] == kind]
    singular = {plural: name for name, plural in PLURALS.items()}
    assert of_kind
    for record in of_kind:
        assert answer_from_objects(record) == singular.get(record["answer"], record["answer"]), record[
            "problem"
        ]


def test_solutions_are_judged_flawless(records):
    for record in records:
        sample = Sample("s", record["problem"], record["answer"], facts=json.loads(record["facts"]))
        judged = shapes(sample, record["solution"])
        assert {name for name, value in judged.items() if value} == {"accuracy", "format"}


def table_accuracy(fit_on, judge_on):
    """Accuracy of giving each question text its most frequent answer; a new text counts as wrong."""
    table = collections.defaultdict(collections.Counter)
    for record in fit_on:
        table[record["problem"]][record["answer"]] += 1
    guesses = {problem: counter.most_common(1)[0][0] for problem, counter in table.items()}
    return np.mean([guesses.get(record["problem"]) == record["answer"] for record in judge_on])


@pytest.mark.exhaustive
def test_text_alone_pays_on_train_and_not_on_heldout():
    def draw(split, count):
        chosen = {"prior": 0.5, "levels": (1,), "kinds": ("read", "locate", "compare")}
        return [example(2, split, i, **chosen) for i in range(count)]

    learnt = draw("cold_start", 1500)
    # Blind chance is 1/10 on digits, 1/3 on rows, columns and comparisons: 0.26 on average.
    assert table_accuracy(learnt, draw("train", 800)) > 0.55
    assert table_accuracy(learnt, draw("heldout", 800)) < 0.33


def test_heldout_answers_are_balanced_given_the_text():
    drawn = [example(3, "heldout", i, kinds=("read",), levels=(1,)) for i in range(1000)]
    counts = collections.Counter(record["answer"] for record in drawn)
    assert set(counts) == set(DIGITS)
    assert max(counts.values()) < 140  # 100 expected, standard deviation 9.5


def test_a_certain_prior_always_gives_the_preferred_answer():
    for i in range(100):
        record = example(4, "train", i, prior=1.0, kinds=("read",), levels=(1,))
        assert record["answer"] == preferred_answer(4, "Which digit?", DIGITS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "unknown split 'test'.*cold_start, train, heldout"),
        ({"prior": 1.5}, "prior is 1.5"),
        ({"kinds": ("count", "sing")}, "kinds is .*'sing'.*choose from .*'compare'"),
        ({"levels": ()}, "levels is \\[\\]; choose from \\[1, 2, 3\\]"),
    ],
)
def test_bad_arguments_name_themselves(arguments, message):
    with pytest.raises(ValueError, match=message):
        example(**{"seed": 0, "split": "train", "index": 0, **arguments})


SIZES = {"cold_start": 20, "train": 12, "heldout": 8}


def test_rows_are_the_worlds_examples(tmp_path):
    paths = write_data(tmp_path / "world", 3, **SIZES)
    assert {split: path.name for split, path in paths.items()} == {s: f"{s}.parquet" for s in SPLITS}
    for split, path in paths.items():
        table = pq.read_table(path)
        assert table.schema.equals(SCHEMA)
        assert table.to_pylist() == [example(3, split, i) for i in range(SIZES[split])]


def test_public_schema(tmp_path):
    row = pq.read_table(write_data(tmp_path, 0, **SIZES)["train"]).slice(0, 1).to_pylist()[0]
    assert row["problem"].count("<image>") == len(row["images"]) == 1
    assert row["images"][0]["bytes"].startswith(b"\x89PNG")
    assert row["images"][0]["path"] == "train_0.png"
    assert row["verifier"] == "shapes"
    assert set(json.loads(row["facts"])) == {"kind", "seen", "grid", "objects"}


def test_choices_reach_the_examples(tmp_path):
    paths = write_data(tmp_path, 0, **SIZES, prior=1.0, kinds=("read",), levels=(1,))
    rows = pq.read_table(paths["cold_start"]).to_pylist()
    assert {(row["kind"], row["difficulty"]) for row in rows} == {("read", 1)}
    assert len({row["answer"] for row in rows}) == 1


def test_a_failure_leaves_the_old_files_and_no_rubbish(tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in write_data(tmp_path, 0, **SIZES).values()}

    def fails_late(seed, split, index, **choices):
        if split == "heldout":
            raise OSError("disk full")
        return example(seed, split, index, **choices)

    monkeypatch.setattr(shapes_world, "example", fails_late)
    with pytest.raises(OSError, match="disk full"):
        write_data(tmp_path, 1, **SIZES)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="heldout has 0 examples"):
        write_data(tmp_path, 0, cold_start=1, train=1, heldout=0)
    assert list(tmp_path.iterdir()) == []
