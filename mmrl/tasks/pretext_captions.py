"""Captions with one wrong word: a word exchanged for one of the same kind out of other captions.

The kinds are lists of common English words that exclude each other, so that the caption gets wrong; a word is
exchanged only where no other of its kind stands beside it, and where the article before it still fits. So the
caption stays one that somebody might have written, and only the picture tells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmrl.models.prompts import IMAGE
from mmrl.tasks.entries import first_of, read_entries, read_json
from mmrl.tasks.pretext_tasks import PretextQuestion, Unsuited

KINDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        name: frozenset(words.split())
        for name, words in {
            "colour": "red green blue yellow orange purple pink brown black white",
            "number": "two three four five six seven eight nine ten",
            "side": "left right",
            "person": "man woman boy girl",
            "people": "men women boys girls",
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
)
_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_WORD = re.compile(r"[A-Za-z]+")
# Where "left" and "right" are sides: "on the left", "to his right"; not "has left", "right in front".
_BEFORE_SIDE = frozenset(("the", "his", "her", "its", "their", "upper", "lower", "top", "bottom", "far"))
_PRONOUNS = frozenset(("he", "she", "his", "her", "hers", "him", "himself", "herself"))  # say who it is
LONGEST = 400  # characters of a caption
NAMES = ("file_name", "image", "image_path", "filename")
TEXTS = ("caption", "captions", "text", "sentence", "sentences")


class Caption(NamedTuple):
    """What is said of an image."""

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
    whole = read_json(file) if file.is_file() else None
    told = _coco(whole) if isinstance(whole, Mapping) and "annotations" in whole else _entries(file)
    usable = [
        caption
        for caption in told
        if len(caption.text) <= LONGEST and IMAGE not in caption.text and places(caption.text)
    ]
    if len(usable) < 2:
        raise ValueError(f"{file}: {len(usable)} captions have a word to exchange; give more of them")
    return usable


def places(text: str) -> list[Place]:
    """The words of a caption that can be exchanged."""
    words = list(_WORD.finditer(text))
    kinds = [_KIND_OF.get(word[0].lower()) for word in words]
    counts = Counter(kinds)
    spoken = {word[0].lower() for word in words}
    found = []
    for k, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        if kind and counts[kind] == 1 and _free(kind, words[k - 1][0].lower() if k else "", spoken):
            found.append(Place(word.start(), word[0], kind))
    return found


def _free(kind: str, before: str, spoken: set[str]) -> bool:
    """Whether a word is of its kind, and no word beside it, of all that are ``spoken``, says which."""
    if kind == "side":
        return before in _BEFORE_SIDE
    return kind not in ("person", "people") or not spoken & _PRONOUNS


def vocabulary(captions: Sequence[Caption]) -> dict[str, Counter[str]]:
    """How often each word of each kind stands where it could be exchanged."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for caption in captions:
        for place in places(caption.text):
            found[place.kind][place.word.lower()] += 1
    return found


def caption_error(
    picture: Image.Image, text: str, words: Mapping[str, Counter[str]], rng: np.random.Generator
) -> PretextQuestion:
    """Which word of the caption is wrong, if one is (in half of the questions), in the manner of ViCrit.

    Args: the picture; its caption; the `vocabulary` of all; the generator.

    Raises Unsuited if no caption has another word of the kinds that this one has.
    """
    exchanges = [(place, other) for place in places(text) if (other := _others(place, words))]
    if not exchanges:
        raise Unsuited("no other caption has a word to exchange with one of this one")
    place, others = exchanges[int(rng.integers(len(exchanges)))]
    counts = np.array(list(others.values()), float)
    chosen = list(others)[int(rng.choice(len(counts), p=counts / counts.sum()))]
    wrong = bool(rng.integers(2))
    if wrong:
        chosen = chosen.capitalize() if place.word[0].isupper() else chosen
        text = text[: place.start] + chosen + text[place.start + len(place.word) :]
    return PretextQuestion(
        f"<image>A caption of this picture: {text}\nOne word of it may be wrong. Name the wrong word as it"
        ' stands in the caption, or say "none" if there is none.',
        chosen if wrong else "none",
        "text",
        (picture,),
    )


def _others(place: Place, words: Mapping[str, Counter[str]]) -> dict[str, int]:
    """Words that can stand in a word's place, with how often they are used."""
    own = place.word.lower()
    return {
        word: count
        for word, count in sorted(words[place.kind].items())
        if word != own and (word[0] in "aeiou") == (own[0] in "aeiou")
    }


def _entries(file: Path) -> Iterator[Caption]:
    for _, entry in read_entries(file):
        if isinstance(entry, Mapping):
            yield from _captions(first_of(entry, NAMES), first_of(entry, TEXTS))


def _coco(whole: Mapping[str, Any]) -> Iterator[Caption]:
    images = {str(image.get("id")): image.get("file_name") for image in _objects(whole.get("images"))}
    for one in _objects(whole["annotations"]):
        yield from _captions(images.get(str(one.get("image_id"))), one.get("caption"))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _captions(image: Any, texts: Any) -> Iterator[Caption]:
    for text in texts if isinstance(texts, list) else [texts]:
        if isinstance(image, str) and isinstance(text, str) and text.strip():
            yield Caption(image, text.strip())
