import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.choice import read_choice
from mmrl.rewards.quantity import MAX_DIGITS, UNITS, Quantity, in_terms_of, last_number, read_quantity
from mmrl.rewards.text import canonical, first_tagged, last_answer_line, last_boxed, without_lead


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        (r"about 5 \text{ apples}", 5),
        ("5 (five)", 5),
        ("x = -5", -5),
        (r"\approx 5", 5),
        ("≈5", 5),
        ("€5", 5),
        ("53,855 people", 53855),
        ("1/2 cup", Fraction(1, 2)),
        (r"\frac{3}{2}\text{ km}", Fraction(3, 2)),
        ("-.5 m", Fraction(-1, 2)),
        ("5°C", 5),
        ("5 m/s^2", 5),
        ("5cm", 5),
        ("$5M", 5),
    ],
)
def test_one_number_among_words(text, value):
    quantity = read_quantity(text)
    assert quantity is not None
    assert quantity.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "five",
        "5 or 6",
        "5 and 600",
        "5, 6",
        "5x",
        "x5",
        "2nd",
        "x-5",
        "5+x",
        "<5",
        r"\pm 5",
        "5!",
        "x^2 = 5",
        "2 x^2",
        "1e999999999",
        "0x10",
        "9**9**9",
        "7:30",
        "5;5",
        "5 ± 1",
    ],
)
def test_what_is_no_one_number(text):
    assert read_quantity(text) is None


def meant(truth, given):
    truth, given = read_quantity(truth), read_quantity(given)
    return set(in_terms_of(truth, given))


def test_units_count_where_both_state_one():
    assert meant("0.5 m", "50 cm") == {Fraction(1, 2)}
    assert meant("0.5 m", "0.5") == {Fraction(1, 2)}
    assert meant("0.5", "50 cm") == {50}
    assert meant("5 kg", "5 m") == set()
    assert meant("5 m^2", "5 m") == set()
    assert meant("1 l", "1000 cm^3") == {1}
    assert meant("90 min", "1.5 hours") == {90}
    assert meant("5 apples", "5 pears") == {5}


def test_a_percent_sign_or_a_word_of_scale_may_belong_to_the_question():
    assert Fraction(15, 100) in meant("0.15", "15%")
    assert 15 in meant("15", "15%")
    assert meant("15%", "0.15") == {15, Fraction(15, 100)}
    assert meant("15%", "15 percent") == {15}
    assert meant("1500000", "1.5 million") == {1500000, Fraction(3, 2)}
    assert meant("1.5 billion", "1500 million") == {Fraction(3, 2)}


VALUES = st.fractions(-1000, 1000, max_denominator=100)


@settings(max_examples=40, deadline=None)
@given(VALUES, st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)))
def test_a_change_of_unit_is_invisible(value, unit, other):
    truth = Quantity(value, unit=UNITS[unit])
    given_ = Quantity(value * truth.unit.size / UNITS[other].size, unit=UNITS[other])
    alike = UNITS[unit].dimension == UNITS[other].dimension
    assert in_terms_of(truth, given_) == ([value] if alike else [])


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("km/h", "m/s", Fraction(5, 18)),
        ("m s^{-2}", "m/s^2", 1),
        ("metres per second squared", "m/s²", 1),
        ("N", r"kg \cdot m/s^2", 1),
        ("J", "N m", 1),
        ("kWh", "MJ", Fraction(18, 5)),
        ("square metres", "cm^2", 10**4),
        ("cubic centimetres", "ml", 1),
        ("kg/(m s^2)", "Pa", 1),
        ("microseconds", "ns", 1000),
        ("mph", "km/h", Fraction("1.609344")),
        ("g/cm^3", "kg/m^3", 1000),
        ("years", "months", 12),
    ],
)
def test_units_made_of_others(one, other, ratio):
    assert meant(f"1 {other}", f"1 {one}") == {ratio}


@pytest.mark.parametrize(
    "unit", ["cm", "cm^2", "m/s", "kg", "hours", "%", "°", "°C", "°F", "K", "N", "J", "dollars"]
)
@pytest.mark.parametrize("other", ["A", "yen", "mol", "mm^4", "byte/s"])
def test_units_of_other_kinds_are_no_unit_of_each_other(unit, other):
    other = other.replace("byte", "MB")
    assert meant(f"5 {unit}", f"5 {other}") == meant(f"5 {other}", f"5 {unit}") == set()


@settings(max_examples=40, deadline=None)
@given(VALUES, st.sampled_from(["", " cm", "cm", " million", "%", " people", r"\,\text{kg}", " m^2"]))
def test_what_is_written_is_read_back(value, beside):
    written = read_quantity(f"{value.numerator}/{value.denominator}{beside}")
    assert written is not None
    assert written.value == value
    assert in_terms_of(written, written) == [value]


@settings(max_examples=40, deadline=None)
@given(st.text() | st.text("0123456789.,-+/^{}\\%cm xk", max_size=20))
def test_no_text_raises(text):
    read_quantity(text)


PARTS = (
    *(
        "1 ",
        "1,",
        "1,000",
        "12 345 ",
        "1/2 ",
        "0.1(",
        "2^2",
        "1e5",
        "10^{5}",
        "\\frac{1}{",
        "0.3\\overline{3}",
        "-",
    ),
    *(
        "- ",
        "= -",
        "m s ",
        "m/",
        "square ",
        "kg m",
        "5 kg and ",
        "°",
        "%",
        "$",
        "\\$",
        "USD ",
        "not ",
        "\n- 1",
    ),
    *(
        "**a ",
        "*",
        '"',
        "a.m.",
        "the answer is ",
        "so it is ",
        "best ",
        "答案",
        "⁵",
        "\\text{",
        "A, ",
        "(A)",
        "B and ",
    ),
    *("sqrt(", "\\boxed ", "<answer>", "Answer:", "x<", "(1,2)\\cup"),
)


@pytest.mark.parametrize("part", PARTS)
def test_readers_take_no_longer_for_a_part_repeated(part):
    start = time.process_time()
    text = part * (8000 // len(part))
    for read in (
        last_number,
        canonical,
        without_lead,
        read_choice,
        last_boxed,
        last_answer_line,
        first_tagged,
    ):
        read(text)
    read_quantity(text[:MAX_DIGITS])
    assert time.process_time() - start < 1.0
