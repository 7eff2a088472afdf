"""Common public layouts become rows that can be read and graded; entries that cannot are named."""

import base64
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrl.data.sources import read
from mmrl.models.prompts import IMAGE
from mmrl.rewards.verifiers import VERIFIERS, reported_components
from mmrl.tasks.convert import ConvertOptions as Options
from mmrl.tasks.convert import choice_rows, convert
from mmrl.tasks.entries import ImageFolder

SIZE = (200, 100)  # width and height of the photos


def png(value=90, size=SIZE):
    out = io.BytesIO()
    Image.new("RGB", size, (value, 40, 40)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(10))
    (folder / "deep" / "b.png").write_bytes(png(20))
    (tmp_path / "secret.png").write_bytes(png(30))
    return folder


def converted(layout, entries, photos, *, out="out.jsonl", options=None, name="in.json", **choices):
    source = photos.parent / name
    source.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    target = photos.parent / "made" / out
    made = convert(layout, source, photos, target, options or Options(), probe=reported_components, **choices)
    rows = list(read(target))
    assert len(rows) == made.rows
    for sample in rows:
        assert sample.problem.count(IMAGE) == len(sample.images)
        assert VERIFIERS[sample.verifier](sample, f"\\boxed{{{sample.answer}}}")["accuracy"] == 1.0
        for image in sample.images:
            Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).verify()
    return made, rows


CHAT = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "a board"},
    {"from": "human", "value": "Of which colour?"},
    {"from": "gpt", "value": "red"},
]


def test_each_question_of_a_conversation_is_a_row_after_those_before_it(photos):
    made, rows = converted("llava", [{"id": 7, "image": "a.png", "conversations": CHAT}], photos)
    assert (made.entries, made.broken) == (1, ())
    assert [row.answer for row in rows] == ["a board", "red"]
    assert rows[0].problem == "<image>\nWhat is it?"
    assert rows[1].problem == "Question: <image>\nWhat is it?\nAnswer: a board\n\nQuestion: Of which colour?"
    assert [row.solution for row in rows] == ["a board", "red"]
    assert {row.verifier for row in rows} == {"text"}


def test_only_the_first_question_with_a_verifier_of_ones_own(photos):
    entries = [{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}]
    entries.append({"image": ["a.png", "deep/b.png"], "conversations": CHAT[2:]})
    lines = "\n".join(map(json.dumps, entries))
    _, rows = converted(
        "llava", lines, photos, options=Options(turns="first", verifier="math"), name="in.jsonl"
    )
    assert [row.problem for row in rows] == ["2 + 2?", "<image><image>Of which colour?"]
    assert [row.verifier for row in rows] == ["math", "math"]
    assert [len(row.images) for row in rows] == [0, 2]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"image": "gone.png"}, "there is no image 'gone.png'"),
        ({"image": "../secret.png"}, "not in the folder of images"),
        ({"image": "/etc/passwd"}, "not in the folder of images"),
        ({"image": 3}, "not a path"),
        ({"image": ["a.png", "a.png"]}, "2 images but 1 placeholders"),
        ({"image": None}, "0 images but 1 placeholders"),
        ({"video": "x.mp4"}, "about a video"),
        ({"conversations": []}, "no list 'conversations'"),
        ({"conversations": CHAT[1:]}, "not a question, a reply"),
        ({"conversations": [*CHAT[:1], {"from": "gpt", "value": "<image>"}]}, "a reply holds <image>"),
        ({"conversations": [*CHAT[:1], {"from": "x", "value": "?"}]}, "a turn of 'x'"),
        ({"conversations": [*CHAT[:1], 4]}, "a turn without a role"),
        ({"conversations": [*CHAT[:1], {"from": "gpt", "value": "\ud800"}]}, "not valid Unicode"),
    ],
)
def test_a_broken_conversation_is_named_with_its_reason(photos, change, why):
    entry = {"image": "a.png", "conversations": CHAT[:2]}
    made, rows = converted("llava", [entry, {**entry, **change}], photos, max_broken=0.5)
    ((name, reason),) = made.broken
    assert (name, len(rows)) == ("in.json:1", 1)
    assert why in reason


def test_more_broken_entries_than_allowed_write_nothing(photos):
    with pytest.raises(ValueError, match=r"2 of 3 entries cannot be used:\n  in.json:1: .*\n  in.json:2"):
        converted("llava", [{"image": "a.png", "conversations": CHAT}, {}, 5], photos, max_broken=0.5)
    assert list((photos.parent / "made").iterdir()) == []


INSTANCES = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 200, "height": 100},
        {"id": 2, "file_name": "deep/b.png", "width": 200, "height": 100},
    ],
    "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}, {"id": 7, "name": "person"}],
    "annotations": [
        {"image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 40.5]},
        {"image_id": 1, "category_id": 6, "bbox": [0, 0, 50, 50]},
        {"image_id": 1, "category_id": 6, "bbox": [150, 50, 50.4, 50]},
        {"image_id": 1, "category_id": 7, "bbox": [1, 1, 9, 9], "iscrowd": 1},
    ],
}


def test_instances_become_one_row_an_image(photos):
    made, (row,) = converted("coco", INSTANCES, photos)
    assert (made.entries, made.empty) == (2, 1)  # nothing is marked in the second image
    assert json.loads(row.answer) == [
        {"bbox_2d": [10, 20, 40, 60.5], "label": "dog"},
        {"bbox_2d": [0, 0, 50, 50], "label": "cat"},
        {"bbox_2d": [150, 50, 200, 100], "label": "cat"},
    ]
    assert "cat, dog." in row.problem  # not the crowd
    assert "in pixels" in row.problem
    assert row.facts == {"image_size": [200, 100], "coordinates": "pixels"}


def test_a_category_with_one_object_is_grounded(photos):
    options = Options(task="ground", coordinates="thousand")
    source = photos.parent / "in.json"
    source.write_text(json.dumps(INSTANCES))
    made = convert(
        "coco", source, photos, photos.parent / "o.parquet", options, embed=True, probe=reported_components
    )
    (row,) = read(photos.parent / "o.parquet")
    assert made.rows == 1
    assert (json.loads(row.answer), row.verifier) == ([10, 20, 40, 60.5], "box")
    assert row.images == (png(10),)
    grade = VERIFIERS["box"]
    assert grade(row, "\\boxed{[50, 200, 200, 605]}")["iou"] == pytest.approx(1.0)
    assert grade(row, "\\boxed{[10, 20, 40, 60.5]}")["accuracy"] == 0.0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bbox": [10, 20, 0, 5]}, "no area"),
        ({"bbox": [150, 20, 90, 5]}, "reaches out of its image of 200x100"),
        ({"bbox": [10, 20, 30]}, r"is not [x, y, width, height]"),
        ({"bbox": [10, 20, True, 5]}, r"is not [x, y, width, height]"),
        ({"bbox": None}, r"is not [x, y, width, height]"),
        ({"category_id": 99}, "unknown category 99"),
        ({"image_id": 99}, "of no image: 99"),
    ],
)
def test_a_broken_annotation_is_named_with_its_reason(photos, change, why):
    annotations = [{**INSTANCES["annotations"][0], **change}, {**INSTANCES["annotations"][1], "image_id": 2}]
    made, _ = converted("coco", {**INSTANCES, "annotations": annotations}, photos, max_broken=0.5)
    ((_, reason),) = made.broken
    assert why in reason


def test_an_image_of_another_size_than_stated_is_broken(photos):
    images = [{**INSTANCES["images"][0], "width": 100, "height": 200}, INSTANCES["images"][1]]
    annotations = [INSTANCES["annotations"][0], {**INSTANCES["annotations"][1], "image_id": 2}]
    whole = {**INSTANCES, "images": images, "annotations": annotations}
    made, _ = converted("coco", whole, photos, max_broken=0.5)
    assert "200x100 pixels, but 100x200" in made.broken[0][1]


def test_referring_expressions(photos):
    entries = [
        {"file_name": "a.png", "bbox": [0, 0, 20, 20], "sentence": "the left one"},
        {"image": "a.png", "bbox": [5, 5, 20, 20], "sentences": [{"sent": "one"}, {"raw": "two"}]},
        {"image": "a.png", "bbox": [5, 5, 20, 20]},
    ]
    made, rows = converted("coco", entries, photos, max_broken=0.5)
    assert [row.answer for row in rows] == ["[0, 0, 20, 20]", "[5, 5, 25, 25]", "[5, 5, 25, 25]"]
    assert '"the left one"' in rows[0].problem
    assert "no sentence" in made.broken[0][1]


def test_choices_as_public_sets_have_them(photos):
    entries = [
        {"question": "Which?", "choices": ["one", "two"], "answer": 1, "hint": "Look.", "image": "a.png"},
        {"question": "Like <image 1> or <image 2>?", "options": "['as <image 2>', 'no']", "answer": "B"},
        {"question": "Sure?", "A": "yes", "B": "no", "C": "", "answer": "yes"},
        {"question": "How many?", "options": ["3", "4"], "answer": "4"},
        {"question": "Open?", "options": "[]", "answer": "42"},
    ]
    entries[1] |= {"image_1": "a.png", "image_2": "deep/b.png"}
    made, rows = converted("choice", entries, photos)
    assert (made.rows, made.empty) == (4, 1)
    assert [row.answer for row in rows] == ["B", "B", "A", "B"]
    assert rows[0].problem == "<image>Look.\nWhich?\nA. one\nB. two"
    assert rows[1].problem == "Like <image> or <image>?\nA. as <image>\nB. no"
    assert [image.rsplit("/", 1)[1] for image in rows[1].images] == ["a.png", "b.png", "b.png"]
    assert [row.facts["options"] for row in rows[2:]] == [["yes", "no"], ["3", "4"]]
    assert rows[1].facts["options"] == ["as image 2", "no"]


def test_tables_with_images_in_base_64_or_bytes(photos):
    photo = base64.b64encode(noise := png_of_noise()).decode()
    text = f'index\tquestion\tA\tB\tanswer\timage\n1\t"two\nlines"\tx\ty\tB\t{photo}\n2\tshort\n'
    made, (row,) = converted("choice", text, photos, name="in.tsv", out="o.parquet", max_broken=0.5)
    assert (row.problem, row.answer, row.images) == ("<image>two\nlines\nA. x\nB. y", "B", (noise,))
    assert made.broken == (("in.tsv:1", "2 cells under a header of 6"),)
    table = pa.Table.from_pylist(
        [{"question": "?", "choices": ["x", "y"], "answer": 0, "image": {"bytes": png(), "path": None}}]
    )
    pq.write_table(table, photos.parent / "in.parquet")
    made = convert("choice", photos.parent / "in.parquet", photos, photos.parent / "p.parquet", Options())
    assert next(iter(read(photos.parent / "p.parquet"))).images == (png(),)
    with pytest.raises(ValueError, match=r"JSONL holds no images: write a \.parquet file"):
        convert("choice", photos.parent / "in.parquet", photos, photos.parent / "p.jsonl", Options())


def png_of_noise():
    out = io.BytesIO()
    Image.effect_noise((90, 90), 80).save(out, "PNG")
    return out.getvalue()


def test_sciences_questions_by_name_with_images_in_folders(photos):
    (photos / "train" / "12").mkdir(parents=True)
    (photos / "train" / "12" / "image.png").write_bytes(png(50))
    entry = {
        "question": "?",
        "choices": ["x", "y"],
        "answer": 0,
        "image": "image.png",
        "split": "train",
        "id": 12,
    }
    _, (row,) = converted("choice", {"12": entry}, photos)
    assert row.images[0].endswith("train/12/image.png")


@pytest.mark.parametrize(
    ("answer", "options", "form", "right"),
    [
        ("(b)", ["x", "y"], "", "B"),
        ("C", ["x", "y"], "", None),
        ("x", ["x", "x"], "", None),  # nobody knows which
        ("1", ["5", "1", "2"], "", "B"),  # by text and by index
        ("1", ["1", "5", "2"], "", None),  # differs by text and by index
        ("1", ["1", "5", "2"], "index", "B"),
        ("1", ["1", "5", "2"], "text", "A"),
        ("B", ["B", "A"], "", None),
        ("B", ["B", "A"], "letter", "B"),
        (0, ["1", "0"], "", "A"),  # a number is an index
        (-1, ["1", "0"], "", None),
        (True, ["1", "0"], "", None),
        (None, ["1", "0"], "", None),
        ("x", "not a list", "", None),
        ("x", "[" * 9000, "", None),
        ("x", "__import__('os')", "", None),
        ("x", ["x"], "", None),
        ("x", ["x", {"y": 1}], "", None),
    ],
)
def test_an_answer_has_one_reading_or_none(photos, answer, options, form, right):
    entry = {"question": "?", "options": options, "answer": answer}
    images = ImageFolder(photos)
    if right is None:
        with pytest.raises(ValueError, match=r"options|option|read as|list"):
            choice_rows(entry, images, Options(answer=form))
    else:
        (row,) = choice_rows(entry, images, Options(answer=form))
        assert row["answer"] == right


FIELDS = ["image", "conversations", "messages", "bbox", "sentence", "annotations", "names", "question"]
FIELDS += ["options", "answer", "A", "B", "id"]


@settings(max_examples=30, deadline=None)
@given(
    layout=st.sampled_from(["llava", "coco", "choice"]),
    entry=st.dictionaries(
        st.sampled_from(FIELDS),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=9) | st.just("a.png"),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["from", "value", "id", "file_name"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    ),
)
def test_any_entry_is_a_row_or_broken(layout, entry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.png").write_bytes(png())
    good = {
        "llava": {"conversations": CHAT[2:]},
        "coco": {"image": "a.png", "bbox": [0, 0, 9, 9], "sentence": "it"},
        "choice": {"question": "?", "A": "x", "B": "y", "answer": "A"},
    }[layout]
    (folder / "in.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(entry)}\n")
    made = convert(layout, folder / "in.jsonl", folder, folder / "o.parquet", Options(), max_broken=1.0)
    assert made.entries == 2
    assert all(sample.answer for sample in read(folder / "o.parquet"))


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("in.json", "{", "is not JSON"),
        ("in.json", "3", "neither a list nor an object of entries"),
        ("in.json", b"\xff\xfe", "is not UTF-8"),
        ("in.csv", "a,a\n1,2\n", "names a column twice"),
        ("in.json", "[]", "0 entries, of which none makes a row"),
        (
            "in.json",
            '{"images": 3, "annotations": [], "categories": []}',
            "'images' is not a list of objects",
        ),
        ("in.xml", "", "not a parquet or JSONL file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(photos, name, text, why):
    path = photos.parent / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=why):
        convert("coco", path, photos, photos.parent / "o.jsonl", Options())


def test_where_to_write_is_checked_first(photos):
    with pytest.raises(ValueError, match=r"written as \.parquet or \.jsonl"):
        convert("coco", photos / "none", photos, photos / "o.csv", Options())
    with pytest.raises(ValueError, match="JSONL holds no images"):
        convert("coco", photos / "none", photos, photos / "o.jsonl", Options(), embed=True)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        convert("coco", photos / "none", photos / "nowhere", photos / "o.jsonl", Options())
