import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.choice import choice, letters_of, read_choice
from mmrl.sample import Sample

OPTIONS = ["red", "a dog", "2 < x", "blue"]


def grade(answer, truth="B", **facts):
    sample = Sample("test:0", "", truth, facts=facts)
    return choice(sample, f"<think></think>\\boxed{{{answer}}}")["accuracy"]


def grade_several(answer, truth="A,C", **facts):
    return grade(answer, truth, several=True, **facts)


@pytest.mark.parametrize(
    "answer",
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
        "The correct answer is (B).",
    ],
)
def test_ways_to_name_a_letter(answer):
    assert grade(answer) == grade(answer, options=OPTIONS) == 1.0
    assert grade(answer, truth="C") == grade(answer, truth="C", options=OPTIONS) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A and B",
        "AB",
        "B or C",
        "both",
        "None",
        "a cat",
        "B and A",
        "ABCD",
        "A, B, C, D",
        "(A)(B)(C)(D)",
        "B. or A.",
        "B, A",
        "B/A",
        "B: A",
        "(B) (A)",
        "B) ABCD",
        "(B) a dog (A) red",
        "B. a dog C. 2 < x",
        "B or maybe C",
        "b) a) c) d)",
        "b. a",
        "B. a, c, d",
        "(b) (a)",
        "all of them",
        '["A", "B"]',
        "A\nB\nC\nD",
        "B. a dog\nA. red",
    ],
)
def test_what_names_no_single_letter(answer):
    assert grade(answer) == grade(answer, options=OPTIONS) == 0.0
    assert grade(answer, truth="A") == grade(answer, truth="A", options=OPTIONS) == 0.0


def test_an_article_is_no_letter():
    assert read_choice("A dog") == (None, "A dog")


@pytest.mark.parametrize("answer", ["B. f(x) = 2", "B. Vitamin C", "(B) 5 N", "B) point (B)", "B: NASA"])
def test_a_text_behind_the_letter_is_no_further_letter(answer):
    assert grade(answer) == 1.0


def test_option_texts():
    assert grade("a dog", options=OPTIONS) == 1.0
    assert grade("A Dog", options=OPTIONS) == 1.0
    assert grade("red", options=OPTIONS) == 0.0
    assert grade("B", truth="a dog", options=OPTIONS) == 1.0
    assert grade("C", truth="a dog", options=OPTIONS) == 0.0
    assert grade("2<x", truth="C", options=dict(zip("abcd", OPTIONS, strict=True))) == 1.0
    assert grade("red, a dog, 2 < x, blue", options=OPTIONS) == 0.0


def test_a_letter_with_the_text_of_another_option_is_two_answers():
    assert grade("B. a dog", options=OPTIONS) == 1.0
    assert grade("B. dogs", options=OPTIONS) == 1.0
    assert grade("B. red", options=OPTIONS) == 0.0
    assert grade("B. red", truth="A", options=OPTIONS) == 0.0


def test_options_beyond_d():
    options = [str(n) for n in range(26)]
    assert grade("Z", truth="Z", options=options) == 1.0
    assert grade("25", truth="Z", options=options) == 1.0
    assert grade("(J)", truth="9", options=options) == 1.0
    assert grade("E", options=OPTIONS) == 0.0


def test_options_that_are_numbers():
    assert grade("4.0", truth="B", options=["3", "4", "5"]) == 1.0
    assert grade("4", truth="B", options=[3, 4, 5]) == 1.0
    assert grade("1,000", truth="A", options=["1000", "100"]) == 1.0
    assert grade("B. 3", truth="B", options=["3", "4", "5"]) == 0.0
    assert grade("2", truth="2", options={"1": "red", "2": "blue"}) == 1.0
    assert grade("blue", truth="2", options={"1": "red", "2": "blue"}) == 1.0


def test_options_that_are_letters():
    options = ["X", "Y", "B"]
    assert grade("B. Y", truth="B", options=options) == 1.0
    assert grade("(B) Y", truth="B", options=options) == 1.0
    assert grade("Y", truth="B", options=options) == 1.0
    assert grade("B. X", truth="B", options=options) == 0.0


def test_text_without_options_is_compared_with_text():
    assert grade("a dog", truth="A dog") == 1.0
    assert grade("a cat", truth="A dog") == 0.0


def test_no_box_scores_nothing():
    assert choice(Sample("test:0", "", "B"), "B") == {"accuracy": 0.0}
    assert choice(Sample("test:0", "", "None"), "no box") == {"accuracy": 0.0}
    assert grade("", truth="") == 0.0


@pytest.mark.parametrize(
    "answer", ["A,C", "C, A", "AC", "CA", "A C", "(A), (C)", "(A)(C)", "A and C", "A & C"]
)
@pytest.mark.parametrize("truth", ["A,C", "AC", '["A", "C"]'])
def test_ways_to_name_several(answer, truth):
    assert grade_several(answer, truth) == grade_several(answer, truth, options=OPTIONS) == 1.0


@pytest.mark.parametrize(
    "answer",
    ['["A", "C"]', "[A, C]", "(A, C)", "A. red, C. 2 < x", "red; 2<x", "A. red\nC. 2 < x", "Options A, C"],
)
def test_more_ways_to_name_several(answer):
    assert grade_several(answer, options=OPTIONS) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "A",
        "C",
        "ABC",
        "ABCD",
        "A, B, C, D",
        "B",
        "",
        "A or C",
        "AE",
        "A, red dog",
        '["A", 1]',
        "A,,,E",
        "BAD",
    ],
)
def test_several_must_be_the_same_set(answer):
    assert grade_several(answer, options=OPTIONS) == 0.0


def test_one_right_answer_among_several_allowed():
    assert grade_several("B", truth="B") == 1.0
    assert grade_several("A, B", truth="B") == 0.0


def test_texts_with_commas_are_told_apart_by_semicolons():
    options = ["salt, pepper", "sugar", "tea and milk"]
    assert grade_several("salt, pepper; tea and milk", truth="A,C", options=options) == 1.0
    assert grade_several("salt, pepper", truth="A", options=options) == 1.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [("A,B,C", 1.0), ("A", 1 / 3), ("C,A", 2 / 3), ("A,D", 0.0), ("ABCD", 0.0), ("", 0.0)],
)
def test_partial_credit_without_a_wrong_letter(answer, value):
    assert grade_several(answer, truth="ABC", partial=True, options=OPTIONS) == pytest.approx(value)


@pytest.mark.parametrize(
    ("truth", "facts"),
    [
        ("E", {"options": OPTIONS}),
        ("green", {"options": OPTIONS}),
        ("A,C", {"options": OPTIONS}),
        ("", {"options": OPTIONS}),
        ("A,E", {"options": OPTIONS, "several": True}),
        ("cat", {"several": True}),
        ("A", {"options": ["x"] * 27}),
        ("A", {"options": [["x"]]}),
        ("A", {"options": "red"}),
        ("A", {"several": "yes"}),
        ("A", {"several": True, "partial": 1}),
    ],
)
def test_a_row_that_cannot_be_graded_is_an_error(truth, facts):
    with pytest.raises(ValueError, match="test:0"):
        grade("", truth, **facts)


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.sampled_from("ABCDEFGH"), min_size=1),
    st.randoms(),
    st.sampled_from(["", ",", ", ", " and ", ";", " "]),
)
def test_the_order_of_several_does_not_matter(letters, random, between):
    shuffled = sorted(letters)
    random.shuffle(shuffled)
    assert letters_of(between.join(shuffled), {}) == letters
    assert grade_several(between.join(shuffled), truth=",".join(sorted(letters))) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.text() | st.text('ABCD(),.and \n;[]"', max_size=20), st.sampled_from(["A", "C"]), st.booleans())
def test_no_text_raises(answer, truth, several):
    assert grade(answer, truth, options=OPTIONS, several=several) in (0.0, 1.0)
    assert grade(answer, truth, several=several) in (0.0, 1.0)
