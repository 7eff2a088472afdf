"""What ``mmrl data convert`` reads: every layout, in every kind of file."""

import json

import numpy as np
import pytest
from damage import altered, damaged, json_files, jsonl_files, words
from fuzzing import command
from hypothesis import strategies as st
from PIL import Image
from test_fuzz_data import csv_of, table_of

from mmrl.data.sources import read
from mmrl.tasks.captions import read_captions, vocabulary

LLAVA = [
    {
        "id": "1",
        "image": "good.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "2"}],
    },
    {
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        "images": [],
    },
]
COCO = {
    "images": [{"id": 1, "file_name": "good.png", "width": 40, "height": 30}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10.5, 8], "iscrowd": 0, "area": 84}
    ],
    "categories": [{"id": 3, "name": "cat"}],
}
REFERRED = [{"file_name": "good.png", "bbox": [1, 2, 3, 4], "sentence": "the cat"}]
CHOICE = [
    {
        "question": "Which?<image 1>",
        "options": ["red", "blue"],
        "answer": "B",
        "image_1": {"path": "good.png"},
        "id": 1,
    },
    {"question": "Which?", "A": "red", "B": "blue", "answer": "A", "hint": "Look."},
    {"question": "Which?", "choices": "['red', 'blue']", "answer": 1, "image": "good.png"},
]
QUESTIONS = [
    {"question": "How many?", "answer": ["3", "3", "4"], "image": "good.png"},
    {"query": "Why?", "label": "so", "images": ["good.png"]},
]


@pytest.fixture
def convert(fuzz):
    """Converts bytes of a file of some name, from a layout, with further words."""
    (fuzz.folder / "photos").mkdir()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(fuzz.folder / "photos" / "good.png")
    (fuzz.folder / "o.jsonl").touch()

    def run(inputs, layout, name, *words, **how):
        (fuzz.folder / name).touch()

        def go(given):
            data, more = given if isinstance(given, tuple) else (given, ())
            (fuzz.folder / name).write_bytes(data)
            (fuzz.folder / "o.jsonl").write_text("before")
            try:
                command(
                    "data",
                    "convert",
                    f"--from={layout}",
                    name,
                    "--images=photos",
                    "--out=o.jsonl",
                    *words,
                    *more,
                )
            except ValueError:
                # What stood there stands there still.
                assert (fuzz.folder / "o.jsonl").read_text() == "before"
                raise
            assert all(sample.problem for sample in read("o.jsonl"))

        fuzz(inputs, go, **({"names": name, "lines": 9} | how))

    return run


@pytest.mark.parametrize("layout", ["llava", "coco", "choice", "questions"])
def test_conversion_of_json(convert, layout):
    tree = {"llava": LLAVA, "coco": COCO, "choice": CHOICE, "questions": QUESTIONS}[layout]
    convert(json_files(tree), layout, "a.json", "--max-broken=0.9", share=0.8)


def test_conversion_of_referring_expressions(convert):
    convert(json_files(REFERRED), "coco", "a.json", "--task=ground", "--coordinates=unit", share=0.5)


def test_conversion_of_jsonl(convert):
    convert(jsonl_files(CHOICE), "choice", "a.jsonl", share=0.5)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_conversion_of_csv(convert, name, delimiter):
    rows = [{"question": "Which?", "A": "red", "B": "blue", "answer": k, "image": "good.png"} for k in "AB"]
    files = damaged(csv_of(rows, delimiter)) | altered(rows).map(lambda rows: csv_of(rows, delimiter))
    convert(files, "questions", name, "--max-broken=0.9", share=0.4)


def test_conversion_of_parquet(convert):
    plain = [
        {
            key: value if key != "answer" else str(value)
            for key, value in row.items()
            if key in ("question", "A", "B", "answer")
        }
        for row in CHOICE
    ]
    altered_rows = altered(plain).filter(lambda rows: all(isinstance(row, dict) for row in rows))
    convert(
        damaged(table_of(plain)) | altered_rows.map(table_of).filter(bool), "choice", "a.parquet", share=0.8
    )


def test_captions(fuzz):
    path = fuzz.folder / "captions.json"
    path.touch()
    captions = [{"file_name": "good.png", "caption": f"{number} dogs"} for number in ("Two", "Three", "Four")]
    images, annotations = [{"id": 1, "file_name": "good.png"}], [{"image_id": 1, "caption": "Two dogs"}] * 3

    def go(data):
        path.write_bytes(data)
        found = read_captions(path)
        assert len(found) >= 2
        vocabulary(found)

    files = json_files(captions) | json_files({"images": images, "annotations": annotations})
    fuzz(files, go, names="captions.json")


def test_options_of_a_conversion(convert):
    keys = (
        "--columns",
        "--where",
        "--facts",
        "--ask",
        "--say",
        "--agreed",
        "--verifier",
        "--answer",
        "--max-broken",
    )
    said = ("question=query", "answer=nothing", '{"a": 1}', "0=no", "number,text", "2", "0.5", "nan")
    several = st.lists(
        st.tuples(st.sampled_from(keys), st.sampled_from(said) | words()).map("=".join), max_size=3
    )
    data = json.dumps(QUESTIONS).encode()
    convert(several.map(lambda more: (data, more)), "questions", "a.json", names="")
