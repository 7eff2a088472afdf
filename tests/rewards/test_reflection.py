import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.style import consistency, reflection
from mmrl.sample import Sample

SAMPLE = Sample("test:0", "", "7")
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<reflection>", "</reflection>", "7", "8", " ", "x"]


def twice(first, second, between="<reflection>Let me see.</reflection>"):
    return f"<think>a</think><answer>{first}</answer>{between}<think>b</think>\n<answer>{second}</answer>"


def grade(response, truth="7", **facts):
    return reflection(Sample("test:0", "", truth, facts=facts), response)


@pytest.mark.parametrize(
    ("first", "second", "value", "accuracy"),
    [("8", "7", 1.0, 1.0), ("7", "7.0", 0.75, 1.0), ("7", "8", 0.25, 0.0), ("8", "9", 0.0, 0.0)],
)
def test_two_answers(first, second, value, accuracy):
    assert grade(twice(first, second)) == {"reflection": value, "accuracy": accuracy, "format": 1.0}


def test_one_answer():
    assert grade("<think>a</think><answer>7</answer>") == {"reflection": 0.5, "accuracy": 1.0, "format": 0.0}
    assert grade("<think>a</think><answer>8</answer>") == {"reflection": 0.0, "accuracy": 0.0, "format": 0.0}


@pytest.mark.parametrize(
    "response",
    [
        "",
        "7",
        "<answer>7",
        "<answer></answer>",
        twice("8", "7", between=""),
        twice("8", "7", between="<reflection> \n</reflection>"),
        twice("8", "7", between="<reflection>Let me see."),
        twice("8", "7", between="Let me see."),
        twice("8", "7", between="<answer>9</answer><reflection>Let me see.</reflection>"),
        twice("7", "7") + "<answer>7</answer>",
        "<think>I write <answer>7</answer></think><answer>8</answer>",
    ],
)
def test_other_answers_earn_nothing(response):
    assert grade(response) == {"reflection": 0.0, "accuracy": 0.0, "format": 0.0}


def test_two_answers_in_another_form_are_graded_without_format():
    response = "<answer>8</answer> <reflection>No.</reflection> So <answer>7</answer>"
    assert grade(response) == {"reflection": 1.0, "accuracy": 1.0, "format": 0.0}


def test_naming_a_letter_is_no_answer():
    """SRPO's fallback would pay 1 for a text in which the right letter occurs and no other."""
    assert grade(twice("d", "the b, I believe"), truth="B")["reflection"] == 0.0
    assert grade(twice("d", "(b)"), truth="B")["reflection"] == 1.0


def test_answers_may_be_boxed_and_compared_as_text():
    assert grade(twice("\\boxed{8}", "\\boxed{\\frac{14}{2}}"))["reflection"] == 1.0
    assert grade(twice("7", "\\frac{14}{2}"), compare="text")["reflection"] == 0.25
    assert grade(twice("a cat", "A Dog"), truth="a dog", compare="text")["reflection"] == 1.0
    assert grade(twice("\\boxed{7", "\\boxed{}"))["reflection"] == 0.0


def test_the_row_must_have_an_answer():
    with pytest.raises(ValueError, match=r"test:0.*empty"):
        grade("", truth=" ")
    with pytest.raises(ValueError, match=r"facts\['compare'\].*math, text"):
        grade("", compare="numbers")


@given(st.lists(st.sampled_from(PIECES), max_size=16).map("".join))
@settings(max_examples=40, deadline=None)
def test_grades_are_those_of_the_table(response):
    found = grade(response)
    assert found["reflection"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found["accuracy"] == float(found["reflection"] > 0.25)


def agree(response, **facts):
    return consistency(Sample("test:0", "", "7", facts=facts), response)["consistency"]


@pytest.mark.parametrize(
    ("thinking", "answer", "expected"),
    [
        ("3 + 4 is 7", "7", 1.0),
        ("3 + 4 is 7", "8", 0.0),
        ("7 is 3 + 4", "7", 0.0),  # its last number is another
        ("so \\boxed{7}, not 8", "7", 1.0),
        ("\\boxed{7} or \\boxed{8}", "7", 0.0),
        ("\\boxed{7", "7", 0.0),
        ("The answer is 7. I checked it 3 times", "7", 1.0),
        ("the answer is: B, as the picture shows.", "(B)", 1.0),
        ("Answer: a red dog", "A red dog", 1.0),
        ("I take option = C; it fits", "C", 1.0),
        ("the answer is 3.50", "\\frac{7}{2}", 1.0),
        ("the answer is 1, 2", "1, 2", 1.0),
        ("the answer is A. No, the answer is B.", "A", 0.0),
        ("it must be the red one", "red", 0.0),  # nothing says that this is the conclusion
        ("", "7", 0.0),
        ("7", "", 0.0),
    ],
)
def test_consistency(thinking, answer, expected):
    assert agree(f"<think>{thinking}</think> \\boxed{{{answer}}}") == expected


def test_consistency_is_not_about_the_truth():
    assert agree("<think>it is 9</think> \\boxed{9}") == 1.0


def test_consistency_needs_a_thinking_and_an_answer():
    assert agree("7 \\boxed{7}") == 0.0
    assert agree("<think>it is 7 \\boxed{7}") == 0.0
    assert agree("<think>it is 7</think>") == 0.0
    assert agree("<think>it is 7</think><answer>7</answer>", answer_in="tag") == 1.0


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
@settings(max_examples=40, deadline=None)
def test_no_text_raises(thinking, answer):
    assert agree(f"<think>{thinking}</think>\\boxed{{{answer}}}") in (0.0, 1.0)
    assert set(grade(twice(thinking, answer), compare="text").values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 125_000,
        "<answer></answer>" * 60_000,
        "<answer>7</answer>" + "<reflection>" * 80_000 + "<answer>7</answer>",
        "<think>" + "answer is " * 100_000 + "</think>\\boxed{7}",
        "<think>" + "answer" + " " * 1_000_000 + "</think>\\boxed{7}",
    ],
)
def test_a_million_characters_take_seconds_at_most(text):
    start = time.process_time()
    reflection(SAMPLE, text)
    consistency(SAMPLE, text)
    assert time.process_time() - start < 2.0
