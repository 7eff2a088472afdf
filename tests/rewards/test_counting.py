import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.number import count
from mmrl.sample import Sample


def grade(boxed, answer="4"):
    values = count(Sample("test:0", "", answer), f"\\boxed{{{boxed}}}")
    return values["accuracy"], values["near_count"]


@pytest.mark.parametrize("boxed", ["4", "4.0", "four", "Four", "4 apples", "there are 4", r"\text{four}"])
def test_the_right_count(boxed):
    assert grade(boxed) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("boxed", "near"),
    [("3", 0.75), ("five", 0.75), ("2", 0.5), ("8", 0.0), ("9", 0.0), ("0", 0.0), ("none", 0.0)],
)
def test_near_counts(boxed, near):
    assert grade(boxed) == (0.0, near)


@pytest.mark.parametrize(
    "boxed", ["", "4.5", "-4", "3 or 4", "4, 5", "400%", "4%", "1 2 3 4 5", "x", "four five"]
)
def test_what_is_no_count(boxed):
    assert grade(boxed) == (0.0, 0.0)


def test_none_at_all():
    assert grade("0", answer="0") == grade("none", answer="0") == grade("0", answer="none") == (1.0, 1.0)
    assert grade("1", answer="0") == (0.0, 0.0)


@pytest.mark.parametrize("answer", ["", "many", "2.5", "-1", "3 or 4"])
def test_a_truth_that_is_no_count_is_an_error_of_the_data(answer):
    with pytest.raises(ValueError, match=r"test:0.*not a count"):
        grade("", answer=answer)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.integers(0, 100), st.integers(0, 100))
def test_credit_falls_with_the_distance(truth, one, other):
    (accuracy, near), (_, further) = (
        grade(str(n), str(truth)) for n in sorted((one, other), key=lambda n: abs(n - truth))
    )
    assert further <= near
    assert (accuracy == 1.0) == (near == 1.0) == (min(abs(one - truth), abs(other - truth)) == 0)


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_no_text_raises(boxed):
    assert all(0.0 <= value <= 1.0 for value in grade(boxed))
