import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.boxes import box, point
from mmrl.sample import Sample

NOTHING = {"accuracy": 0.0, "iou": 0.0, "giou": 0.0}
quick = settings(max_examples=40, deadline=None)
text = st.text(alphabet=st.characters(exclude_categories=()))
whole = st.integers(0, 100)


def row(answer="[0, 0, 10, 10]", verifier="box", **facts):
    return Sample("test:0", "", answer, verifier=verifier, facts=facts)


def boxed(answer):
    return f"<think>I look.</think>\\boxed{{{answer}}}"


def test_a_box_by_hand():
    assert box(row(), boxed("[0, 0, 10, 10]")) == {"accuracy": 1.0, "iou": 1.0, "giou": 1.0}
    graded = box(row(), boxed("[5, 0, 15, 10]"))
    assert graded == {"accuracy": 0.0, "iou": pytest.approx(1 / 3), "giou": pytest.approx(2 / 3)}
    assert box(row(threshold=0.3), boxed("[5, 0, 15, 10]"))["accuracy"] == 1.0
    assert box(row(), boxed("[0, 0, 10, 5]"))["accuracy"] == 1.0  # exactly a half
    far = box(row(), boxed("[990, 0, 1000, 10]"))
    assert 0.0 < far["giou"] < 0.02
    assert far["iou"] == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "here",
        "[0, 0, 10, 10] [0, 0, 10, 10]",
        "[0, 0, 10, 10] or [50, 50, 60, 60]",
        "[0, 0, 10, 10]" * 300,
        "[10, 10, 0, 0]",
        "[5, 5, 5, 5]",
        "[0, 0, 10]",
        "[]",
    ],
)
def test_no_box_or_several(answer):
    assert box(row(), boxed(answer)) == NOTHING
    assert box(row(), answer) == NOTHING


def test_other_units():
    assert (
        box(row("[64, 48, 128, 96]", coordinates="unit", image_size=[640, 480]), boxed("[.1,.1,.2,.2]"))[
            "iou"
        ]
        > 0.999
    )
    resized = row("[64, 48, 128, 96]", input_size=[320, 240], image_size=[640, 480])
    assert box(resized, boxed("[32, 24, 64, 48]")) == {"accuracy": 1.0, "iou": 1.0, "giou": 1.0}
    assert box(resized, boxed("[64, 48, 128, 96]"))["accuracy"] == 0.0


@pytest.mark.parametrize(
    ("answer", "facts", "message"),
    [
        ("[]", {}, "0 boxes"),
        ("[[1, 2, 3, 4], [1, 2, 3, 4]]", {}, "2 boxes"),
        ("[1, 2]", {}, "should be boxes"),
        ("[1, 2, 3, 4]", {"threshold": 0}, "threshold"),
        ("[1, 2, 3, 4]", {"threshold": 1.5}, "threshold"),
        ("[1, 2, 3, 4]", {"coordinates": "thousand"}, "image_size"),
    ],
)
def test_wrong_rows_raise_whatever_the_response(answer, facts, message):
    for response in ("", boxed("[1, 2, 3, 4]")):
        with pytest.raises(ValueError, match=f"(?s)test:0.*{message}"):
            box(row(answer, **facts), response)


@quick
@given(st.lists(st.tuples(whole, whole, whole, whole), min_size=2, max_size=9))
def test_several_boxes_never_beat_one(given_boxes):
    honest = box(row(), boxed("[90, 90, 95, 95]"))
    flood = box(row(), boxed(" ".join(str(list(numbers)) for numbers in given_boxes)))
    assert all(flood[name] <= honest[name] for name in honest)


@quick
@given(text)
def test_any_text_is_graded(response):
    for answer in (response, boxed(response)):
        assert box(row(), answer).keys() == NOTHING.keys()
        assert 0.0 <= point(row(verifier="point"), answer)["accuracy"] <= 1.0


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [
        ("(5, 5)", 1.0),
        ("(10, 0)", 1.0),
        ("(11, 5)", 0.0),
        ("(25, 5)", 1.0),
        ("", 0.0),
        ("(5, 5) (25, 5)", 0.0),
        ("(5, 5) (5, 5)", 0.0),
        ("[0, 0, 10, 10]", 0.0),
        ("here", 0.0),
    ],
)
def test_a_point_in_one_of_the_boxes(answer, accuracy):
    two = row("[[0, 0, 10, 10], [20, 0, 30, 10]]", "point")
    assert point(two, boxed(answer)) == {"accuracy": accuracy}


def test_a_point_near_another():
    near = row("[5, 5]", "point", radius=2)
    assert [point(near, boxed(f"(5, {y})"))["accuracy"] for y in (5, 7, 7.1)] == [1.0, 1.0, 0.0]
    scaled = row("[320, 240]", "point", radius=10, coordinates="thousand", image_size=[640, 480])
    assert point(scaled, boxed("(500, 510)"))["accuracy"] == 1.0
    assert point(scaled, boxed("(320, 240)"))["accuracy"] == 0.0


def test_several_points_where_several_are_asked():
    three = row("[[0, 0, 10, 10], [20, 0, 30, 10], [5, 0, 25, 10]]", "point", several=True)
    every = "(5, 5) (25, 5) (15, 5)"
    assert point(three, boxed(every))["accuracy"] == 1.0
    assert point(three, boxed("(7, 5) (8, 5) (22, 5)"))["accuracy"] == 1.0  # only one assignment fits
    assert point(three, boxed("(5, 5)"))["accuracy"] == 0.5
    assert point(three, boxed(every + "(99, 99)" * 3))["accuracy"] == pytest.approx(2 / 3)
    assert point(three, boxed("(1, 1)" * 9))["accuracy"] == pytest.approx(1 / 6)
    assert point(three, boxed(""))["accuracy"] == 0.0


@pytest.mark.parametrize(
    ("answer", "facts", "message"),
    [
        ("[]", {}, "marks nothing"),
        ("[5, 5]", {}, "radius"),
        ("[5, 5]", {"radius": -1}, "radius"),
        ("[0, 0, 1, 1]", {"several": "yes"}, "several"),
        ("there", {}, "JSON"),
    ],
)
def test_wrong_rows_of_points(answer, facts, message):
    with pytest.raises(ValueError, match=f"(?s)test:0.*{message}"):
        point(row(answer, "point", **facts), "")
