"""Items of an answer that lists some: between commas, semicolons or line breaks, or a JSON list."""

import json
import re
from collections.abc import Iterable
from fractions import Fraction

from mmrl.rewards.number import parse_number
from mmrl.rewards.text import canonical, plain_fonts, to_latex

MAX_ITEMS = 1000  # an answer that lists more is no list

_OPENING, _CLOSING = "([{", ")]}"
_BULLET = re.compile(r"\s*(?:[-*\u2022]|\d{1,4}[.)])\s+")
_LAST_AND = re.compile(r"(?:^|\s)(?:and|&)\s", re.IGNORECASE)
_ARROW = re.compile(r"\s*(?:->|=>|\u2192|\\to\b|\\rightarrow\b|>)\s*")
_SHORT = re.compile(r"-?\d+|[^\W\d_]")

Key = str | Fraction


def items_of(answer: str) -> list[str] | None:
    """The items that ``answer`` lists, in order and stripped; None if there are none or over ``MAX_ITEMS``.

    A JSON list of texts and numbers is taken as it is. Otherwise brackets around all of it are dropped, and
    it is cut at semicolons; if there are none at line breaks, where bullets and numbers of lines are dropped;
    if there are none at commas, and at an "and" before the last item. What is within brackets is not cut.
    """
    listed = json_items(answer)
    if listed is None:
        listed = _cut(unbracketed(plain_fonts(to_latex(answer)).strip()))
    return listed if 0 < len(listed) <= MAX_ITEMS else None


def json_items(answer: str) -> list[str] | None:
    """The items of an answer that is a JSON list of texts and numbers, else None."""
    try:
        items = json.loads(answer) if answer.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or any(
        isinstance(item, bool) or not isinstance(item, str | int | float) for item in items
    ):
        return None
    return [str(item).strip() for item in items]


def ordered_items(answer: str) -> list[str] | None:
    """As `items_of`; blanks may also part numbers and single letters, and arrows or ``>`` all items."""
    items = items_of(answer)
    if items is None or len(items) > 1:
        return items
    parts = [part for part in _ARROW.split(items[0]) if part]
    short = items[0].split()
    if len(parts) == 1 and all(_SHORT.fullmatch(part) for part in short):
        parts = short
    return parts if 0 < len(parts) <= MAX_ITEMS else None


def unbracketed(text: str) -> str:
    r"""``text`` without one pair of brackets around all of it: ``[1, 2]``, ``\{1, 2\}``."""
    plain = text.replace("\\{", "{").replace("\\}", "}")
    if plain[:1] and plain[0] in _OPENING and plain[-1] in _CLOSING:
        depth = 0
        for place, character in enumerate(plain):
            depth += (character in _OPENING) - (character in _CLOSING)
            if depth == 0:
                return plain[1:-1].strip() if place == len(plain) - 1 else text
    return text


def _cut(text: str) -> list[str]:
    for separator in ";\n":
        parts = _at_top(text, separator)
        if len(parts) > 1:
            trimmed = (_BULLET.sub("", part, count=1) if separator == "\n" else part for part in parts)
            return _stripped(trimmed)
    parts = _at_top(text, ",")
    last = _LAST_AND.split(parts[-1])
    return _stripped([*parts[:-1], *(last if len(last) <= 2 else parts[-1:])])


def _stripped(parts: Iterable[str]) -> list[str]:
    bare = (part.strip().rstrip(",.").strip().strip("\"'").strip() for part in parts)
    return [part for part in bare if part]


def _at_top(text: str, separator: str) -> list[str]:
    """``text`` cut at the separators that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(0, depth - 1)
        elif character == separator and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def key_of(item: str) -> Key:
    """What items are compared by: the number that they write, or else the spelling (``text.canonical``)."""
    number = parse_number(item)
    return canonical(item) if number is None else number
