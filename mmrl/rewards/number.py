"""Numbers as people write them: exact rationals, alone or among words, with a percent sign, scale or unit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

from mmrl.rewards.text import MAX_ANSWER, plain_characters, plain_fonts, to_latex, without_lead
from mmrl.rewards.units import UNIT, Unit, read_unit

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
_NOUNS = re.compile(r"\s*(?:[^\W\d_]{3,}\s?|[\u3400-\u9fff]{1,2}){0,3}")  # "people": a unit that is not known
_LATIN = re.compile(r"[A-Za-z\u00c0-\u03ff\\]")


@dataclass(frozen=True)
class Quantity:
    """A number and what is stated beside it."""

    value: Fraction  # as it is written
    scale: Fraction = Fraction(1)  # that a word or a percent sign gives: "1.5 million" is 1.5 and 10**6
    unit: Unit | None = None  # None if none is stated, or an unknown one
    alone: bool = True  # nothing stands around but a name and a noun: "x = 5 cm", "5 people"


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
    """Whether a number is written with a decimal point, hence possibly rounded."""
    return "." in answer


def same_number(answer: Fraction, truth: Fraction, rounded: bool) -> bool:
    """Equality; with ``rounded``, up to a millionth of the larger and a millionth in absolute size."""
    slack = DECIMAL_SLACK * min(Fraction(1), max(abs(answer), abs(truth))) if rounded else Fraction(0)
    return abs(answer - truth) <= slack


@dataclass(frozen=True)
class _Written:
    """A number found in a text: from where to where with all that belongs to it, and what that says."""

    start: int
    end: int
    quantity: Quantity


def _written(text: str, match: re.Match[str]) -> _Written | None:
    """The number of a match of `_VALUE` with the sign, currency, scale and unit beside it; None if it is part
    of something else, such as "x2", "2nd" and "5x".
    """
    value = _value(match)
    before, end = text[: match.start()], match.end()
    before, sign = _without_sign(before)
    currency = _CURRENCY_AT_END.search(before[-6:])
    if currency:
        before, sign = _without_sign(before[: len(before) - len(currency[0])], sign)
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
    return _Written(len(before), end, Quantity(sign * value, times, read_unit(named) if named else None))


def _without_sign(before: str, sign: int = 1) -> tuple[str, int]:
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
        found = _written(text, match)
        if found is not None:
            return ("-" if found.quantity.value < 0 else "") + text[match.start() : found.end]
    return None


def _prepared(text: str) -> str:
    text = to_latex(_DOLLAR.sub("USD ", text) if "$" in text else text)
    return _DEGREE.sub("°", plain_fonts(text)).strip()


def read_quantity(text: str) -> Quantity | None:
    r"""The one number of ``text``, with its percent sign, word of scale and unit; None if there is no one.

    Words may stand around it and are ignored, as are units that are not in ``UNITS``. A second number, or
    mathematics around it (``<5``, ``5+x``, ``\pm 5``, ``5!``), is no one number, and neither is one that is
    denied ("not 5", "minus 5"). Units of one kind, each smaller than the one before, add up: "3 h 20 min".
    """
    text = _prepared(text) if len(text) <= MAX_DIGITS else ""
    match = _VALUE.search(text)
    found = _written(text, match) if match else None
    if found is None:
        return None
    quantity, end, least = found.quantity, found.end, found.quantity.unit
    while quantity.unit and (match := _VALUE.match(text, _AND.match(text, end).end())):  # type: ignore[union-attr]
        further = _written(text, match)
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


def without_unit(*texts: str) -> list[tuple[str, Quantity]]:
    """Each text as LaTeX without its unit, currency and percent sign, and these, as of the number 1.

    A single letter is taken for a unit only if it is set upright, or if another of the texts has a unit: in
    "2t + 3s" it is a variable.
    """
    read = [_parted(_prepared(text), "\\text" in text or "\\math" in text) for text in texts]
    if any(stated.unit for _, stated in read):
        read = [_parted(_prepared(text), True) for text in texts]
    return read


def _parted(text: str, letters: bool) -> tuple[str, Quantity]:
    currency = _CURRENCY_AT_START.match(text)
    body = text[currency.end() :] if currency else text
    unit = _UNIT_AT_END.search(body, max(0, len(body) - _LONGEST_UNIT))
    if unit and (
        (not letters and len(unit["unit"]) == 1 and unit["unit"].isascii()) or _FUNCTION.search(body)
    ):
        unit = None
    body = body[: unit.start()].strip() if unit else body
    scale = _SCALE_AT_END.search(body)
    body = body[: scale.start()] if scale else body
    named = unit["unit"] if unit else currency["unit"] if currency else None
    stated = Quantity(Fraction(1), PERCENT if scale else Fraction(1), read_unit(named) if named else None)
    return body.replace("°", "^\\circ "), stated


def in_terms_of(truth: Quantity, given: Quantity) -> list[Fraction]:
    """What ``given`` may mean, as numbers to compare with ``truth.value``; none if the units do not fit.

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
