"""Captions with one wrong word: a word exchanged for one of the same kind out of other captions.

The kinds are lists of common English words that exclude each other, so that the caption gets wrong; a word is
exchanged only where no other of its kind stands beside it, and where the article before it still fits. So the
caption stays one that could have been written, and only the picture tells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrl.models.prompts import IMAGE
from mmrl.tasks.entries import first_of, read_entries, read_json

KINDS: Mapping[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "colour": "red green blue yellow orange purple pink brown black white",
        "number": "two three four five six seven eight nine ten",
        "side": "left right",
        "person": "man woman boy girl",
        "persons": "men women boys girls",
        "animal": "dog cat horse cow sheep elephant bear zebra giraffe bird monkey lion tiger rabbit pig",
        "animals": "dogs cats horses cows elephants bears zebras giraffes birds monkeys lions tigers",
        "vehicle": "car bus train truck boat bicycle motorcycle airplane",
        "food": "pizza sandwich cake banana apple broccoli carrot donut salad soup",
        "furniture": "chair couch bed table bench toilet",
        "device": "laptop television phone keyboard refrigerator microwave oven toaster clock",
        "ball": "tennis baseball soccer basketball",
        "place": "beach kitchen bathroom bedroom street forest",
        "posture": "standing sitting lying running jumping",
        "material": "wooden metal stone",
        "size": "small large",
    }.items()
}
_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_WORD = re.compile(r"[A-Za-z]+")
# Where "left" and "right" are sides: "on the left", "to his right"; not "has left", "right in front".
_BEFORE_SIDE = frozenset(("the", "his", "her", "its", "their", "upper", "lower", "top", "bottom", "far"))
_PRONOUNS = frozenset(("he", "she", "his", "her", "hers", "him", "himself", "herself"))  # say who it is
LONGEST = 400  # characters of a caption
NAMES = ("file_name", "image", "image_path", "filename")
TEXTS = ("caption", "captions", "text", "sentence", "sentences")


class Caption(NamedTuple):
    """A caption of an image."""

    image: str  # its name
    text: str


class Place(NamedTuple):
    """A word of a caption that can be exchanged."""

    start: int
    word: str
    kind: str


def read_captions(file: Path) -> list[Caption]:
    """The captions of a file that have a word to exchange, each for itself.

    COCO's captions, or entries {"file_name": ..., "caption": ...} in JSON, JSONL, CSV, TSV or parquet; other
    entries are passed over. Raises ValueError if there are fewer than two.
    """
    usable = []
    for entry in _entries(file):
        image, texts = first_of(entry, NAMES), first_of(entry, TEXTS)
        for text in texts if isinstance(texts, list) else [texts]:
            text = text.strip() if isinstance(text, str) and isinstance(image, str) else ""
            if 0 < len(text) <= LONGEST and IMAGE not in text and places(text):
                usable.append(Caption(image, text))
    if len(usable) < 2:
        raise ValueError(f"{file}: {len(usable)} captions have a word to exchange; give more of them")
    return usable


def _entries(file: Path) -> Iterator[Mapping[str, Any]]:
    """Entries with an image and its captions, of COCO's annotations each with its image's name."""
    whole = read_json(file) if file.is_file() else None
    if not isinstance(whole, Mapping) or "annotations" not in whole:
        yield from (entry for _, entry in read_entries(file) if isinstance(entry, Mapping))
        return
    names = {str(image.get("id")): image.get("file_name") for image in _objects(whole.get("images"))}
    for annotation in _objects(whole["annotations"]):
        name = names.get(str(annotation.get("image_id")))
        yield {"file_name": name, "caption": annotation.get("caption")}


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def places(text: str) -> list[Place]:
    """The words of a caption that can be exchanged."""
    words = list(_WORD.finditer(text))
    lowered = [word[0].lower() for word in words]
    kinds = [_KIND_OF.get(word, "") for word in lowered]
    free = {kind for kind, count in Counter(kinds).items() if kind and count == 1}
    if _PRONOUNS & set(lowered):
        free -= {"person", "persons"}
    return [
        Place(words[k].start(), words[k][0], kind)
        for k, kind in enumerate(kinds)
        if kind in free and (kind != "side" or (k and lowered[k - 1] in _BEFORE_SIDE))
    ]


def vocabulary(captions: Sequence[Caption]) -> dict[str, Counter[str]]:
    """Counts of each word of each kind where it could be exchanged."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for caption in captions:
        for place in places(caption.text):
            found[place.kind][place.word.lower()] += 1
    return found


def wrong_word(
    text: str, words: Mapping[str, Counter[str]], rng: np.random.Generator
) -> tuple[str, str] | None:
    """A caption with a wrong word and that word, or, in half of the cases, the caption as it is and "none".

    None if no caption has another word of the kinds that this one has. ``words`` is their `vocabulary`.
    """
    exchanges = [(place, other) for place in places(text) if (other := _others(place, words))]
    if not exchanges:
        return None
    place, others = exchanges[int(rng.integers(len(exchanges)))]
    counts = np.array(list(others.values()), float)
    chosen = list(others)[int(rng.choice(len(counts), p=counts / counts.sum()))]
    if not rng.integers(2):
        return text, "none"
    chosen = chosen.capitalize() if place.word[0].isupper() else chosen
    return text[: place.start] + chosen + text[place.start + len(place.word) :], chosen


def _others(place: Place, words: Mapping[str, Counter[str]]) -> dict[str, int]:
    """Words that can stand in a word's place, with how often they are used."""
    own = place.word.lower()
    return {
        word: count
        for word, count in sorted(words[place.kind].items())
        if word != own and (word[0] in "aeiou") == (own[0] in "aeiou")
    }
