"""Pretext questions: the answer is what was done to the picture, and nothing else tells it."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrl.data.sources import read
from mmrl.data.writing import write_rows
from mmrl.models.prompts import IMAGE
from mmrl.rewards.verifiers import VERIFIERS, reported_components
from mmrl.tasks.captions import Caption, places, read_captions, vocabulary
from mmrl.tasks.pretext import (
    CELLS,
    LETTERS,
    NAMES,
    TASKS,
    Material,
    Options,
    Pictures,
    Unsuited,
    caption_error,
    captioned_pictures,
    example,
    find_pictures,
    rows,
)

SIDE = 120
CAPTIONS = [
    "A red car by the sea",
    "Two dogs on the left",
    "The blue bus",
    "Three cats on the right",
    "A green car",
]


def landscape(seed, width=150, height=130):
    """Red grows to the right and green downwards, so that every place can be told; blue is noise."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(10, 240, width)[None]
    pixels[..., 1] = np.linspace(10, 240, height)[:, None]
    pixels[..., 2] = rng.integers(0, 120)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep").mkdir()
    for k in range(7):
        landscape(k).save(folder / "deep" / f"{k}.png")
    Image.new("RGB", (130, 130), (9, 9, 9)).save(folder / "plain.png")
    Image.new("RGB", (30, 130)).save(folder / "small.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    entries = [{"file_name": f"deep/{k}.png", "caption": CAPTIONS[k % len(CAPTIONS)]} for k in range(7)]
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def material(folder):
    captions = read_captions(folder / "captions.json")
    return Material(
        pictures=find_pictures(str(folder)),
        tasks=NAMES,
        options=Options(side=SIDE),
        captioned=captioned_pictures(str(folder), [one.image for one in captions]),
        captions=captions,
    )


def opened(row):
    return [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]


def mean(picture):
    """Mean red and green: where in a landscape a part lies, across and down."""
    return np.asarray(picture.convert("RGB"), float).mean(axis=(0, 1))[:2]


def one_picture(task, seed, **choices):
    """A question about a square landscape, and the landscape."""
    picture = landscape(0).resize((SIDE, SIDE))
    others = (landscape(1).transpose(Image.Transpose.ROTATE_180).resize((SIDE, SIDE)),)
    return TASKS[task](picture, others, np.random.default_rng(seed), Options(side=SIDE, **choices)), picture


def chosen(question):
    return question.options[LETTERS.index(question.answer)]


def test_every_row_is_read_and_graded(material, tmp_path):
    passed_over = {}
    made = list(rows(material, 3, 60, passed_over=passed_over.setdefault))
    write_rows(tmp_path / "o.parquet", made)
    source = read(tmp_path / "o.parquet")
    assert len(source) == 60
    assert {row["kind"] for row in made} == set(NAMES)
    for sample, row in zip(source, made, strict=True):
        reported_components(sample)
        grade = VERIFIERS[sample.verifier]
        assert sample.problem.count(IMAGE) == len(sample.images)
        assert grade(sample, f"\\boxed{{{sample.answer}}}")["accuracy"] == 1.0
        wrong = {
            "choice": LETTERS[LETTERS.find(sample.answer) - 1],
            "text": "sky",
            "order": sample.answer[::-1],
        }
        assert grade(sample, f"\\boxed{{{wrong[sample.verifier]}}}")["accuracy"] == 0.0
        if "options" in sample.facts:
            told = sample.facts["options"][LETTERS.index(sample.answer)]
            assert grade(sample, f"\\boxed{{{told}}}")["accuracy"] == 1.0
        assert all(image.get("path") is None for image in row["images"])
        assert all(not picture.getexif() for picture in opened(row))
    assert set(passed_over) == {"plain.png", "small.png", "broken.jpg"}
    assert passed_over["plain.png"] == "its parts look the same"
    assert "too few" in passed_over["small.png"]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 10**6))
def test_a_row_is_a_function_of_seed_and_index(material, seed, index):
    first = example(material, seed, index)
    example(material, seed, index + 1)
    assert example(material, seed, index) == first
    assert first.row["kind"] == NAMES[index % len(NAMES)]


def test_rows_do_not_depend_on_how_many_are_made(material):
    few = list(rows(material, 5, 9, passed_over=lambda *_: None))
    assert list(rows(material, 5, 70, passed_over=lambda *_: None))[:9] == few
    assert few == [example(material, 5, index).row for index in range(9)]
    assert few != list(rows(material, 6, 9, passed_over=lambda *_: None))


def test_every_picture_is_used_before_one_comes_again():
    pictures = Pictures(12, str, lambda k: _png(landscape(k)))
    material = Material(pictures, ("rotation",), Options(side=SIDE))
    origins = [example(material, 1, index).row["origin"] for index in range(24)]
    assert sorted(origins[:12], key=int) == sorted(origins[12:], key=int) == list(map(str, range(12)))
    assert origins[:12] != origins[12:]


def _png(picture):
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_balanced(task):
    count = 400
    answers = Counter(one_picture(task, seed)[0].answer for seed in range(count))
    kinds = 4 if set(answers) <= set(LETTERS) else 24
    expected = count / kinds
    chi_square = sum((n - expected) ** 2 / expected for n in answers.values())
    assert len(answers) == kinds
    assert chi_square < {4: 16.3, 24: 49.7}[kinds]  # one in a thousand is beyond


@pytest.mark.parametrize("seed", range(8))
def test_rotation_is_what_was_done(seed):
    question, picture = one_picture("rotation", seed)
    degrees = int(chosen(question).split()[0])
    undone = question.pictures[0].rotate(degrees)  # Pillow turns against the clock
    assert np.array_equal(np.asarray(undone), np.asarray(picture))


@pytest.mark.parametrize("grid", [(2, 2), (3, 2), (1, 4), (3, 3)])
def test_pieces_put_where_the_answer_says_are_the_picture(grid):
    for seed in range(4):
        question, picture = one_picture("jigsaw", seed, grid=grid)
        high, wide = SIDE // grid[0], SIDE // grid[1]
        board, whole = question.pictures[0], Image.new("RGB", (SIDE, SIDE))
        for place, home in enumerate(int(number) - 1 for number in question.answer.split(", ")):
            row, column = divmod(place, grid[1])
            piece = board.crop((column * wide, row * high, (column + 1) * wide, (row + 1) * high))
            row, column = divmod(home, grid[1])
            whole.paste(piece, (column * wide, row * high))
        inside = [slice(k * high + 6, (k + 1) * high - 6) for k in range(grid[0])]
        across = [slice(k * wide + 6, (k + 1) * wide - 6) for k in range(grid[1])]
        ours, theirs = np.asarray(whole, float), np.asarray(picture, float)
        differences = [np.abs(ours[a, b] - theirs[a, b]).mean() for a in inside for b in across]
        assert max(differences) < 12


@pytest.mark.parametrize("patches", [2, 4])
def test_patches_in_the_order_of_the_answer_go_to_the_right(patches):
    for seed in range(6):
        question, _ = one_picture("patch_order", seed, patches=patches)
        order = [int(number) - 1 for number in question.answer.split(", ")]
        reds = [mean(question.pictures[k])[0] for k in order]
        assert reds == sorted(reds)
        assert question.problem.count(IMAGE) == patches


def test_the_second_patch_lies_where_the_answer_says():
    seen = set()
    for seed in range(24):
        question, _ = one_picture("relative_position", seed)
        across, down = np.subtract(*map(mean, question.pictures[::-1]))
        far = 230 / CELLS
        side = {(1, 0): "to the right", (-1, 0): "to the left", (0, 1): "below", (0, -1): "above"}
        assert chosen(question) == side[round(across / far), round(down / far)]
        seen.add(chosen(question))
    assert len(seen) == 4


def test_the_right_patch_fills_the_hole():
    for seed in range(8):
        question, picture = one_picture("masked_region", seed)
        covered = np.asarray(question.pictures[0])
        hole = (covered == 128).all(axis=2)
        rows_, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        patch = question.pictures[1 + LETTERS.index(question.answer)]
        original = picture.crop((columns[0], rows_[0], columns[-1] + 1, rows_[-1] + 1))
        assert np.abs(mean(patch) - mean(original)).max() < 8
        others = [one for one in question.pictures[1:] if one is not patch]
        assert all(one.size == patch.size for one in others)
        assert len(others) == 3


def test_edges_of_pieces_are_cut_by_amounts_that_vary():
    def red_between(seed, gap):
        question, _ = one_picture("relative_position", seed, gap=gap)
        first, second = (np.asarray(one, float)[..., 0] for one in question.pictures)
        return second[:, 0].mean() - first[:, -1].mean(), chosen(question)

    steps = [step for seed in range(60) for step, side in [red_between(seed, 0.3)] if side == "to the right"]
    touching = [
        step for seed in range(60) for step, side in [red_between(seed, 0.0)] if side == "to the right"
    ]
    assert max(touching) < 4 < min(steps)
    assert np.std(steps) > 2 > np.std(touching)


def test_a_wrong_word_is_exchanged_for_one_of_other_captions():
    captions = [Caption("", text) for text in CAPTIONS]
    words, picture = vocabulary(captions), landscape(0)
    wrong = 0
    for seed in range(200):
        text = CAPTIONS[seed % len(CAPTIONS)]
        question = caption_error(picture, text, words, np.random.default_rng(seed))
        told = question.problem.split(": ", 1)[1].split("\n")[0]
        if question.answer == "none":
            assert told == text
            continue
        wrong += 1
        ((before, after),) = [(a, b) for a, b in zip(text.split(), told.split(), strict=True) if a != b]
        assert after == question.answer
        assert after.lower() in " ".join(CAPTIONS).lower().split()
        assert before[0].isupper() == after[0].isupper()
    assert 70 < wrong < 130


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A red and a blue car", ["car"]),  # of two colours, either might be meant
        ("He left the room", []),
        ("on the left side", ["left"]),
        ("A man and his dog", ["dog"]),  # "his" tells a man
        ("A woman with a dog", ["woman", "dog"]),
        ("Bright sky", []),
    ],
)
def test_only_words_are_exchanged_that_make_a_caption_wrong(text, found):
    assert [place.word for place in places(text)] == found


def test_a_caption_without_another_word_of_its_kinds_is_passed_over():
    words = vocabulary([Caption("", "An orange cup"), Caption("", "A red cup")])
    with pytest.raises(Unsuited):
        caption_error(landscape(0), "An orange cup", words, np.random.default_rng(0))


def test_captions_as_coco_writes_them(tmp_path):
    whole = {
        "images": [{"id": 3, "file_name": "x.png"}, 4],
        "annotations": [{"image_id": 3, "caption": "A red car "}, {"image_id": 9, "caption": "?"}, 5],
    }
    path = tmp_path / "c.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="1 captions have a word to exchange"):
        read_captions(path)
    whole["annotations"].append({"image_id": 3, "caption": "A blue car"})
    path.write_text(json.dumps(whole))
    assert read_captions(path) == [Caption("x.png", "A red car"), Caption("x.png", "A blue car")]


def test_pictures_of_a_data_set(tmp_path):
    data = [
        {"problem": "<image>?", "answer": "1", "images": [{"bytes": _png(landscape(k))}]} for k in range(3)
    ]
    write_rows(tmp_path / "d.parquet", [*data, {"problem": "?", "answer": "1"}])
    pictures = find_pictures(str(tmp_path / "d.parquet"))
    passed_over = {}
    made = rows(
        Material(pictures, ("rotation",), Options(side=SIDE)), 0, 8, passed_over=passed_over.setdefault
    )
    assert {row["origin"] for row in made} == {f"d.parquet:{k}" for k in range(3)}
    assert passed_over == {"d.parquet:3": "a row without an image"}


def test_a_turned_photograph_is_taken_as_its_camera_was_held(tmp_path):
    sideways = landscape(0).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees to be seen upright
    sideways.save(tmp_path / "a.jpg", exif=exif, quality=95)
    material = Material(find_pictures(str(tmp_path)), ("rotation",), Options(side=SIDE))
    for index in range(4):
        row = example(material, 0, index).row
        degrees = int(row["facts"]["options"][LETTERS.index(row["answer"])].split()[0])
        upright = np.asarray(opened(row)[0].rotate(degrees), float)
        assert upright[:, -9:, 0].mean() > upright[:, :9, 0].mean() + 100
        assert upright[-9:, :, 1].mean() > upright[:9, :, 1].mean() + 100


def test_where_no_picture_will_do_the_last_is_named(tmp_path):
    Image.new("RGB", (130, 130)).save(tmp_path / "plain.png")
    material = Material(find_pictures(str(tmp_path)), ("jigsaw",), Options(side=SIDE))
    with pytest.raises(ValueError, match=r"jigsaw: none of 1 pictures .* plain.png: its parts look the same"):
        example(material, 0, 0)


def test_what_cannot_be_made_is_refused(folder, tmp_path):
    pictures = find_pictures(str(folder))
    for choices, why in [
        ({"tasks": ("colours",)}, "choose from"),
        ({"tasks": ()}, "choose from"),
        ({"tasks": ("jigsaw", "jigsaw")}, "stands twice"),
        ({"tasks": ("caption_error",)}, "needs captions"),
    ]:
        with pytest.raises(ValueError, match=why):
            Material(pictures, **choices)
    for choices, why in [
        ({"grid": (1, 1)}, "1x1"),
        ({"patches": 1}, "1 patches"),
        ({"gap": 0.9}, "gap of 0.9"),
        ({"side": 20}, "20 pixels"),
    ]:
        with pytest.raises(ValueError, match=why):
            Options(**choices)
    with pytest.raises(ValueError, match="holds no file"):
        find_pictures(str(tmp_path))
