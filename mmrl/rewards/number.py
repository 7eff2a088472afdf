"""Numbers: exact rationals read from text."""

import re
from fractions import Fraction

from mmrl.rewards.text import to_latex

MAX_DIGITS = 400  # characters of one number; longer ones are compared as text
DECIMAL_SLACK = Fraction(1, 10**6)  # math-verify rounds decimals to six places as well

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(_PLAIN)
_FRACTION = re.compile(
    rf"(?P<whole>\d+(?=[\s\\]))?\s?(?:\\frac\s?(?:\{{\s?(?P<a>-?\s?(?:{_PLAIN}))\s?\}}\s?\{{\s?(?P<b>{_PLAIN})\s?\}}"
    rf"|(?P<c>\d)(?P<d>\d))|(?P<e>{_PLAIN})\s?/\s?(?P<f>{_PLAIN}))"
)
_SCIENTIFIC = re.compile(
    rf"(?P<m>{_PLAIN})\s?(?:(?:\\times|\\cdot|\*)\s?10\s?\^\s?(?:\{{\s?(?P<x>-?\d{{1,2}})\s?\}}|(?P<y>\d))"
    r"|[eE](?P<z>[+-]?\d{1,2}))"
)


def parse_number(answer: str) -> Fraction | None:
    r"""The rational number that ``answer`` writes, or None if it writes anything else.

    Reads signs, thousands in commas or blanks, decimals, ``a/b``, ``\frac{a}{b}``, ``\frac12``, mixed
    numbers (``2\frac{1}{2}``, ``2 1/2``), scientific notation with at most two digits of exponent, and
    ignores a percent or degree sign.
    """
    if len(answer) > MAX_DIGITS:
        return None
    text = re.sub(r"\\?%$|\^\s?\{?\s?\\circ\s?\}?$", "", to_latex(answer)).strip()
    sign = -1 if text.startswith("-") else 1
    text = text.removeprefix("-" if sign < 0 else "+").strip()
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text) if re.fullmatch(r"\d{1,3}( \d{3})+", text) else text
    value = _magnitude(text)
    return None if value is None else sign * value


def _magnitude(text: str) -> Fraction | None:
    if _NUMBER.fullmatch(text):
        return _plain(text)
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:
        exponent = int(scientific["x"] or scientific["y"] or scientific["z"])
        return _plain(scientific["m"]) * Fraction(10) ** exponent
    fraction = _FRACTION.fullmatch(text)
    if not fraction:
        return None
    above = fraction["a"] or fraction["c"] or fraction["e"]
    below = _plain(fraction["b"] or fraction["d"] or fraction["f"])
    if below == 0:
        return None
    negative = above.startswith("-")
    quotient = _plain(above.removeprefix("-").strip()) / below
    if fraction["whole"] is None:
        return -quotient if negative else quotient
    return None if negative else int(fraction["whole"]) + quotient


def _plain(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def is_decimal(answer: str) -> bool:
    """Whether a number is written with a decimal point, hence possibly rounded."""
    return "." in answer


def same_number(answer: Fraction, truth: Fraction, rounded: bool) -> bool:
    """Equality; with ``rounded``, up to a millionth of the larger and a millionth in absolute size."""
    slack = DECIMAL_SLACK * min(Fraction(1), max(abs(answer), abs(truth))) if rounded else Fraction(0)
    return abs(answer - truth) <= slack
