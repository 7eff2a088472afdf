"""Multiple choice: a question, options and the right one, as ScienceQA, MMMU and MMBench have them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.files import parse_json
from mmrl.data.rows import LONGEST_PATH
from mmrl.models.prompts import IMAGE
from mmrl.tasks.convert_entries import Entry, Images, Options, first_of, read_entries

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ANSWERS = ("letter", "index", "text")
LONGEST_LIST = 20_000  # characters of options written as one text
_PLACE = re.compile(r"<image ?(\d+)>")  # MMMU's mark of the image in "image_1", "image_2", ...
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]?")
_NUMBER = re.compile(r"[(\[]?(\d{1,2})[)\].:]?", re.ASCII)
# A label that an option carries, perhaps with Chinese punctuation: "A. red", "(A) red", "A: red", "1. red".
_CARRIED = re.compile(
    r"[(\[]?([A-Za-z]|\d{1,2})(?:[)\]]\s*[.:]?|\s*[.:](?=\s)|[\u3001\uff0e\uff1a])\s*(?=\S)", re.ASCII
)
_LABEL = re.compile(r"(?:^|[;,\n])\s*\(?([A-Z])[.:)]\s*")  # before an option of several in one text
MOST_IMAGES = 20  # columns "image_1", "image_2", ... that are looked for


def entries(spec: Path) -> Iterator[Entry]:
    """The questions of a file."""
    return read_entries(spec)


def rows(entry: Mapping[str, Any], images: Images, options: Options) -> list[dict[str, Any]]:
    """The row of a question; none of one without options, which is an open question.

    Options stand in a list ``options`` or ``choices``, perhaps written as text (or as "A. red; B. blue"), or
    in columns A, B, ...; the question in ``question`` (after its ``hint`` or ``context``), the right one in
    ``answer``. Options that carry labels already, and a question that lists them, get no second ones.

    Raises ValueError for a question, an option, an answer or an image that cannot be read, or labels that are
    not in order.
    """
    question = first_of(entry, ("question", "problem", "text"))
    if not isinstance(question, str):
        raise ValueError("no text in 'question'")
    labels, listed = _labelled(_options(entry))
    if not listed:
        return []
    if len(listed) == 1 or len(listed) > len(LETTERS):
        raise ValueError(f"{len(listed)} options: a choice has 2 to {len(LETTERS)}")
    hint = first_of(entry, ("hint", "context"))
    told = f"{hint.strip()}\n{question.strip()}" if isinstance(hint, str) else question.strip()
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, listed, strict=False)]
    asked = told if _lists(told, listed) else "\n".join([told, *lines])
    problem, pictures = placed(asked, entry, images)
    return [
        {
            "problem": problem,
            "answer": LETTERS[_right(entry.get("answer"), listed, labels, options.answer)],
            "images": pictures,
            "verifier": "choice",
            "facts": {"options": [_PLACE.sub(r"image \1", option) for option in listed]},
            "kind": "choice",
        }
    ]


def has_options(entry: Mapping[str, Any]) -> bool:
    """Whether an entry says what there is to choose from."""
    return first_of(entry, ("options", "choices", "A")) is not None


def _options(entry: Mapping[str, Any]) -> list[str]:
    listed = first_of(entry, ("options", "choices"))
    if isinstance(listed, str):
        listed = _written_list(listed)
    if isinstance(listed, Mapping):  # a struct of parquet names the options that other rows have
        named = {key: option for key, option in listed.items() if option not in (None, "")}
        letters = all(len(key) == 1 and key.isalpha() for key in named)
        listed = [f"{key}) {named[key]}" for key in sorted(named)] if letters else list(named.values())
    if listed is None:
        there = [entry.get(letter) for letter in LETTERS]
        there = there[: next((k for k, option in enumerate(there) if option in (None, "")), len(there))]
        listed = there
    if not isinstance(listed, list):
        raise ValueError(f"options are a {type(listed).__name__}, not a list")
    found = [str(option).strip() if isinstance(option, str | int | float) else "" for option in listed]
    if not all(found):
        raise ValueError(f"option {found.index('') + 1} is no text")
    return found


def _labelled(options: Sequence[str]) -> tuple[str, list[str]]:
    """What labels the options carry, "A" or "1" for the first and so on ("" for none), and them without.

    A single option that begins like a label ("A. Smith") has none. Raises ValueError for labels of some only,
    or in another order: then nobody knows whether an answer means a label or a place.
    """
    found = [_CARRIED.match(option) for option in options]
    labels = [match[1].upper() if match else "" for match in found]
    for first in ("A", "1"):
        wanted = list(LETTERS[: len(options)]) if first == "A" else [str(k + 1) for k in range(len(options))]
        if labels == wanted:
            return first, [
                option[match.end() :] for option, match in zip(options, found, strict=True) if match
            ]
        in_place = sum(label == place for label, place in zip(labels, wanted, strict=False))
        if in_place > 1 or (len(options) > 1 and sorted(labels) == sorted(wanted)):
            raise ValueError(f"the options carry the labels {', '.join(label or 'none' for label in labels)}")
    return "", list(options)


def _lists(question: str, options: Sequence[str]) -> bool:
    """Whether a question lists these options, all and in order, with their letters."""
    each = (
        rf"[(\[]?{letter}(?:[)\]]\s*[.:]?|\s*[.:]|[\u3001\uff0e\uff1a])\s*{re.escape(option)}"
        for letter, option in zip(LETTERS, options, strict=False)
    )
    return re.search(r"(?:^|\s)" + r"[\s;,]*\s".join(each) + r"(?:\W|$)", question) is not None


def _written_list(text: str) -> Any:
    """A list written as JSON, labelled, or as Python does: only constants are read, and nothing is run."""
    if len(text) > LONGEST_LIST:
        raise ValueError(f"options are a text of {len(text)} characters")
    try:
        return parse_json(text)
    except ValueError:
        pass
    before, *labelled = _LABEL.split(text.strip())
    if not before and len(labelled) > 2 and "".join(labelled[::2]) == LETTERS[: len(labelled) // 2]:
        return labelled[1::2]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"options are {text[:80]!r}, which is no list") from error


def _right(answer: Any, options: Sequence[str], labels: str, form: str) -> int:
    """Which option is right. Raises ValueError if that is none, or two readings of the answer differ."""
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    readings = {
        "letter": _by_number(answer, 1) if labels == "1" else _by_letter(answer),
        "index": _by_number(answer, 0),
        "text": _by_text(answer, options, labels),
    }
    chosen = [form] if form else ["index"] if isinstance(answer, int) and labels != "1" else list(ANSWERS)
    found = {
        way: place for way in chosen if (place := readings[way]) is not None and 0 <= place < len(options)
    }
    if not found:
        raise ValueError(f"the answer {str(answer)[:80]!r} is none of its {len(options)} options")
    if len(set(found.values())) > 1:
        ways = " or ".join(found)
        raise ValueError(f"the answer {str(answer)[:80]!r} can be read as {ways}; say which, by --answer")
    return next(iter(found.values()))


def _by_letter(answer: Any) -> int | None:
    match = _LETTER.fullmatch(answer.strip()) if isinstance(answer, str) else None
    return LETTERS.index(match[1].upper()) if match else None


def _by_number(answer: Any, first: int) -> int | None:
    match = _NUMBER.fullmatch(str(answer).strip()) if isinstance(answer, str | int) else None
    return int(match[1]) - first if match and not isinstance(answer, bool) else None


def _by_text(answer: Any, options: Sequence[str], labels: str) -> int | None:
    """The one option with this text, which may carry its label."""
    text = str(answer).strip()
    same = [k for k, option in enumerate(options) if option == text]
    match = _CARRIED.match(text)
    if not same and match:
        names = LETTERS if labels != "1" else [str(k + 1) for k in range(len(options))]
        rest = text[match.end() :]
        same = [k for k, option in enumerate(options) if option == rest and names[k] == match[1].upper()]
    return same[0] if len(same) == 1 else None


def placed(text: str, entry: Mapping[str, Any], images: Images) -> tuple[str, list[bytes | str]]:
    """The text with a placeholder for each image of the entry, and these in its order.

    A mark "<image 1>" stands for the image in the column ``image_1``, or for the first of ``image``. Images
    without such marks stand in front.
    """
    numbers = [int(number) for number in _PLACE.findall(text)]
    named = first_of(entry, ("image", "images"))
    named = named if isinstance(named, list) else [] if named is None else [named]
    apart = {k: entry[f"image_{k}"] for k in range(1, MOST_IMAGES) if entry.get(f"image_{k}") is not None}
    if numbers and (not named or apart):
        named = [apart.get(number) for number in numbers]
        text = _PLACE.sub(IMAGE, text)
    elif numbers and sorted(numbers) == list(range(1, len(named) + 1)):
        named = [named[number - 1] for number in numbers]
        text = _PLACE.sub(IMAGE, text)
    else:
        text = _PLACE.sub(r"image \1", text)
        named = named or list(apart.values())
        text = text if IMAGE in text else IMAGE * len(named) + text
    identity, split = str(entry.get("id", "")), str(entry.get("split", ""))
    return text, [_picture(image, images, identity, split) for image in named]


def _picture(image: Any, images: Images, identity: str, split: str) -> bytes | str:
    """An image of an entry; a file may lie in the folder, or in ScienceQA's places."""
    if isinstance(image, str):
        places = [image, f"{split}/{identity}/{image}", f"{identity}/{image}"]
        there = [place for place in places if len(place) <= LONGEST_PATH and images.holds(place)]
        image = there[0] if there else image
    return images.picture(image)
