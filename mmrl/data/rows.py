"""One raw row, as files hold it, to a checked `Sample`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from mmrl.data.files import parse_json
from mmrl.sample import Sample

REQUIRED = ("problem", "answer")
OPTIONAL = ("images", "verifier", "solution", "turns", "facts", "difficulty")
PROMPT = ("problem", "images")  # what a row without a truth has
LONGEST_PATH = 4096  # characters, what file systems take
MOST_IMAGES = 4096  # of a row
LARGEST_IMAGE = 256 << 20  # bytes of an image within a row
LONGEST_TEXT = 500_000  # characters; of far longer ones tokenizers run for minutes or die


def sample_of(
    raw: Mapping[str, Any],
    columns: Mapping[str, str],
    root: Path,
    name: str,
    source: str,
    required: Sequence[str] = REQUIRED,
) -> Sample:
    """The sample of a row.

    Args: the row under the file's own names; those names by the schema's; where relative image paths start;
    the row's name and its source's; what it must have. An answer that need not be there is "".

    Raises ValueError naming the row and what is wrong with it.
    """
    value: dict[str, Any] = {key: raw.get(column) for key, column in columns.items()}
    for key in required:
        if value.get(key) is None:
            raise ValueError(f"{name}: column {columns.get(key, key)!r} is absent or null")
    value["answer"] = _answer(value.get("answer", ""), name)
    for key in ("problem", "answer", "verifier", "solution"):
        if not isinstance(value.get(key), str | None):
            raise ValueError(f"{name}: {key} is a {type(value[key]).__name__}, not text")
        _check_text(value.get(key) or "", key, name)
    for key in required:
        if not value[key].strip():
            raise ValueError(f"{name}: {key} is empty")
    turns = value.get("turns") or []
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"{name}: turns is not a list of text")
    for turn in turns:
        _check_text(turn, "turns", name)
    verifier = value.get("verifier")
    return Sample(
        id=name,
        problem=value["problem"],
        answer=value["answer"],
        images=images_of(value.get("images"), root, name),
        **({"verifier": verifier} if verifier else {}),
        solution=value.get("solution"),
        turns=tuple(turns),
        facts=_facts(value.get("facts"), name),
        source=source,
        difficulty=_number(value.get("difficulty")),
    )


def _number(value: Any) -> float | None:
    """A finite number, perhaps as text; anything else counts as absent, as data sets have words there too."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _answer(value: Any, name: str) -> Any:
    """A number or a date as text; anything else as it is."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{name}: the answer is {value}, not a number to compare with")
        return f"{value:f}"
    if type(value) is date:
        return value.isoformat()
    if isinstance(value, bool):
        raise ValueError(f"{name}: answer is a bool, not text: write the word that responses are to give")
    if not isinstance(value, int | float):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: the answer is {value}, not a number to compare with")
    try:
        return str(value)
    except ValueError as error:  # Python writes no whole number of over 4300 digits
        raise ValueError(f"{name}: the answer is a number too long to write") from error


def _facts(value: Any, name: str) -> dict[str, Any]:
    facts = value or {}
    try:
        facts = parse_json(facts) if isinstance(facts, str) else facts
    except ValueError as error:
        raise ValueError(f"{name}: facts is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{name}: facts is a {type(facts).__name__}, not an object")
    try:
        text = json.dumps(facts, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: facts holds what JSON has no word for: {error}") from error
    _check_text(text, "facts", name)
    return facts


def _check_text(text: str, key: str, name: str) -> None:
    """Half of a surrogate pair is no text: neither a tokenizer nor a file takes it."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{name}: {key} has {len(text)} characters, over {LONGEST_TEXT}")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {key} is not valid Unicode at character {error.start}") from error


def images_of(value: Any, root: Path, name: str) -> tuple[bytes | str, ...]:
    """Images of a row as encoded bytes or absolute paths; one may stand without a list. Raises ValueError."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    if len(items) > MOST_IMAGES:
        raise ValueError(f"{name}: {len(items)} images, over {MOST_IMAGES}")
    images: list[bytes | str] = []
    for k, item in enumerate(items):
        if isinstance(item, dict):
            item = item.get("bytes") or item.get("path")
        if isinstance(item, str) and item:
            if len(item) > LONGEST_PATH:
                raise ValueError(f"{name}, image {k}: a path of {len(item)} characters is too long")
            _check_text(item, f"the path of image {k}", name)
            images.append(str(root / item))
        elif isinstance(item, bytes) and item:
            if len(item) > LARGEST_IMAGE:
                raise ValueError(f"{name}, image {k}: {len(item)} bytes, over {LARGEST_IMAGE}")
            images.append(item)
        else:
            raise ValueError(f"{name}, image {k}: neither bytes nor a path")
    return tuple(images)
