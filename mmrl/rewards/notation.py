"""Tolerant reading of what models write for boxes and actions: JSON, Python literals, calls, text between.

One pass over the text, in time linear in its length; nothing is evaluated. A missing bracket, a trailing
comma or single quotes cost nothing, because no whole value has to parse.
"""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from mmrl.rewards.text import DASHES

MAX_QUOTED = 1000  # characters of a text in quotes; quotes further apart enclose nothing

_QUOTED = rf'"(?:\\.|[^"\\\n]){{0,{MAX_QUOTED}}}+"'
# An apostrophe within a word neither opens nor closes a text.
_SINGLY_QUOTED = rf"(?<!\w)'(?:\\.|[^'\\\n]|'(?=\w)){{0,{MAX_QUOTED}}}+'(?!\w)"
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
_TAG = r"<\|?/?(?:box|bbox|point)(?:_start|_end)?\|?>"
_TOKEN = re.compile(
    rf"(?P<text>{_QUOTED}|{_SINGLY_QUOTED})"
    r"|(?P<aside>```\w*|\\[A-Za-z]+)"  # fences, and commands of LaTeX
    rf"|(?P<tag>{_TAG})"
    rf"|(?P<number>(?<![\w.]){_NUMBER})"
    r"|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<mark>[][(){}:=])"
)
_ONE_NUMBER = re.compile(rf"\s*{_NUMBER}\s*")
_ONLY_NUMBERS = re.compile(rf"(?:{_TAG}|[\s0-9.,()\[\]+-])*+")

Kind = Literal["record", "end", "value", "word", "call", "numbers"]


class Item(NamedTuple):
    """Something that was written.

    "record" and "end": braces; "value": ``key: text`` or ``key=text``; "word": a text alone; "call": the name
    before a parenthesis; "numbers": what brackets without anything else in them hold.
    """

    kind: Kind
    key: str = ""  # lower case; of "value" only
    text: str = ""
    numbers: tuple[float, ...] = ()


def items(text: str) -> list[Item]:
    """What ``text`` holds, in order. The whole text counts as one bracket, so that bare numbers are found.

    Of a text in quotes that is nothing but numbers, these are found too, behind the text.
    """
    found: list[Item] = []
    group: list[str] | None = []  # of the innermost open bracket, while it holds only numbers
    key: str | None = None
    for (kind, part), (_, following) in pairwise([*_tokens(text), ("mark", "")]):
        if kind == "mark":
            if part in (":", "="):
                continue
            if part in ("{", "}"):
                found.append(Item("record" if part == "{" else "end"))
            elif part in (")", "]") and group:
                found.append(_numbers(group))
            group, key = [] if part in ("(", "[") else None, None
        elif key is None and group is not None and _ONE_NUMBER.fullmatch(part):
            group.append(part)
        elif kind != "number" and following in (":", "="):
            group, key = None, part.lower()
        elif key is not None:
            found += [Item("value", key, part), *_numbers_within(part)]
            group, key = None, None
        elif kind != "number":
            called = kind == "word" and following == "("
            found += [Item("call" if called else "word", text=part), *_numbers_within(part)]
            group = None
    return [*found, _numbers(group)] if group else found


def _numbers_within(part: str) -> list[Item]:
    return items(part) if _ONLY_NUMBERS.fullmatch(part) else []


def _numbers(group: list[str]) -> Item:
    return Item("numbers", text=" ".join(group), numbers=tuple(map(float, group)))


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(text.translate(DASHES)):
        kind, part = str(match.lastgroup), match[0]
        if kind == "tag":
            yield "mark", "]" if "/" in part or "_end" in part else "["
        elif kind != "aside":
            yield kind, _unquoted(part) if kind == "text" else part


def _unquoted(part: str) -> str:
    """The text between quotes, with its escapes undone where they are such."""
    if "\\" not in part:
        return part[1:-1]
    if part[0] == "'":
        return part[1:-1].replace("\\'", "'")
    try:
        return str(json.loads(part, strict=False))
    except ValueError:
        return part[1:-1]
