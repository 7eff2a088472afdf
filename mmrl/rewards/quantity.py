"""A number as people write it: among words, with a percent sign, a word of scale or a unit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from mmrl.rewards.number import MAX_DIGITS, parse_number
from mmrl.rewards.text import plain_fonts, to_latex

SCALES: Mapping[str, Fraction] = MappingProxyType(
    {
        "%": Fraction(1, 100),
        "\\%": Fraction(1, 100),
        "percent": Fraction(1, 100),
        "per cent": Fraction(1, 100),
        "hundred": Fraction(100),
        "thousand": Fraction(10**3),
        "million": Fraction(10**6),
        "billion": Fraction(10**9),
        "trillion": Fraction(10**12),
        "k": Fraction(10**3),
        "K": Fraction(10**3),
        "M": Fraction(10**6),
        "bn": Fraction(10**9),
    }
)
# Names of a unit, and its size in the unit of its kind; a litre is a thousandth of a cubic metre.
_UNITS = (
    ("length", 1, Fraction(1), "m metre metres meter meters"),
    ("length", 1, Fraction(1000), "km kilometre kilometres kilometer kilometers"),
    ("length", 1, Fraction(1, 10), "dm decimetre decimetres decimeter decimeters"),
    ("length", 1, Fraction(1, 100), "cm centimetre centimetres centimeter centimeters"),
    ("length", 1, Fraction(1, 1000), "mm millimetre millimetres millimeter millimeters"),
    ("length", 1, Fraction("0.0254"), "in inch inches"),
    ("length", 1, Fraction("0.3048"), "ft foot feet"),
    ("length", 1, Fraction("0.9144"), "yd yard yards"),
    ("length", 1, Fraction("1609.344"), "mi mile miles"),
    ("length", 3, Fraction(1, 1000), "l litre litres liter liters"),
    ("length", 3, Fraction(1, 10**6), "ml millilitre millilitres milliliter milliliters"),
    ("mass", 1, Fraction(1), "g gram grams"),
    ("mass", 1, Fraction(1000), "kg kilogram kilograms"),
    ("mass", 1, Fraction(1, 1000), "mg milligram milligrams"),
    ("mass", 1, Fraction(10**6), "t tonne tonnes"),
    ("mass", 1, Fraction("453.59237"), "lb lbs pound pounds"),
    ("mass", 1, Fraction("28.349523125"), "oz ounce ounces"),
    ("time", 1, Fraction(1), "s sec second seconds"),
    ("time", 1, Fraction(60), "min minute minutes"),
    ("time", 1, Fraction(3600), "h hr hour hours"),
    ("time", 1, Fraction(86400), "d day days"),
    ("time", 1, Fraction(1, 1000), "ms millisecond milliseconds"),
)
UNITS: Mapping[str, tuple[str, int, Fraction]] = MappingProxyType(
    {name: (kind, power, size) for kind, power, size, names in _UNITS for name in names.split()}
)

_UNIT_AT_END = re.compile(
    rf"(?<=[\d\s}}])(?P<name>{'|'.join(sorted(UNITS, key=len, reverse=True))})"
    r"(?:\s?\^\s?\{?\s?(?P<power>[23])\s?\}?)?$"
)
_COMPOUND_AT_END = re.compile(r"(?<=[\d\s}])[^\W\d_]+/[^\W\d_]+\s?\^\s?\{?\s?-?\d\s?\}?$")  # m/s^2
_NUMBER_BEGINS = re.compile(r"(?:(?<![\w.])-)?(?:\\frac\s?\{\s?-?\s?|\.)?$")
_NUMBER_GOES_ON = re.compile(r"[}.]*(?:\s?\^\s?\{?\s?\\circ\s?\}?)?")
_SCALE = re.compile(rf"\s?({'|'.join(map(re.escape, sorted(SCALES, key=len, reverse=True)))})(?![^\W\d_])")
_WORDS = re.compile(
    r"(?:[^\W\d_]|(?<=[^\W\d_])[-/](?=[^\W\d_])|\\(?:approx|sim)(?![A-Za-z])|[\s=:≈$€£()\[\].,'\"\u2019])*"
)


@dataclass(frozen=True)
class Quantity:
    """A number and what is stated beside it."""

    value: Fraction  # as it is written
    scale: Fraction = Fraction(1)  # that a word or a percent sign gives: "1.5 million" is 1.5 and 10**6
    kind: str = ""  # of its unit, such as "length" or "length^2"; "" if none is stated, or an unknown one
    unit: Fraction = Fraction(1)  # size of that unit


def read_quantity(text: str) -> Quantity | None:
    r"""The one number of ``text``, with its percent sign, word of scale and unit; None if there is no one.

    Words may stand around it and are ignored, as are units that are not in ``UNITS``. A second number, or
    mathematics around it (``<5``, ``5+x``, ``\pm 5``, ``5!``), is no one number.
    """
    if len(text) > MAX_DIGITS:
        return None
    text = plain_fonts(to_latex(text)).strip()
    kind, size = "", Fraction(1)
    unit = _UNIT_AT_END.search(text)
    if unit:
        name, exponent, size = UNITS[unit["name"]]
        power = exponent * int(unit["power"] or 1)
        kind, size = f"{name}^{power}", size ** int(unit["power"] or 1)
        text = text[: unit.start()].strip()
    text = _COMPOUND_AT_END.sub("", text)
    digits = [match.start() for match in re.finditer(r"\d", text)]
    if not digits:
        return None
    start = digits[0] - len(_before(text[: digits[0]]))
    end = digits[-1] + 1 + len(_after(text[digits[-1] + 1 :]))
    before, value, after = text[:start], parse_number(text[start:end]), text[end:]
    scale = _SCALE.match(after)
    if scale:
        after = after[scale.end() :]
    # "x5" and "5x" are other things than 5; "5°C" is not.
    glued = before[-1:].isalpha() or (not scale and after[:1].isalpha() and text[end - 1].isdigit())
    if value is None or glued or not (_WORDS.fullmatch(before) and _WORDS.fullmatch(after)):
        return None
    return Quantity(value, SCALES[scale[1]] if scale else Fraction(1), kind, size)


def _before(text: str) -> str:
    """The part of a number that stands before its first digit: its sign, ``\\frac{``, a decimal point."""
    found = _NUMBER_BEGINS.search(text)
    return found[0] if found else ""


def _after(text: str) -> str:
    found = _NUMBER_GOES_ON.match(text)
    return found[0] if found else ""


def in_terms_of(truth: Quantity, given: Quantity) -> list[Fraction]:
    """What ``given`` may mean, as numbers to compare with ``truth.value``; none if the units do not fit.

    Units count where both state one: 50 cm is 0.5 m, and is not 50 m. A percent sign or a word of scale that
    only one of the two has may belong to the question: 15 % is 15, and is 0.15.
    """
    if given.kind and truth.kind and given.kind != truth.kind:
        return []
    size = given.unit / truth.unit if given.kind and truth.kind else Fraction(1)
    meant = [given.value * size * given.scale / truth.scale]
    if (given.scale == 1) != (truth.scale == 1):
        meant.append(given.value * size)
    return meant
