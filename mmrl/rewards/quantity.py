"""Quantities in text: exact rational numbers, alone or among words, with a percent sign, scale or unit."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType

from mmrl.rewards.text import MAX_ANSWER, plain_characters, plain_fonts, to_latex, without_lead

# Prefixes of symbols and of words, and the power of ten that they are.
_PREFIXES = (
    *(("p", "pico", -12), ("n", "nano", -9), ("\u03bc", "micro", -6), ("\\mu ", "micro", -6)),
    *(("u", "micro", -6), ("m", "milli", -3), ("c", "centi", -2), ("d", "deci", -1), ("", "", 0)),
    *(("k", "kilo", 3), ("M", "mega", 6), ("G", "giga", 9)),
)
# By powers of base units: symbols and words that take prefixes, each with its size.
_PREFIXED = {
    "m": "m, metre meter: 1",
    "g": "g, gram gramme: 1",
    "s": "s, second: 1",
    "A": "A, ampere amp: 1",
    "K": "K, kelvin: 1",
    "mol": "mol, mole: 1",
    "m3": "L l, litre liter: 1/1000",
    "g m s-2": "N, newton: 1000",
    "g m2 s-2": "J, joule: 1000; cal, calorie: 4184; eV, electronvolt: 1.602176634e-16; Wh, : 3600000",
    "g m2 s-3": "W, watt: 1000",
    "g m-1 s-2": "Pa, pascal: 1000",
    "s-1": "Hz, hertz: 1",
    "A s": "C, coulomb: 1",
    "g m2 s-3 A-1": "V, volt: 1000",
    "g-1 m-2 s4 A2": "F, farad: 1/1000",
    "g m2 s-3 A-2": "\u03a9 \\Omega, ohm: 1000",
    "g s-2 A-1": "T, tesla: 1000",
    "g m2 s-2 A-2": ", henry: 1000",
    "g m2 s-2 A-1": "Wb, weber: 1000",
}
# The same for names that take none; "_" is a blank.
_OTHERS = {
    "m": "in inch inches: 0.0254; ft foot feet: 0.3048; yd yard yards: 0.9144; mi mile miles: 1609.344; "
    "\u00c5 angstrom angstroms: 1e-10; \u5398\u7c73: 1/100; \u7c73: 1; \u5343\u7c73 \u516c\u91cc: 1000",
    "g": "t tonne tonnes: 1000000; lb lbs pound pounds: 453.59237; oz ounce ounces: 28.349523125; "
    "\u514b: 1; \u5343\u514b \u516c\u65a4: 1000",
    "s": "sec secs: 1; min mins minute minutes: 60; h hr hrs hour hours: 3600; d day days: 86400; "
    "week weeks: 604800; \u79d2: 1; \u5206\u949f: 60; \u5c0f\u65f6: 3600",
    "month": "month months: 1; yr yrs year years: 12",
    "m2": "ha hectare hectares: 10000; acre acres: 4046.8564224",
    "m3": "cc: 1e-6",
    "m s-1": "mph: 0.44704; kmh kph kmph: 5/18",
    "g m-1 s-2": "bar bars: 1e8; atm: 101325000",
    "degree": "\u00b0 deg degree degrees \u5ea6: 1; "
    "rad rads radian radians: 57.295779513082320876798154814105170332405",
    "celsius": "\u00b0C degC celsius degrees_C degrees_Celsius: 1",
    "fahrenheit": "\u00b0F degF fahrenheit degrees_F degrees_Fahrenheit: 1",
    "dollar": "USD dollar dollars: 1; \u00a2 cent cents: 1/100",
    "euro": "\u20ac EUR euro euros: 1",
    "sterling": "\u00a3 GBP: 1",
    "rupee": "\u20b9 INR Rs rupee rupees: 1",
    "yuan": "CNY RMB yuan \u5143: 1",
    "yen": "JPY yen \u5186: 1",
    "byte": "KB kB: 1e3; MB: 1e6; GB: 1e9; TB: 1e12",
    "pixel": "px pixel pixels: 1",
    "point": "pt: 1",
}


@dataclass(frozen=True)
class Unit:
    """A unit: its size in base units, and their powers, such as (("m", 1), ("s", -1))."""

    size: Fraction
    dimension: tuple[tuple[str, int], ...]

    @property
    def is_angle(self) -> bool:
        """True if this is a degree, a radian or the like."""
        return self.dimension == (("degree", 1),)

    def times(self, other: "Unit", power: int = 1) -> "Unit":
        """This unit multiplied by a power of another."""
        powers = dict(self.dimension)
        for name, exponent in other.dimension:
            powers[name] = powers.get(name, 0) + power * exponent
        return Unit(
            self.size * other.size**power, tuple(sorted((name, n) for name, n in powers.items() if n))
        )


ONE = Unit(Fraction(1), ())


def _named_units() -> Iterator[tuple[str, Unit]]:
    for base, names, size in _table(_PREFIXED):
        symbols, _, words = names.partition(",")
        for symbol, word, exponent in _PREFIXES:
            unit = Unit(size * Fraction(10) ** exponent, base)
            yield from ((symbol + name, unit) for name in symbols.split())
            yield from ((word + name + s, unit) for name in words.split() for s in ("", "s"))
    for base, names, size in _table(_OTHERS):
        yield from ((name.replace("_", " "), Unit(size, base)) for name in names.split())


def _table(rows: Mapping[str, str]) -> Iterator[tuple[tuple[tuple[str, int], ...], str, Fraction]]:
    for base, units in rows.items():
        powers = (re.fullmatch(r"([A-Za-z]+)(-?\d*)", part) for part in base.split())
        dimension = tuple(sorted((match[1], int(match[2] or 1)) for match in powers if match))
        for names, _, size in (unit.partition(":") for unit in units.split(";")):
            yield dimension, names, Fraction(size.strip())


_LOWER = dict(_named_units())
UNITS = {name.capitalize(): unit for name, unit in _LOWER.items() if len(name) > 3} | _LOWER
RADIAN = UNITS["rad"]
_NAMES = "|".join(map(re.escape, sorted(UNITS, key=len, reverse=True)))
_POWER = r"\s?\^\s?(?:\{\s?-?\s?\d\s?\}|\d)|[23](?!\d)|\s(?:squared|cubed)"
_FACTOR = rf"(?:(?:square|sq\.?|cubic|cu\.?)\s)?(?:{_NAMES})(?![A-Za-z])(?:{_POWER})?"
_BETWEEN = r"\s?(?:/|\\cdot(?![a-z])|\*|\.|-)\s?\(?|\sper\s|\s"
# A unit as in text, such as "km/h", "m s^{-2}", "kg \cdot m^2/s^2", "square metres", "N/(m s)".
UNIT = rf"{_FACTOR}(?:(?:{_BETWEEN}){_FACTOR}){{0,4}}\)?"
_PART = re.compile(
    rf"(?P<between>{_BETWEEN})?(?:(?P<before>square|sq\.?|cubic|cu\.?)\s)?(?P<name>{_NAMES})(?![A-Za-z])(?P<power>{_POWER})?"
)
_WORD_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}


@lru_cache(maxsize=1024)
def read_unit(text: str) -> Unit:
    """The unit that ``text`` writes in the manner of `UNIT`. What stands behind a stroke is divided by."""
    unit, sign = ONE, 1
    for part in _PART.finditer(text):
        if "/" in (part["between"] or "") or "per" in (part["between"] or ""):
            sign = -1
        written = (part["power"] or part["before"] or "1").strip()
        number = re.search(r"-?\s?\d", written)
        power = int(number[0].replace(" ", "")) if number else _WORD_POWERS[written.rstrip(".")]
        unit = unit.times(UNITS[part["name"]], sign * power)
    return unit


MAX_DIGITS = 400  # characters of one number; longer ones are compared as text
DECIMAL_SLACK = Fraction(1, 10**6)  # math-verify rounds decimals to six places as well
PERCENT = Fraction(1, 100)

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d,])|\d+)(?:\.\d*)?|\.\d+"
_SIGNED = rf"-?\s?(?:{_PLAIN})"
_VALUE = re.compile(
    # \frac{1}{2}, 2\frac12, 3/4, 2 1/2
    rf"(?:(?P<whole>\d+(?=[\s\\]))\s?)?(?:\\[dt]?frac\s?(?:\{{\s?(?P<a>{_SIGNED})\s?\}}\s?\{{\s?(?P<b>{_SIGNED})\s?\}}"
    rf"|(?P<c>\d)\s?(?P<d>\d))|(?P<e>{_PLAIN})\s?/\s?(?P<f>{_PLAIN}))"
    # 0.\overline{3}, 0.1(6)
    r"|(?P<once>\d*\.\d*)(?:\\(?:overline|bar|dot)\s?\{?(?P<r>\d{1,20})\}?|\((?P<s>\d{1,20})\))"
    # 6\times 10^{5}, 6e5
    rf"|(?P<m>{_PLAIN})\s?(?:(?:\\times|\\cdot|\*|x)\s?10\s?\^\s?(?:\{{\s?(?P<x>-?\s?\d{{1,2}})\s?\}}|(?P<y>-?\d{{1,2}}))"
    r"|[eE](?P<z>[+-]?\d{1,2}))(?!\d)"
    # 10^{5}
    r"|(?P<base>\d{1,9})\s?\^\s?(?:\{\s?(?P<p>-?\s?\d{1,2})\s?\}|(?P<q>-?\d{1,2})(?!\d))"
    rf"|(?P<plain>{_PLAIN})"
)
_DEGREE = re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ)\s?|\\degree\s?")
_AT_END = re.compile(r"(?:\\?%|°)$")

SCALES: Mapping[str, Fraction] = MappingProxyType(
    {
        **dict.fromkeys(("%", "\\%", "percent", "per cent"), PERCENT),
        "hundred": Fraction(100),
        **dict.fromkeys(("thousand", "k", "K"), Fraction(10**3)),
        **dict.fromkeys(("million", "M"), Fraction(10**6)),
        **dict.fromkeys(("billion", "bn", "B"), Fraction(10**9)),
        "trillion": Fraction(10**12),
    }
)
_LONG_SCALES = sorted((name for name in SCALES if len(name) > 1 or not name.isalpha()), key=len, reverse=True)
_SCALE = re.compile(  # "5K" is 5000, "5 K" a temperature
    rf"(?:\s?(?P<word>{'|'.join(map(re.escape, _LONG_SCALES))})|(?P<letter>[kKMB]))(?![A-Za-z/^])"
)
_UNIT = re.compile(rf"\s?(?P<unit>{UNIT})(?![A-Za-z\d^])")
_UNIT_AT_END = re.compile(rf"(?<=[\d\s}})!%])(?P<unit>{UNIT})$")
_AND = re.compile(r"(?: and)?\s?")
_SCALE_AT_END = re.compile(r"\s?(?:\\?%|percent)$")
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")  # of an angle, which keeps its degrees
_LONGEST_UNIT = 60  # characters
_DOLLAR = re.compile(r"(?:US|A|C|HK)?(?:\\\$|\$(?=[^$]*$))\s?(?=[-\d.])")  # one that opens no mathematics
_CURRENCY = r"(?:(?P<unit>USD|EUR|GBP|INR|Rs|CNY|RMB|JPY|€|£|₹)\.?|[¥₩])\s?"
_CURRENCY_AT_START, _CURRENCY_AT_END = re.compile(_CURRENCY), re.compile(f"{_CURRENCY}$")
_MINUS_FOLLOWS = re.compile(r"(?:^|[=≈<>:(\[{,;|]|\\approx|\b(?:is|are|was|be|to|of|equals|about))[^\S\n]*$")
_NEGATED = re.compile(r"\b(?:not|never|no|minus|negative|except|isn't|less|more|least|most)\b", re.IGNORECASE)
_CHANGED = re.compile(  # "5 squared", "3 halves", "5 or more"
    r"\b(?:not|or|and|to|than|over|times|plus|minus|squared|cubed|factorial|dozen|hal(?:f|ves)|"
    r"(?:third|quarter|fourth|fifth|sixth|eighth|tenth|hundredth|thousandth)s?|wrong|incorrect)\b",
    re.IGNORECASE,
)
_WORDS = re.compile(
    r"(?:[^\W\d_]|(?<=[^\W\d_])[-/](?=[^\W\d_])|\\(?:approx|sim|angle)(?![A-Za-z])|[\s=:≈()\[\].,'\"])*"
)
_GLUED = re.compile(r"[A-Za-z\u00c0-\u03ff]|\\[A-Za-z]")  # "5x", "5\pi"
_NOUNS = re.compile(r"\s*(?:[^\W\d_]{3,}\s?|[\u3400-\u9fff]{1,2}){0,3}")  # "cats": a unit that is not known
_LATIN = re.compile(r"[A-Za-z\u00c0-\u03ff\\]")


@dataclass(frozen=True)
class Quantity:
    """A number and what is stated beside it."""

    value: Fraction  # as it is written
    scale: Fraction = Fraction(1)  # that a word or a percent sign gives: "1.5 million" is 1.5 and 10**6
    unit: Unit | None = None  # None if none is stated, or an unknown one
    alone: bool = True  # nothing stands around but a name and a noun: "x = 5 cm", "5 cats"


def parse_number(answer: str) -> Fraction | None:
    r"""The rational number that ``answer`` writes, or None if it writes anything else.

    Reads signs, thousands in commas or blanks, decimals (repeating ones too), ``a/b``, ``\frac{a}{b}``,
    ``\frac12``, mixed numbers (``2\frac{1}{2}``, ``2 1/2``), powers and scientific notation with at most two
    digits of exponent, and ignores a percent or degree sign.
    """
    if len(answer) > MAX_DIGITS:
        return None
    text = _AT_END.sub("", _DEGREE.sub("°", to_latex(answer))).strip()
    sign = -1 if text.startswith("-") else 1
    match = _VALUE.fullmatch(text.removeprefix("-" if sign < 0 else "+").strip())
    value = _value(match) if match else None
    return None if value is None else sign * value


def _value(match: re.Match[str]) -> Fraction | None:
    """The number that a match of `_VALUE` writes; None if it divides by zero, or is too long."""
    if len(match[0]) > MAX_DIGITS:
        return None
    if match["plain"]:
        return _plain(match["plain"])
    if match["m"]:
        return _plain(match["m"]) * Fraction(10) ** int(
            (match["x"] or match["y"] or match["z"]).replace(" ", "")
        )
    if match["base"]:
        base, exponent = int(match["base"]), int((match["p"] or match["q"]).replace(" ", ""))
        return None if base == 0 else Fraction(base) ** exponent
    if match["once"]:
        digits = match["r"] or match["s"]
        share = Fraction(int(digits), 10 ** len(digits) - 1) / 10 ** len(match["once"].partition(".")[2])
        return _plain("0" + match["once"]) + share
    below = _plain(match["b"] or match["d"] or match["f"])
    if below == 0:
        return None
    quotient = _plain(match["a"] or match["c"] or match["e"]) / below
    if match["whole"] is None:
        return quotient
    return None if quotient < 0 else int(match["whole"]) + quotient


def _plain(text: str) -> Fraction:
    return Fraction("".join(text.replace(",", "").split()).rstrip("."))


def is_decimal(answer: str) -> bool:
    """True if a number is written with a decimal point, hence possibly rounded."""
    return "." in answer


def same_number(answer: Fraction, truth: Fraction, rounded: bool) -> bool:
    """Equality; with ``rounded``, up to a millionth of the larger and a millionth in absolute size."""
    slack = DECIMAL_SLACK * min(Fraction(1), max(abs(answer), abs(truth))) if rounded else Fraction(0)
    return abs(answer - truth) <= slack


@dataclass(frozen=True)
class _NumberInText:
    """A number found in a text: from where to where with all that belongs to it, and what that says."""

    start: int
    end: int
    quantity: Quantity


def _read_number(text: str, match: re.Match[str]) -> _NumberInText | None:
    """The number of a match of `_VALUE` with the sign, currency, scale and unit beside it; None if it is part
    of something else, such as "x2", "2nd" and "5x".
    """
    value = _value(match)
    before, end = text[: match.start()], match.end()
    before, sign = _take_sign(before)
    currency = _CURRENCY_AT_END.search(before[-6:])
    if currency:
        before, sign = _take_sign(before[: len(before) - len(currency[0])], sign)
    scale = _SCALE.match(text, end)
    end = scale.end() if scale else end
    unit = _UNIT.match(text, end)
    if unit and unit["unit"] == "in" and _LATIN.match(text[unit.end() :].lstrip()):  # "5 in total"
        unit = None
    end = unit.end() if unit else end
    named = unit["unit"] if unit else currency["unit"] if currency else None
    glued = before[-1:].isdigit() or before[-1:] == "." or bool(_LATIN.fullmatch(before[-1:]))
    if value is None or glued or (not scale and not unit and _GLUED.match(text, end)):
        return None
    times = SCALES[scale["word"] or scale["letter"]] if scale else Fraction(1)
    return _NumberInText(len(before), end, Quantity(sign * value, times, read_unit(named) if named else None))


def _take_sign(before: str, sign: int = 1) -> tuple[str, int]:
    """``before`` without the sign in which it ends, and -1 if that is a minus.

    A dash behind a word or a number is none: "10 - 7", "x-7"; nor is the bullet of a list.
    """
    bare = before.rstrip(" ")
    context = bare[:-1]
    if bare[-1:] not in ("-", "+") or bare[-1:] == "":
        return before, sign
    recent = context[-40:] if len(context) <= 40 else "x" + context[-39:]
    adjacent = bare == before and not re.search(r"[\w.)\]}]$", recent)
    if not adjacent and not _MINUS_FOLLOWS.search(recent):
        return before, sign
    return context, -sign if bare[-1] == "-" else sign


def last_number(text: str) -> str | None:
    """The last number of running text as it is written, with its sign, percent sign and unit."""
    text = _DEGREE.sub("°", plain_fonts(plain_characters(text[-MAX_ANSWER:])))
    for match in reversed(list(_VALUE.finditer(text))):
        found = _read_number(text, match)
        if found is not None:
            return ("-" if found.quantity.value < 0 else "") + text[match.start() : found.end]
    return None


def _prepare(text: str) -> str:
    text = to_latex(_DOLLAR.sub("USD ", text) if "$" in text else text)
    return _DEGREE.sub("°", plain_fonts(text)).strip()


def read_quantity(text: str) -> Quantity | None:
    r"""The one number of ``text``, with its percent sign, word of scale and unit; None if there is no one.

    Words may stand around it and are ignored, as are units that are not in ``UNITS``. A second number, or
    mathematics around it (``<5``, ``5+x``, ``\pm 5``, ``5!``), is no one number, and neither is one that is
    denied ("not 5", "minus 5"). Units of one kind, each smaller than the one before, add up: "3 h 20 min".
    """
    text = _prepare(text) if len(text) <= MAX_DIGITS else ""
    match = _VALUE.search(text)
    found = _read_number(text, match) if match else None
    if found is None:
        return None
    quantity, end, least = found.quantity, found.end, found.quantity.unit
    while quantity.unit and (match := _VALUE.match(text, _AND.match(text, end).end())):  # type: ignore[union-attr]
        further = _read_number(text, match)
        smaller = further and further.quantity.unit
        if not further or not smaller or not least or smaller.dimension != least.dimension:
            return None
        if smaller.size >= least.size:  # "3 cm and 2 cm" are two answers
            return None
        part = further.quantity.value * smaller.size / quantity.unit.size
        quantity, end, least = replace(quantity, value=quantity.value + part), further.end, smaller
    before, after = text[: found.start], text[end:]
    if (
        not (_WORDS.fullmatch(before) and _WORDS.fullmatch(after))
        or _NEGATED.search(before)
        or _CHANGED.search(after)
    ):
        return None
    named = not without_lead(before) or before.rstrip().endswith("=")
    return replace(quantity, alone=named and bool(_NOUNS.fullmatch(after)))


def split_units(*texts: str) -> list[tuple[str, Quantity]]:
    """Each text as LaTeX without its unit, currency and percent sign, and these, as of the number 1.

    A single letter is taken for a unit only if it is set upright, or if another of the texts has a unit: in
    "2t + 3s" it is a variable.
    """
    parts = [_split_unit(_prepare(text), "\\text" in text or "\\math" in text) for text in texts]
    if any(quantity.unit for _, quantity in parts):
        parts = [_split_unit(_prepare(text), True) for text in texts]
    return parts


def _split_unit(text: str, letters: bool) -> tuple[str, Quantity]:
    currency = _CURRENCY_AT_START.match(text)
    body = text[currency.end() :] if currency else text
    unit = _UNIT_AT_END.search(body, max(0, len(body) - _LONGEST_UNIT))
    letter = unit and len(unit["unit"]) == 1 and unit["unit"].isascii()
    if (letter and not letters) or _FUNCTION.search(body):
        unit = None
    body = body[: unit.start()].strip() if unit else body
    scale = _SCALE_AT_END.search(body)
    body = body[: scale.start()] if scale else body
    named = unit["unit"] if unit else currency["unit"] if currency else None
    stated = Quantity(Fraction(1), PERCENT if scale else Fraction(1), read_unit(named) if named else None)
    return body.replace("°", "^\\circ "), stated


def in_terms_of(truth: Quantity, given: Quantity) -> list[Fraction]:
    """Readings of ``given``, as numbers to compare with ``truth.value``; none if the units do not fit.

    Units count where both state one: 50 cm is 0.5 m, and is not 50 m. A percent sign or a word of scale that
    only one of the two has may belong to the question: 15 % is 15, and is 0.15.
    """
    size = Fraction(1)
    if given.unit and truth.unit:
        if given.unit.dimension != truth.unit.dimension:
            return []
        size = given.unit.size / truth.unit.size
    elif (given.unit and truth.scale == PERCENT) or (truth.unit and given.scale == PERCENT):
        return []
    meant = [given.value * size * given.scale / truth.scale]
    if (given.scale == 1) != (truth.scale == 1):
        meant.append(given.value * size)
    return meant
