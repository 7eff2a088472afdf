import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.number import interval, interval_iou, read_interval
from mmrl.sample import Sample

quick = settings(max_examples=40, deadline=None)
stretches = st.tuples(st.integers(0, 999), st.integers(1, 999)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def grade(answer, truth="[10, 20]", **facts):
    sample = Sample("test:0", "", truth, verifier="interval", facts=facts)
    return interval(sample, f"<think></think>\\boxed{{{answer}}}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[12.5, 20]", (12.5, 20.0)),
        ("12.5, 20", (12.5, 20.0)),
        ("from 12s to 20.5 s.", (12.0, 20.5)),
        ("12-20", (12.0, 20.0)),
        ("12 \u2013 20", (12.0, 20.0)),
        ("1:05 - 1:20", (65.0, 80.0)),
        ("00:01:05.5 to 00:01:20", (65.5, 80.0)),
        ("59, 1:01", (59.0, 61.0)),
        ('{"start": 3, "end": 5}', (3.0, 5.0)),
        ("[0, 0.5]", (0.0, 0.5)),
    ],
)
def test_ways_to_write_an_interval(text, expected):
    assert read_interval(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "12",
        "[20, 12]",
        "[12, 12]",
        "[1, 2, 3]",
        "[1, 2] [3, 4]",
        "1:75 - 1:80",
        "-3, 5",
        "[-3, 5]",
        "[\u0663, 5]",
    ],
)
def test_what_is_no_interval(text):
    assert read_interval(text) is None
    assert grade(text) == {"accuracy": 0.0, "temporal_iou": 0.0}


def test_graded_by_hand():
    assert grade("[10, 20]") == {"accuracy": 1.0, "temporal_iou": 1.0}
    assert grade("[15, 25]") == {"accuracy": 0.0, "temporal_iou": pytest.approx(1 / 3)}
    assert grade("[15, 25]", threshold=0.3)["accuracy"] == 1.0
    assert grade("[10, 15]") == {"accuracy": 1.0, "temporal_iou": 0.5}
    assert grade("[20, 30]")["temporal_iou"] == 0.0
    assert (
        grade("0:10 - 0:20")["temporal_iou"] == grade("[10, 20]", truth="0:10 - 0:20")["temporal_iou"] == 1.0
    )


@pytest.mark.parametrize("truth", ["", "10", "[20, 10]", "[1, 2, 3]", "later"])
def test_wrong_rows(truth):
    with pytest.raises(ValueError, match=r"test:0.*two times"):
        grade("", truth)


@quick
@given(stretches, stretches, st.integers(0, 99), st.sampled_from([0.5, 2.0, 60.0]))
def test_overlap_is_a_similarity(first, second, shift, scale):
    overlap = interval_iou(first, second)
    assert 0.0 <= overlap <= 1.0
    assert overlap == interval_iou(second, first)
    assert interval_iou(first, first) == 1.0
    moved = [tuple(scale * (time + shift) for time in stretch) for stretch in (first, second)]
    assert interval_iou(*moved) == pytest.approx(overlap)
    farther = (second[0] + shift, second[1] + shift)
    if second[0] >= first[0]:
        assert interval_iou(first, farther) <= overlap + 1e-12


@quick
@given(st.text(alphabet=st.characters(exclude_categories=())) | st.text(alphabet="0123456789.:-[], "))
def test_any_text_is_graded(answer):
    assert grade(answer).keys() == {"accuracy", "temporal_iou"}
