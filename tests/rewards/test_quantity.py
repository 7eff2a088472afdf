from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.quantity import parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("\u22127", -7),
        ("- 7", -7),
        ("+044", 44),
        ("7.", 7),
        (".5", Fraction(1, 2)),
        ("53,855", 53855),
        ("53{,}855", 53855),
        ("53 855", 53855),
        ("53,855.25", Fraction("53855.25")),
        ("1/2", Fraction(1, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"-\frac{-1}{2}", Fraction(1, 2)),
        (r"\frac12", Fraction(1, 2)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("2 1/2", Fraction(5, 2)),
        ("2½", Fraction(5, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        (r"6 \times 10^{2}", 600),
        (r"6.5\cdot 10^2", 650),
        ("6e-2", Fraction(6, 100)),
        (r"15\%", 15),
        (r"90^\circ", 90),
        ("$7$", 7),
        ("(7)", 7),
    ],
)
def test_parse_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "5/0",
        "2,09941",
        "1,2",
        "7 8",
        "1e400",
        "1e999999999",
        "9**9**9",
        "--5",
        "5;5",
        "0x10",
        "1_000",
        "nan",
        "inf",
    ],
)
def test_what_is_no_number(text):
    assert parse_number(text) is None


def test_a_number_of_a_million_digits_is_not_parsed():
    assert parse_number("7" * 1_000_000) is None


@given(st.fractions(max_denominator=10**6).map(lambda f: f / 1))
def test_fractions_are_read_back(value):
    assert parse_number(f"{value.numerator}/{value.denominator}") == value
    assert parse_number(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@given(st.decimals(-(10**9), 10**9, places=4))
def test_decimals_are_read_back(value):
    assert parse_number(f"{value:f}") == Fraction(value)


@given(st.text())
def test_no_text_raises(text):
    parse_number(text)
