"""Verifiers of answers that list items: a list, a set, an order of given items, a ranking of candidates."""

import json
import re
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from mmrl.rewards.quantity import parse_number
from mmrl.rewards.text import canonical, plain_fonts, to_latex
from mmrl.rewards.verifier import AnswerIn, Components, Verifier, answer_of, wrong_answer
from mmrl.sample import Sample

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
        listed = _cut(strip_brackets(plain_fonts(to_latex(answer)).strip()))
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


def strip_brackets(text: str) -> str:
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
            return _strip(trimmed)
    parts = _at_top(text, ",")
    last = _LAST_AND.split(parts[-1])
    return _strip([*parts[:-1], *(last if len(last) <= 2 else parts[-1:])])


def _strip(parts: Iterable[str]) -> list[str]:
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
    """The key by which items are compared: the number that they write, or else `canonical`."""
    number = parse_number(item)
    return canonical(item) if number is None else number


@Verifier
def list_(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """Judges a list: ``accuracy`` (the same items in the same order) and ``positions``.

    ``positions`` is the share of places that hold the right item, of the longer of the two lists. ValueError
    if ``sample.answer`` lists nothing.
    """
    truth = truth_of(sample, items_of)
    given = _keys(answer_of(response, answer_in), items_of)
    same = sum(a == b for a, b in zip(given, truth, strict=False))
    return {"accuracy": float(given == truth), "positions": same / max(len(given), len(truth))}


@Verifier
def set_(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """Judges a set, in any order and whatever is repeated: ``accuracy``, ``item_f1`` and ``jaccard``.

    With c items in common, ``item_f1`` is 2 c / (given + wanted) and ``jaccard`` c / (given + wanted - c).
    ValueError if ``sample.answer`` lists nothing.
    """
    truth, given = (
        frozenset(truth_of(sample, items_of)),
        frozenset(_keys(answer_of(response, answer_in), items_of)),
    )
    common = len(given & truth)
    return {
        "accuracy": float(given == truth),
        "item_f1": 2 * common / (len(given) + len(truth)),
        "jaccard": common / len(given | truth),
    }


@Verifier
def order(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """Judges a permutation of the truth's items: ``accuracy`` (all right), ``positions`` and ``pairs``.

    ``positions`` is the share of items in their place. ``pairs`` is the share of pairs of items in the right
    order, which is (Kendall's tau + 1) / 2; half of them are right by chance. What is no permutation is 0 in
    all. Items of one character may be written without anything between them. ValueError if ``sample.answer``
    lists nothing, or an item twice.
    """
    truth = truth_of(sample, ordered_items)
    if len(set(truth)) < len(truth):
        raise wrong_answer(sample, "has an item twice; name each once")
    place = {key: i for i, key in enumerate(truth)}
    given = _keys(answer_of(response, answer_in), ordered_items)
    if len(given) == 1 and len(truth) > 1:
        given = _characters(answer_of(response, answer_in), len(truth))
    if len(given) != len(truth) or set(given) != set(truth):
        return {"accuracy": 0.0, "positions": 0.0, "pairs": 0.0}
    return {
        "accuracy": float(given == truth),
        "positions": sum(a == b for a, b in zip(given, truth, strict=True)) / len(truth),
        "pairs": concordant_pairs([place[key] for key in given]),
    }


def concordant_pairs(places: Sequence[int]) -> float:
    """Share of the pairs of a permutation that stand in rising order; 1 for a single item."""
    count, falling = len(places), 0
    seen: list[int] = []
    for place in places:
        falling += len(seen) - bisect_right(seen, place)
        insort(seen, place)
    pairs = count * (count - 1) // 2
    return 1.0 - falling / pairs if pairs else 1.0


@Verifier
def rank(
    sample: Sample, response: str, *, candidates: Sequence[Any], answer_in: AnswerIn = "box"
) -> Components:
    """Judges a ranking of ``candidates``, of which ``sample.answer`` lists the relevant ones.

    ``accuracy``: the relevant ones come first. ``rank_gain``: the sum of 1 / rank^3 over them, over that of
    the best ranking. ``listing``: how well the response lists the candidates: (1 - |listed - n| / n), not
    below 0, times the share of what is listed that is a candidate named for the first time. MM-R5
    (``qwen_module.py``). ValueError if a relevant one is no candidate, or there are none.
    """
    keys = [key_of(str(item)) for item in candidates]
    relevant = frozenset(truth_of(sample, ordered_items))
    if not relevant <= frozenset(keys) or len(set(keys)) < len(keys):
        raise wrong_answer(sample, "should be among facts['candidates'], each of which stands there once")
    listed = _keys(answer_of(response, answer_in), ordered_items)
    first = {key: place for place, key in reversed(list(enumerate(listed, start=1)))}
    best = sum(1 / place**3 for place in range(1, len(relevant) + 1))
    gain = sum(1 / first[key] ** 3 for key in relevant if key in first) / best
    known = sum(key in first for key in keys) / max(1, len(listed))
    complete = max(0.0, 1 - abs(len(listed) - len(keys)) / len(keys))
    return {
        "accuracy": float(frozenset(listed[: len(relevant)]) == relevant),
        "rank_gain": gain,
        "listing": complete * known,
    }


def truth_of(sample: Sample, read: Callable[[str], list[str] | None]) -> list[Key]:
    """The items of ``sample.answer``. ValueError if there are none."""
    items = read(sample.answer)
    if items is None:
        raise wrong_answer(sample, "lists nothing; give items with commas between them, or a JSON list")
    return [key_of(item) for item in items]


def _keys(answer: str, read: Callable[[str], list[str] | None]) -> list[Key]:
    return [key_of(item) for item in read(answer) or []]


def _characters(answer: str, count: int) -> list[Key]:
    bare = "".join(answer.split())
    return [key_of(character) for character in bare] if len(bare) == count else []
