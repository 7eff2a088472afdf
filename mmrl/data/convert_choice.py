"""Multiple choice: a question, options and the right one, as ScienceQA, MMMU and MMBench have them."""

from __future__ import annotations

import ast
import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.convert_entries import Entry, Images, Options, first_of, read_entries
from mmrl.data.files import parse_json
from mmrl.data.rows import LONGEST_PATH
from mmrl.models.prompts import IMAGE

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ANSWERS = ("letter", "index", "text")
LONGEST_LIST = 20_000  # characters of options written as one text
_PLACE = re.compile(r"<image ?(\d+)>")  # MMMU's mark of the image in "image_1", "image_2", ...
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_LABEL = re.compile(r"(?:^|[;,\n])\s*\(?([A-Z])[.:)]\s*")  # before an option of several in one text
MOST_IMAGES = 20  # columns "image_1", "image_2", ... that are looked for


def entries(spec: Path) -> Iterator[Entry]:
    """The questions of a file."""
    return read_entries(spec)


def rows(entry: Mapping[str, Any], images: Images, options: Options) -> list[dict[str, Any]]:
    """The row of a question; none of one without options, which is an open question.

    Options stand in a list ``options`` or ``choices``, perhaps written as text (or as "A. red; B. blue"), or
    in columns A, B, ...; the question in ``question`` (after its ``hint`` or ``context``), the right one in
    ``answer``.

    Raises ValueError for a question, an option, an answer or an image that cannot be read.
    """
    question = first_of(entry, ("question", "problem", "text"))
    if not isinstance(question, str):
        raise ValueError("no text in 'question'")
    listed = _options(entry)
    if not listed:
        return []
    if len(listed) == 1 or len(listed) > len(LETTERS):
        raise ValueError(f"{len(listed)} options: a choice has 2 to {len(LETTERS)}")
    hint = first_of(entry, ("hint", "context"))
    told = f"{hint.strip()}\n{question.strip()}" if isinstance(hint, str) else question.strip()
    lines = [told, *(f"{letter}. {option}" for letter, option in zip(LETTERS, listed, strict=False))]
    problem, pictures = placed("\n".join(lines), entry, images)
    return [
        {
            "problem": problem,
            "answer": LETTERS[_right(entry.get("answer"), listed, options.answer)],
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
    if isinstance(listed, Mapping):
        listed = list(listed.values())
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


def _right(answer: Any, options: Sequence[str], form: str) -> int:
    """Which option is right. Raises ValueError if that is none, or two readings of the answer differ."""
    readings = {
        "letter": _by_letter(answer),
        "index": _by_index(answer),
        "text": _by_text(answer, options),
    }
    chosen = [form] if form else ["index"] if isinstance(answer, int) else list(ANSWERS)
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


def _by_index(answer: Any) -> int | None:
    if isinstance(answer, str) and re.fullmatch(r"\d{1,2}", answer.strip(), re.ASCII):
        return int(answer)
    return answer if isinstance(answer, int) and not isinstance(answer, bool) else None


def _by_text(answer: Any, options: Sequence[str]) -> int | None:
    """The one option with this text."""
    same = [k for k, option in enumerate(options) if option == str(answer).strip()]
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
    """Encoded bytes, bytes in base 64, or the file that is named: in the folder, or in ScienceQA's places."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and len(image) > LONGEST_PATH:
        try:
            return base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"the image is {len(image)} characters, which are not base 64: {error}"
            ) from error
    places = [image, f"{split}/{identity}/{image}", f"{identity}/{image}"]
    there = [place for place in places if isinstance(image, str) and (images.folder / place).is_file()]
    return images.path(there[0] if there else image)
