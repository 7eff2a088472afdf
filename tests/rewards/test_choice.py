import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.choice import choice, read_choice
from mmrl.sample import Sample

OPTIONS = ["red", "a dog", "2 < x", "blue"]


def grade(boxed, answer="B", **facts):
    return choice(Sample("test:0", "", answer, facts=facts), f"<think></think>\\boxed{{{boxed}}}")["accuracy"]


@pytest.mark.parametrize(
    "boxed",
    [
        "B",
        "b",
        "(B)",
        "[B]",
        "B.",
        "B)",
        "B: a dog",
        "(B) a dog",
        r"\text{B}",
        r"\textbf{(B)}",
        "Option B",
        "The answer is B",
    ],
)
def test_ways_to_name_a_letter(boxed):
    assert grade(boxed) == 1.0
    assert grade(boxed, answer="C") == 0.0


@pytest.mark.parametrize("boxed", ["", "A and B", "AB", "B or C", "both", "None", "a dog", "B and A"])
def test_what_names_no_letter(boxed):
    assert grade(boxed) == 0.0
    assert grade(boxed, answer="A") == 0.0


def test_an_article_is_no_letter():
    assert read_choice("A dog") == (None, "A dog")


def test_option_texts():
    assert grade("a dog", options=OPTIONS) == 1.0
    assert grade("A Dog", options=OPTIONS) == 1.0
    assert grade("red", options=OPTIONS) == 0.0
    assert grade("B", answer="a dog", options=OPTIONS) == 1.0
    assert grade("C", answer="a dog", options=OPTIONS) == 0.0
    assert grade("2<x", answer="C", options=dict(zip("abcd", OPTIONS, strict=True))) == 1.0


def test_text_without_options_is_compared_with_text():
    assert grade("a dog", answer="A dog") == 1.0
    assert grade("a cat", answer="A dog") == 0.0


def test_no_box_scores_nothing():
    assert choice(Sample("test:0", "", "B"), "B") == {"accuracy": 0.0}
    assert choice(Sample("test:0", "", "None"), "no box") == {"accuracy": 0.0}
    assert grade("", answer="") == 0.0


@given(st.text(), st.text())
def test_no_text_raises(boxed, answer):
    assert grade(boxed, answer=answer, options=OPTIONS) in (0.0, 1.0)
