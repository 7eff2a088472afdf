"""How much of a response repeats what it has said before."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmrl.rewards.facts import number_fact
from mmrl.sample import Sample

MAX_CHARACTERS = 300_000  # what comes after these is not looked at
MAX_LISTS = 100  # that are read, or turn out to be no JSON; what follows is text
WORD = 2  # a word is worth two characters of a script that writes no blanks between words
LONGEST_WORD = 100  # characters; what is longer is no word, and its characters count

_LIST = re.compile(r"\[\s*\{")
# Kana, Han, Thai, Lao, Burmese, Khmer: scripts without blanks between words.
_BLANKLESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_UNITS = re.compile(f"([{_BLANKLESS}])|([^{_BLANKLESS}]+)")


def repetition(sample: Sample, response: str) -> dict[str, float]:
    """``{"repetition": x}`` with x from -1 to 0: minus the share of n-grams that occurred before.

    n is ``facts["ngram"]`` words, 6 by default. In a JSON list of objects the objects are the words and n is
    1: the same box twice is a repetition. The text outside such lists and each list are judged apart, and the
    worst counts.

    Sources: ``get_repetition_penalty`` of Yeo et al. 2025 (Demystifying long chain-of-thought), and VLM-R1's
    ``repetition_reward`` for lists of boxes. Raises ValueError if ``facts["ngram"]`` is not from 1 to 100.
    """
    size = round(number_fact(sample, "ngram", 6, least=1, most=100))
    text, lists = _without_lists(response[:MAX_CHARACTERS])
    shares = [_share_new(_ngrams(list(_units(text)), size)), *map(_share_new, lists)]
    return {"repetition": min(shares) - 1.0}


def _share_new(items: Sequence[Any]) -> float:
    """The share of different ones among ``items``; 1 if there are none."""
    return len(set(items)) / len(items) if items else 1.0


def _units(text: str) -> Iterator[tuple[str, int]]:
    """The words of ``text``, and single characters where a script has no blanks or a word has no end.

    Each with its worth, of which a word has ``WORD``.
    """
    for word in text.lower().split():
        if len(word) > LONGEST_WORD:
            yield from ((character, 1) for character in word)
        elif word.isascii():
            yield word, WORD
        else:
            for character, rest in _UNITS.findall(word):
                yield (character, 1) if character else (rest, WORD)


def _ngrams(units: Sequence[tuple[str, int]], size: int) -> list[int]:
    """Hashes of the runs of units that are worth ``size`` words, one for each beginning."""
    grams, end, worth = [], 0, 0
    for start in range(len(units)):
        while worth < WORD * size and end < len(units):
            worth, end = worth + units[end][1], end + 1
        if worth < WORD * size:
            break
        grams.append(hash(tuple(units[start:end])))
        worth -= units[start][1]
    return grams


def _without_lists(text: str) -> tuple[str, list[list[str]]]:
    """``text`` without its JSON lists of objects, and the objects of each."""
    decoder, rest, lists, end = json.JSONDecoder(), [], [], 0
    opening = _LIST.search(text)
    for _ in range(MAX_LISTS):
        if opening is None:
            break
        try:
            found, after = decoder.raw_decode(text, opening.start())
            lists.append([_key(item) for item in found])
            rest.append(text[end : opening.start()])
            end = after
        except (ValueError, RecursionError):
            after = opening.end()
        opening = _LIST.search(text, after)
    return " ".join([*rest, text[end:]]), lists


def _key(item: Any) -> str:
    """What makes two objects of a list the same: box and label where they have both, else everything."""
    if isinstance(item, dict) and "bbox_2d" in item and "label" in item:
        return f"{item['bbox_2d']}_{item['label']}"
    return repr(item)
