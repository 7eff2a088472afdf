"""The checker of the shapes world: every response falls into exactly one class, whatever it holds."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.shapes import shapes
from mmrl.sample import Sample


def sample(kind: str = "count", seen: str = "a1 b2", answer: str = "2") -> Sample:
    facts = {"kind": kind, "seen": seen.split()}
    return Sample("world:0", "<image>How many red shapes?", answer, verifier="shapes", facts=facts)


def ones(components: dict[str, float]) -> set[str]:
    assert set(components.values()) <= {0.0, 1.0}
    return {name for name, value in components.items() if value}


@pytest.mark.parametrize(
    ("kind", "seen", "answer"),
    [
        ("count", "a1 b2", "2"),
        ("count", "none", "0"),
        ("compare", "red 3 blue 1", "red"),
        ("locate", "c2", "c"),
        ("read", "3 4", "7"),
        ("missing", "red blue", "white"),
    ],
)
def test_ideal_response_of_each_kind(kind, seen, answer):
    response = f"<think> {seen} </think> \\boxed{{{answer}}}"
    assert ones(shapes(sample(kind, seen, answer), response)) == {"accuracy", "format"}


@pytest.mark.parametrize(
    ("kind", "seen", "answer", "stated", "boxed", "expected"),
    [
        ("count", "a1 b2", "2", "a1 b2", "3", "reasoning_error"),
        ("count", "a1 b2", "2", "b2 a1", "3", "reasoning_error"),  # the order of cells says nothing
        ("count", "a1 b2", "2", "a1", "1", "perception_error"),
        ("count", "a1 b2", "2", "a1 a1", "1", "perception_error"),  # named twice is not seen twice
        ("count", "a1 b2", "2", "none", "0", "perception_error"),
        ("count", "none", "0", "none", "1", "reasoning_error"),
        ("count", "a1 b2", "2", "", "1", "format_error"),
        ("count", "a1 b2", "2", "red", "1", "format_error"),
        ("count", "a1 b2", "2", "a1 e9", "1", "format_error"),
        ("compare", "red 3 blue 1", "red", "red 3 blue 1", "blue", "reasoning_error"),
        ("compare", "red 3 blue 1", "red", "blue 1 red 3", "same", "reasoning_error"),
        ("compare", "red 3 blue 1", "red", "red 1 blue 3", "blue", "perception_error"),
        ("compare", "red 3 blue 1", "red", "red blue", "blue", "format_error"),
        ("locate", "c2", "c", "c2", "2", "reasoning_error"),
        ("locate", "c2", "c", "b2", "b", "perception_error"),
        ("read", "3 4", "7", "3 4", "8", "reasoning_error"),
        ("read", "3 4", "7", "3 5", "8", "perception_error"),
        ("read", "3 4", "7", "34", "8", "format_error"),
        ("missing", "red blue", "white", "blue red", "red", "reasoning_error"),
        ("missing", "red blue", "white", "red white", "blue", "perception_error"),
    ],
)
def test_a_wrong_answer_has_one_cause(kind, seen, answer, stated, boxed, expected):
    response = f"<think> {stated} </think> \\boxed{{{boxed}}}"
    assert ones(shapes(sample(kind, seen, answer), response)) == {expected, "format"}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", {"format_error"}),
        ("2", {"format_error"}),
        ("<think> a1 b2 </think>", {"format_error"}),
        ("<think> a1 b2 </think> \\boxed{2", {"format_error"}),
        ("<think> a1 b2 </think> \\boxed{}", {"format", "format_error"}),
        ("<think> a1 b2 \\boxed{3}", {"format_error"}),
        ("<think> a1 b2 </think> \\boxed{2} \\boxed{3}", {"reasoning_error"}),  # the last box counts
        ("<think> a1 b2 </think> \\boxed{3} \\boxed{2}", {"accuracy"}),
        ("\\boxed{2}", {"accuracy", "unfaithful"}),
        ("<think> a1 c1 </think> \\boxed{2}", {"accuracy", "format", "unfaithful"}),
        ("<think> a1 b2 </think> \\boxed{ 2 }\n", {"accuracy", "format"}),
        ("so <think> a1 b2 </think> \\boxed{2}", {"accuracy"}),
        ("<think> a1 b2 </think> \\boxed{2} .", {"accuracy"}),
    ],
)
def test_form(response, expected):
    assert ones(shapes(sample(), response)) == expected


@given(st.text(alphabet="ab12 <>/think\\boxed{}\n", max_size=60))
def test_any_text_is_right_or_has_exactly_one_error(response):
    judged = shapes(sample(), response)
    assert judged["accuracy"] + sum(v for k, v in judged.items() if k.endswith("_error")) == 1
    assert judged["unfaithful"] <= judged["accuracy"]


@pytest.mark.parametrize(
    "hostile",
    [
        "<think>" * 1_400_000,
        "\\boxed{" * 1_400_000,
        "<think> a1 b2 </think> \\boxed{" + "{" * 10_000_000,
        "<think> " + "a1 " * 3_000_000 + "</think> \\boxed{2}",
        "<think> a1 </think> \\boxed{" + "2" * 10_000_000 + "}",
        "<think>" + " " * 10_000_000,
    ],
)
def test_ten_megabytes_are_judged_quickly(hostile):
    start = time.perf_counter()
    shapes(sample(), hostile)
    assert time.perf_counter() - start < 2  # about 0.05 s on an idle core


def test_facts_of_another_world_are_refused():
    with pytest.raises(ValueError, match=r"world:7.*'kind'"):
        shapes(Sample("world:7", "", "2", facts={"kind": "sing", "seen": []}), "")
    with pytest.raises(ValueError, match="list 'seen'"):
        shapes(Sample("world:7", "", "2", facts={"kind": "count"}), "")
