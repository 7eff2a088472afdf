import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.boxes import (
    MAX_BOXES,
    read_answer,
    read_boxes,
    read_points,
    tokenize,
    true_boxes,
    true_points,
)
from mmrl.rewards.verifier import options_of
from mmrl.sample import Sample

quick = settings(max_examples=40, deadline=None)
text = st.text(alphabet=st.characters(exclude_categories=()))  # lone surrogates too
words = (
    "bbox_2d",
    "label",
    "score",
    "x1",
    "1",
    "-2.5",
    "1e9",
    "nan",
    "9" * 400,
    "<box>",
    "</box>",
    "```json",
)
pieces = st.lists(st.sampled_from([*"[](){}\"':=, \n\x00\ud800\\", *words]), max_size=40).map("".join)


def row(answer="[0, 0, 10, 10]", **facts):
    return Sample("test:0", "", answer, verifier="box", facts=facts)


ONE_BOX = [
    "[10, 20, 30, 40]",
    "10, 20, 30, 40",
    "[10 20 30 40]",
    "[10,\n 20,\n30, 40]",
    "[10.0, 2e1, +30., 40]",
    "(10, 20), (30, 40)",
    "[[10, 20], [30, 40]]",
    "top left (10, 20), bottom right (30, 40)",
    "<box>(10,20),(30,40)</box>",
    "<box>10 20 30 40</box>",
    "<|box_start|>(10,20),(30,40)<|box_end|>",
    "x1=10, y1=20, x2=30, y2=40",
    '{"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40}',
    '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}',
    '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]',
    '```json\n[{"bbox_2d": [10, 20, 30, 40]}]\n```',
    '```json\n[{"bbox_2d": [10, 20, 30, 40]}]',
    "[{'bbox': [10, 20, 30, 40], 'label': \"it's\"},]",
    '{"box": ["10", "20", "30", "40"]}',
    '{"bbox_2d": "[10, 20, 30, 40]"}',
    '"[10, 20, 30, 40]"',
    r"\left[10, 20, 30, 40\right]",
    '{"bbox_2d": [10, 20, 30, 40], "point_2d": [20, 30]}',
    "the dog's box is [10, 20, 30, 40]",
    "[10, 20, 30, 40",
]


@pytest.mark.parametrize("answer", ONE_BOX)
def test_ways_to_write_a_box(answer):
    assert read_boxes(answer).corners.tolist() == [[10, 20, 30, 40]]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I see no way",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "(1, 2)",
        "[1, 2, x, 4]",
        "{}{}",
        "[[]]",
        "none of them",
        "[1, 2, 3, 1e10]",
        "[nan, 1, 2, 3]",
        "[1, 2, 3, 1e999]",
        '[{"label": "dog"}]',
        "x1=1, y1=2, x2=3",
        "\u0663 \u0664 \u0665 \u0666",
    ],
)
def test_what_is_no_box(answer):
    assert read_boxes(answer) is None


@pytest.mark.parametrize(
    "answer", ["[]", "{}", "None", "none.", "null", "```json\n[]\n```", " No objects. ", "[ ]"]
)
def test_no_boxes_said_outright(answer):
    assert len(read_boxes(answer).corners) == 0


def test_every_box_counts():
    fenced = '```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```'
    assert len(read_boxes(f"{fenced} or rather {fenced}").corners) == 2
    assert len(read_boxes("[1, 2, 3, 4] (1, 2), (3, 4) x1=1 y1=2 x2=3 y2=4").corners) == 3
    assert read_boxes("[1, 2, 3, 4]" * MAX_BOXES).corners.shape == (MAX_BOXES, 4)
    assert read_boxes("[1, 2, 3, 4]" * (MAX_BOXES + 1)) is None
    assert read_boxes("[[1, 2, 3, 4], [5, 6, 7, 8]]").corners.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_labels_and_confidences_belong_to_their_record():
    answer = """[{"label": "Traffic  Light", "bbox_2d": [1, 2, 3, 4], "confidence": 0.25},
        {"bbox_2d": [5, 6, 7, 8], "label": "a [1, 2] \\"dog\\"", "score": "7"}, [9, 9, 10, 10]]"""
    found = read_boxes(answer)
    assert found.labels == ("traffic light", 'a [1, 2] "dog"', None)
    assert found.confidence.tolist() == [0.25, 1.0, 1.0]
    assert len(found.corners) == 3


def test_labels_of_records_within_records():
    answer = '{"label": "dog", "found": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, "more": {"box": [5, 6, 7, 8]}'
    assert read_boxes(answer).labels == ("dog", "dog")


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ("(10, 20)", [[10, 20]]),
        ("[10.5, 20]", [[10.5, 20]]),
        ("10, 20", [[10, 20]]),
        ("x=10, y=20", [[10, 20]]),
        ('{"x": 10, "y": "20"}', [[10, 20]]),
        ('<point x="10" y="20" alt="dog">dog</point>', [[10, 20]]),
        ('<points x1="1" y1="2" x2="3" y2="4">', [[1, 2], [3, 4]]),
        ('[{"point_2d": [1, 2], "label": "a"}, {"point_2d": [3, 4]}]', [[1, 2], [3, 4]]),
        ("[10, 20, 30, 40]", []),
        ("(1e10, 5)", []),
        ("[1, 2]" * (MAX_BOXES + 1), []),
        ("here", []),
    ],
)
def test_points(answer, points):
    assert read_points(answer).tolist() == points


@quick
@given(text | pieces)
def test_any_text_is_read(answer):
    found = read_boxes(answer)
    assert found is None or np.isfinite(found.corners).all()
    assert found is None or ((found.confidence >= 0.0) & (found.confidence <= 1.0)).all()
    assert np.isfinite(read_points(answer)).all()


@quick
@given(
    st.lists(st.tuples(st.lists(st.integers(-99, 99), min_size=4, max_size=4), text), min_size=1, max_size=5)
)
def test_what_is_written_as_json_is_read_back(entries):
    """Labels of digits and brackets alone are read as numbers."""
    entries = [(box, f"label {label}"[:200]) for box, label in entries]
    answer = json.dumps([{"bbox_2d": box, "label": label} for box, label in entries])
    found = read_boxes(answer)
    assert found.corners.tolist() == [box for box, _ in entries]
    assert found.labels == tuple(" ".join(label.casefold().split()) for _, label in entries)


@pytest.mark.parametrize(
    "piece", ['"', "'", " 'a", "[", "{", "9", '"\\', "a", "{label:a[1,2,3,4]", "<|box", "'a'='"]
)
def test_time_is_linear_in_the_text(piece):
    def seconds(length):
        hostile = (piece * length)[:length]
        begun = time.process_time()
        tokenize(hostile)
        read_boxes(hostile)
        return time.process_time() - begun

    assert seconds(8192) < 1.0


def scale(sample):
    return read_answer(sample, "", **options_of(read_answer, sample))[1]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, [1, 1]),
        ({"coordinates": "unit", "image_size": [640, 480]}, [640, 480]),
        ({"coordinates": "thousand", "image_size": [640, 480]}, [0.64, 0.48]),
        ({"input_size": [320, 160], "image_size": [640, 480]}, [2, 3]),
    ],
)
def test_units_of_an_answer(facts, expected):
    assert scale(row(**facts)).tolist() == expected


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"coordinates": "inches"}, "coordinates"),
        ({"coordinates": "unit"}, "image_size"),
        ({"input_size": [1, 2]}, "image_size"),
        ({"coordinates": "unit", "image_size": [1, 2], "input_size": [1, 2]}, "not both"),
        ({"coordinates": "unit", "image_size": [0, 2]}, "width, height"),
        ({"coordinates": "unit", "image_size": "640x480"}, "a list"),
    ],
)
def test_wrong_units(facts, message):
    with pytest.raises(ValueError, match=f"(?s)test:0.*{message}"):
        scale(row(**facts))


@pytest.mark.parametrize(
    "answer",
    [
        "[1, 2, 3, 4]",
        "[[1, 2, 3, 4]]",
        '{"bbox_2d": [1, 2, 3, 4]}',
        '[{"bbox": [1.0, 2, 3, 4]}]',
        '[{"box": [1, 2, 3, 4], "label": null}]',
    ],
)
def test_ways_to_write_a_truth(answer):
    truth = true_boxes(row(answer))
    assert (truth.corners.tolist(), truth.labels) == ([[1, 2, 3, 4]], (None,))


def test_labelled_truths():
    truth = true_boxes(
        row('[{"bbox_2d": [1, 2, 3, 4], "label": "Dog"}, {"box_2d": [1, 2, 3, 4], "label": "cat"}]')
    )
    assert truth.labels == ("dog", "cat")
    assert len(true_boxes(row("[]")).corners) == 0
    assert true_points(row("[1, 2]")).tolist() == true_points(row('{"point": [1, 2]}')).tolist() == [[1, 2]]
    assert true_points(row("[[1, 2], [3, 4]]")).shape == (2, 2)
    assert true_points(row("[1, 2, 3, 4]")) is true_points(row("[]")) is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "JSON"),
        ("[1, 2", "JSON"),
        ("[" * 10_000, "JSON"),
        ("dog", "JSON"),
        ("[1, 2, 3]", "should be boxes"),
        ("[1, 2, 3, true]", "should be boxes"),
        ("[1, 2, 3, 1e99]", "should be boxes"),
        ("[1, 2, 3, NaN]", "should be boxes"),
        ('{"label": "dog"}', "should be boxes"),
        ("[3, 2, 1, 4]", "without area"),
        ("[1, 2, 1, 4]", "without area"),
        ('[[1, 2, 3, 4], {"bbox_2d": [1, 2, 3, 4], "label": "dog"}]', "labels some"),
    ],
)
def test_wrong_truths(answer, message):
    with pytest.raises(ValueError, match=f"(?s)test:0.*{message}"):
        true_boxes(row(answer))
