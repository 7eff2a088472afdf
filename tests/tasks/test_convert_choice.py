"""Options that carry their letters already, and images in base 64 of any form: read right or refused."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mmrl.data.sources import read
from mmrl.rewards.verifiers import VERIFIERS, reported_components
from mmrl.tasks.convert import ConvertOptions as Options
from mmrl.tasks.convert import choice_rows as rows
from mmrl.tasks.convert import convert
from mmrl.tasks.entries import ImageFolder

CASES = Path(__file__).parents[1] / "cases" / "14_labelled_options"
NOWHERE = ImageFolder(Path("/nowhere"))


def row(options, answer, question="Which?", **entry):
    (made,) = rows({"question": question, "options": options, "answer": answer, **entry}, NOWHERE, Options())
    return made


@pytest.mark.parametrize("name", ["c3", "c10", "c12", "c13"])
def test_options_with_letters_are_listed_once(tmp_path, name):
    out = tmp_path / "o.parquet"
    convert("choice", CASES / f"{name}.json", CASES, out, Options(), probe=reported_components)
    (sample,) = read(out)
    assert sample.problem == "<image>Which?\nA. red\nB. blue"
    assert (sample.answer, sample.facts) == ("B", {"options": ["red", "blue"]})
    for response in ("B", "blue", "B. blue"):
        assert VERIFIERS["choice"](sample, f"\\boxed{{{response}}}")["accuracy"] == 1.0


@pytest.mark.parametrize(
    "options",
    [
        ["A. red", "B. blue"],
        ["A) red", "B) blue"],
        ["(A) red", "(B) blue"],
        ["[A] red", "[B] blue"],
        ["A: red", "B: blue"],
        ["A . red", "B . blue"],
        ["(a) red", "(b) blue"],
        ["a. red", "b. blue"],
        ["A\uff0e red", "B\uff0e blue"],
        ["A\u3001red", "B\u3001blue"],
        ["A\uff1ared", "B\uff1ablue"],
        ["A)red", "B)blue"],
        [" A.  red ", "B. blue "],
        ["A. red", "(B) blue"],
        {"B": "blue", "A": "red"},
        {"a": "red", "b": "blue", "c": None},
        {"first": "A. red", "second": "B. blue"},
        '["A. red", "B. blue"]',
        "A. red\nB. blue",
        "(A) red; (B) blue",
    ],
)
@pytest.mark.parametrize("answer", ["B", "(B)", "b", "B.", "blue", "B. blue", "(B) blue", ["B"]])
def test_ways_to_label_options(options, answer):
    made = row(options, answer)
    assert made["problem"] == "Which?\nA. red\nB. blue"
    assert (made["answer"], made["facts"]) == ("B", {"options": ["red", "blue"]})


def test_options_in_columns_that_carry_letters():
    entry = {"question": "Which?", "A": "A. red", "B": "B. blue", "answer": "A. red"}
    (made,) = rows(entry, NOWHERE, Options())
    assert (made["problem"], made["answer"]) == ("Which?\nA. red\nB. blue", "A")


@pytest.mark.parametrize(
    "options",
    [
        ["A. Smith", "Jones"],  # an initial
        ["A. Smith", "A. Jones"],
        ["1.5", "2.5"],
        ["A", "B"],
        ["A red car", "A blue car"],
        ["10: 5", "12: 6"],
        ["-1", "1"],
        ["I. only", "II. only"],
    ],
)
def test_what_only_looks_like_a_label_stays(options):
    assert row(options, options[1])["facts"] == {"options": options}


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["B. red", "A. blue"], "B, A"),
        (["A. red", "B. blue", "green"], "A, B, none"),
        (["(A) red", "(B) blue", "(D) green"], "A, B, D"),
        (["2. red", "1. blue"], "2, 1"),
    ],
)
def test_labels_that_are_not_in_order_are_refused(options, labels):
    with pytest.raises(ValueError, match=f"the options carry the labels {labels}$"):
        row(options, "A")


def test_numbered_options():
    for answer in ("2. blue", "blue", "(2) blue"):
        assert row(["1. red", "2. blue", "3. green"], answer)["answer"] == "B"
    for answer in (2, "2", "(2)"):
        with pytest.raises(ValueError, match="can be read as letter or index; say which, by --answer"):
            row(["1. red", "2. blue", "3. green"], answer)
    entry = {"question": "Which?", "options": ["1. red", "2. blue", "3. green"], "answer": 2}
    for form, letter in (("letter", "B"), ("index", "C")):
        assert rows(entry, NOWHERE, Options(answer=form))[0]["answer"] == letter


def test_an_answer_whose_letter_is_not_its_text_is_refused():
    with pytest.raises(ValueError, match="is none of its 2 options"):
        row(["A. red", "B. blue"], "A. blue")


@pytest.mark.parametrize(
    "question",
    [
        "Which?\nA. red\nB. blue",
        "Which? (A) red (B) blue",
        "Which?\nChoices:\n(A) red\n(B) blue",
        "Which?\nA) red, B) blue.",
        "Options: A: red; B: blue\nWhich?",
    ],
)
@pytest.mark.parametrize("options", [["red", "blue"], ["A. red", "B. blue"]])
def test_a_question_that_lists_its_options_gets_no_second_list(question, options):
    assert row(options, "B", question)["problem"] == question


@pytest.mark.parametrize(
    "question", ["Red or blue?", "Which?\nA. red\nB. green", "Which?\nB. blue\nA. red", "A. redder\nB. blue"]
)
def test_a_question_that_lists_something_else_gets_the_list(question):
    assert row(["red", "blue"], "B", question)["problem"] == f"{question}\nA. red\nB. blue"


def encoded(form="PNG", size=(4, 4)):
    out = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(out, form)
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("size", [(4, 4), (5, 4), (90, 90)])
def test_images_in_base_64(tmp_path, form, size):
    """Short or long, of either alphabet, in lines, without its padding, with an address before it or none."""
    image = encoded(form, size)
    plain = base64.b64encode(image).decode()
    lines = "\n".join(plain[k : k + 76] for k in range(0, len(plain), 76))
    wide = base64.urlsafe_b64encode(image).decode()
    ways = [plain, lines, wide, plain.rstrip("="), f" {plain}\r\n"]
    ways += [f"data:image/{form.lower()};base64,{way}" for way in (plain, lines, wide)]
    ways += [f"data:;base64,{plain}", f"data:image/png;charset=utf-8;base64,{plain}"]
    pictures = ImageFolder(tmp_path)
    for way in ways:
        assert pictures.picture(way) == pictures.picture({"bytes": way, "path": None}) == image, way[:40]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("data:image/png;base64,iVBORw0KGgo*", "the image is 34 characters, which are not base 64"),
        ("data:image/png;base64,abcde", "not base 64"),
        ("iVBORw0KGgoAAAANSUhEUgAAA!", "not base 64"),
        ("x" * 4097, "not base 64"),
        ("none.png", "there is no image 'none.png' in the folder"),
        ("AAAA.png", "there is no image 'AAAA.png' in the folder"),
        ("abcdefgh", "there is no image 'abcdefgh' in the folder"),
        ("data:image/svg+xml;utf8,<svg/>", "there is no image 'data:image/svg"),
        ("https://localhost/a.png", "there is no image"),
        (7, "the image is '7', not a path"),
        ("", "not a path"),
        ({"bytes": None, "path": None}, "not a path"),
    ],
)
def test_images_that_are_neither(tmp_path, text, why):
    with pytest.raises(ValueError, match=why):
        ImageFolder(tmp_path).picture(text)


def test_the_name_of_a_file_comes_first(tmp_path):
    name = "Qk0AAA" + "A" * 60
    (tmp_path / name).write_bytes(encoded())
    assert ImageFolder(tmp_path).picture(name) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("layout", "entry"),
    [
        ("choice", {"question": "?", "options": ["a", "b"], "answer": "A"}),
        ("questions", {"question": "?", "answer": "A"}),
        ("llava", {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A"}]}),
        ("coco", {"bbox": [0, 0, 2, 2], "sentence": "the dot"}),
    ],
)
def test_every_layout_takes_base_64(tmp_path, layout, entry):
    image = encoded()
    text = base64.b64encode(image).decode()
    (tmp_path / "in.json").write_text(
        json.dumps([{**entry, "image": text}, {**entry, "image": text[:-9] + "*"}])
    )
    made = convert(layout, tmp_path / "in.json", tmp_path, tmp_path / "o.parquet", Options(), max_broken=0.5)
    assert [sample.images for sample in read(tmp_path / "o.parquet")] == [(image,)]
    ((name, why),) = made.broken
    assert (name, "not base 64" in why) == ("in.json:1", True)
