import time

import pytest
from hostile_responses import ANSWERS as HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.math import equal, math
from mmrl.sample import Sample


def grade(response, answer):
    return math(Sample("test:0", "", answer), response)["accuracy"]


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("44.0", "44"),
        ("0.5", r"\frac{1}{2}"),
        ("2/6", "1/3"),
        ("0.333333", "1/3"),
        (r"\sqrt{45}", r"3\sqrt{5}"),
        (r"\frac{\sqrt{6}}{6}", r"\frac{1}{\sqrt{6}}"),
        ("3π", r"3\pi"),
        ("x = 7", "7"),
        (r"(x+1)^2", "x^2+2x+1"),
        ("y=2x+1", "2x+1"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("x>3", "3<x"),
        (r"[3,\infty)", r"x \ge 3"),
        ("15%", "0.15"),
        ("15%", "15"),
        (r"5\,\text{m}", "5"),
        ("No solution", "no solution"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
        ("2^6", "64"),
        (r"\binom{5}{2}", "10"),
        ("((((((((((((((((((((5))))))))))))))))))))", "5"),
    ],
)
def test_equal(answer, truth):
    assert equal(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("44", "45"),
        ("-44", "44"),
        ("0.333", "1/3"),
        ("1234568.0", "1234567"),
        ("0.0000001", "0"),
        (r"\sqrt{45}", r"3\sqrt{6}"),
        ("(1,2)", "(2,1)"),
        ("[1,2)", "(1,2)"),
        ("(1,2,3)", "(1,2)"),
        ("x<3", "3<x"),
        ("felt", "left"),
        ("stressed", "desserts"),
        ("not enough information", "no"),
        ("5;5", "5"),
        ("5#comment", "5"),
        ("5\x00", "5"),
        ("5/0", "5"),
        ("2,09941", "209941"),
        ("9.42", r"3\pi"),
        (r"x^2+2x+2", "x^2+2x+1"),
        ("A and B", "B"),
    ],
)
def test_not_equal(answer, truth):
    assert not equal(answer, truth)


def test_sides_of_an_equation_may_be_rounded_and_no_more():
    """By up to two in a hundred."""
    for answer, truth, right in [
        ("10/3 = 3.3", "3.3", 1.0),
        ("10/3 = 3.2", "3.2", 0.0),
        ("100/3 = 33", "33", 1.0),
        ("100/3 = 36", "36", 0.0),
        ("9\\pi = 28", "28", 1.0),
        ("9\\pi = 25.5", "25.5", 0.0),
    ]:
        assert grade(f"\\boxed{{{answer}}}", truth) == right


def test_numbers_of_any_length_are_no_error():
    for place in ("number", "all", "line", "box"):
        sample = Sample("test:0", "", "5", facts={"answer_in": place})
        assert math(sample, "Answer: \\boxed{" + "1" * 8000 + "}" + "1" * 8000) == {"accuracy": 0.0}


@pytest.mark.parametrize("truth", ["7", "None", "", "[INVALID]"])
@pytest.mark.parametrize(
    "response",
    ["", "None", "no box", "\\boxed{}", "\\boxed{ }", "\\boxed{7", "\\boxed{7} \\boxed{None", "\\boxed"],
)
def test_a_missing_or_broken_last_box_scores_nothing(response, truth):
    assert grade(response, truth) == 0.0


def test_the_last_box_counts():
    assert grade("\\boxed{7} or \\boxed{8}", "7") == 0.0
    assert grade("\\boxed{8}, no, \\boxed{7}", "7") == 1.0


def test_a_truth_may_be_boxed():
    assert grade("\\boxed{7}", "\\boxed{7}") == 1.0
    assert grade("\\boxed{\\boxed{7}}", "\\boxed{7") == 0.0


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        ("tag", "<think>1</think><answer>0.5</answer>", "0.5"),
        ("tag_or_all", "<think>1</think><answer>0.5</answer>", "<answer>0.5"),
        ("tag_or_all", "0.5", ""),
        ("line", "steps\nAnswer: 0.5", "steps 0.5"),
        ("number", "it is 1, no, 0.5", "it is 0.5, no, 1"),
        ("all", "<think>1</think> 0.5", "<think>0.5</think> 1"),
        ("box", "\\boxed{0.5}", "0.5"),
    ],
)
def test_places_of_the_answer(place, right, wrong):
    sample = Sample("test:0", "", "1/2", facts={"answer_in": place})
    assert math(sample, right) == {"accuracy": 1.0}
    assert math(sample, wrong) == {"accuracy": 0.0}


def test_another_place_is_an_error_of_the_data():
    with pytest.raises(ValueError, match="answer_in"):
        math(Sample("test:0", "", "1", facts={"answer_in": "end"}), "")


@pytest.mark.parametrize("truth", ["5", r"\frac{1}{2}", r"\sqrt{2}", "x"])
def test_hostile_answers_score_nothing_quickly_and_run_nothing(truth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for answer in HOSTILE:
        start = time.process_time()
        assert grade("<think></think>\\boxed{" + answer + "}", truth) == 0.0, answer[:60]
        assert time.process_time() - start < 4.0, answer[:60]
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.sampled_from("\\{}()[]^_,.=+-*/!%$& 0129xyfracsqt"), max_size=25),
    st.sampled_from(["7", "x+1", r"\sqrt{2}"]),
)
def test_no_text_raises(answer, truth):
    assert grade("\\boxed{" + answer + "}", truth) in (0.0, 1.0)


ANSWERS = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.decimals(-1000, 1000, places=3).map(lambda d: f"{d:f}"),
    st.fractions(max_denominator=99).map(lambda f: rf"\frac{{{f.numerator}}}{{{f.denominator}}}"),
    st.integers(2, 99).map(lambda n: rf"\sqrt{{{n}}}"),
    st.tuples(st.integers(-9, 9), st.integers(-9, 9)).map(str),
    st.sampled_from(
        ["yes", "north", "x^2+1", r"3\pi", r"[0,\infty)", "A", r"\begin{pmatrix}1\\2\end{pmatrix}"]
    ),
)


@settings(deadline=None)
@given(ANSWERS)
def test_the_truth_itself_is_right(truth):
    assert grade(f"<think></think>\\boxed{{{truth}}}", truth) == 1.0


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_numbers_are_equal_exactly_when_they_are(one, other):
    assert equal(
        f"{one.numerator}/{one.denominator}", rf"\frac{{{other.numerator}}}{{{other.denominator}}}"
    ) == (one == other)
