"""Boxes and points in answers, and in the truths of rows.

A box may be written ``[x1, y1, x2, y2]``, ``(x1, y1), (x2, y2)``, ``<box>...</box>`` or ``x1=..., y1=...,
x2=..., y2=...``; alone, in text, or under any key of JSON or of a Python dict, fenced or not, with ``label``
and ``confidence`` beside it. A point is ``[x, y]``, ``(x, y)`` or ``x=..., y=...`` likewise. Every box that
an answer states counts, wherever it stands.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mmrl.rewards.answers import wrong_answer
from mmrl.rewards.boxes import areas
from mmrl.rewards.facts import list_fact, text_fact
from mmrl.rewards.notation import Item, items
from mmrl.sample import Sample

MAX_BOXES = 256  # an answer with more is none
LARGEST = 1e9  # pixels; a coordinate beyond it is none

BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")  # of a truth; answers may use any
POINT_KEYS = ("point_2d", "point")
_LABEL_KEYS = ("label", "class", "category", "name")
_CONFIDENCE_KEYS = ("confidence", "score", "conf")
_EDGES = (("x1", "xmin", "left"), ("y1", "ymin", "top"), ("x2", "xmax", "right"), ("y2", "ymax", "bottom"))
_NOTHING = re.compile(
    r"(?:```(?:json)?\s*)?(?:\[\s*\]|\{\s*\}|none|null|nothing|no (?:boxes|objects))\.?(?:\s*```)?",
    re.IGNORECASE,
)


class Boxes(NamedTuple):
    """Boxes of an answer or a truth."""

    corners: Float[np.ndarray, "n 4"]  # x1 y1 x2 y2
    labels: tuple[str | None, ...]  # lower case, one blank between words
    confidence: Float[np.ndarray, "n"]  # from 0 to 1; 1 where none is given


def read_boxes(answer: str) -> Boxes | None:
    """The boxes that ``answer`` states; none if it says that there are none.

    None (the value) if it states neither, or more than `MAX_BOXES`.
    """
    if _NOTHING.fullmatch(answer.strip()):
        return Boxes(np.zeros((0, 4)), (), np.zeros(0))
    found: list[_Found] = []
    open_records = [_Record(0)]
    corner: tuple[float, ...] | None = None  # the first of two
    edges: dict[int, float] = {}
    for item in items(answer):
        if item.kind in ("record", "end"):
            corner, edges = None, {}
            if item.kind == "record":
                open_records.append(_Record(len(found)))
            elif len(open_records) > 1:
                _describe(found, open_records.pop())
        elif item.kind == "value":
            _note(item, open_records, edges)
            if len(edges) == 4:
                _add(found, [edges[side] for side in range(4)])
                edges = {}
        elif item.kind == "numbers" and len(item.numbers) == 2:
            if corner is not None:
                _add(found, [*corner, *item.numbers])
            corner = None if corner is not None else item.numbers
        elif item.kind == "numbers" and len(item.numbers) == 4:
            _add(found, item.numbers)
            corner = None
    for record in reversed(open_records):
        _describe(found, record)
    if not 0 < len(found) <= MAX_BOXES:
        return None
    return Boxes(
        np.array([box.corners for box in found]),
        tuple(box.label for box in found),
        np.array([1.0 if box.confidence is None else box.confidence for box in found]),
    )


def read_points(answer: str) -> Float[np.ndarray, "n 2"]:
    """The points that ``answer`` states; none if there are more than `MAX_BOXES`."""
    points: list[tuple[float, float]] = []
    across: tuple[str, float] | None = None
    for item in items(answer):
        number = _number(item.text) if item.kind == "value" else None
        if item.kind == "numbers" and len(item.numbers) == 2:
            points.append((item.numbers[0], item.numbers[1]))
        elif number is not None and re.fullmatch(r"x[0-9]*", item.key):
            across = item.key[1:], number
        elif number is not None and across is not None and item.key == "y" + across[0]:
            points.append((across[1], number))
            across = None
    near = [point for point in points if max(abs(point[0]), abs(point[1])) <= LARGEST]
    return np.array(near if len(near) <= MAX_BOXES else [], float).reshape(-1, 2)


def scale(sample: Sample) -> Float[np.ndarray, "2"]:
    """By what a coordinate of an answer, across and down, is multiplied to be in the units of the truth.

    ``facts["coordinates"]``: "pixels" (the default; the truth's own units), "unit" (0 to 1 over the image) or
    "thousand" (0 to 1000). ``facts["image_size"]``, width and height, goes with the latter two. With
    ``facts["input_size"]`` answers are in pixels of the resized image that the model saw, as in VLM-R1's
    ``qwen_module.py`` (``resize_bbox``). Raises ValueError if one is missing, or both are given.
    """
    units = text_fact(sample, "coordinates", "pixels", choices=("pixels", "unit", "thousand"))
    if units == "pixels" and "input_size" not in sample.facts:
        return np.ones(2)
    if units != "pixels" and "input_size" in sample.facts:
        raise ValueError(
            f'sample {sample.id}: give facts["input_size"] or coordinates in {units!r}, not both'
        )
    whole = {"unit": 1.0, "thousand": 1000.0}
    return _size(sample, "image_size") / (_size(sample, "input_size") if units == "pixels" else whole[units])


def scaled(boxes: Boxes, by: Float[np.ndarray, "2"]) -> Boxes:
    """``boxes`` with their coordinates multiplied by ``by``."""
    return boxes._replace(corners=boxes.corners * np.tile(by, 2))


def true_boxes(sample: Sample) -> Boxes:
    """The boxes of ``sample.answer``, in JSON: four numbers, an object with box and label, or a list of such.

    Raises ValueError if it is another thing, if a box has no area, or if only some boxes have a label.
    """
    entries = json_truth(sample)
    if not isinstance(entries, list) or are_numbers(entries, 4):
        entries = [entries]
    corners = [_first(entry, BOX_KEYS) for entry in entries]
    if not all(are_numbers(box, 4) for box in corners):
        raise wrong_answer(
            sample, 'should be boxes: [x1, y1, x2, y2], {"bbox_2d": [...], "label": ...}, or a list of these'
        )
    boxes = np.array(corners, float).reshape(-1, 4)
    if (areas(boxes) <= 0.0).any():
        raise wrong_answer(sample, "has a box without area, which nothing matches; give x1 < x2 and y1 < y2")
    labels = tuple(_label(entry.get("label")) if isinstance(entry, Mapping) else None for entry in entries)
    if None in labels and len(set(labels)) > 1:
        raise wrong_answer(sample, "labels some of its boxes; label all, or none")
    return Boxes(boxes, labels, np.ones(len(boxes)))


def true_points(sample: Sample) -> Float[np.ndarray, "n 2"] | None:
    """The points of ``sample.answer``, in JSON: ``[x, y]``, an object with one, or a list; None if boxes."""
    entries = json_truth(sample)
    if not isinstance(entries, list) or are_numbers(entries, 2):
        entries = [entries]
    points = [_first(entry, POINT_KEYS) for entry in entries]
    if not points or not all(are_numbers(point, 2) for point in points):
        return None
    return np.array(points, float)


def json_truth(sample: Sample) -> Any:
    """``sample.answer`` read as JSON. Raises ValueError if it is none."""
    try:
        return json.loads(sample.answer)
    except (ValueError, RecursionError):
        raise wrong_answer(sample, "is no JSON; write the truth of this verifier as JSON") from None


def are_numbers(value: object, count: int) -> bool:
    """Whether ``value`` is a list of ``count`` numbers that can be coordinates."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(
            isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= LARGEST
            for number in value
        )
    )


class _Found(NamedTuple):
    corners: tuple[float, ...]
    label: str | None = None
    confidence: float | None = None


class _Record(NamedTuple):
    """An open brace: the first box within it, and what is said of all of them."""

    start: int
    label: str | None = None
    confidence: float | None = None


def _note(item: Item, records: list[_Record], edges: dict[int, float]) -> None:
    """Takes down a label or confidence for the innermost record, or an edge of a box."""
    number = _number(item.text)
    if item.key in _LABEL_KEYS:
        records[-1] = records[-1]._replace(label=_label(item.text))
    elif item.key in _CONFIDENCE_KEYS and number is not None:
        records[-1] = records[-1]._replace(confidence=min(max(number, 0.0), 1.0))
    elif number is not None:
        edges.update({side: number for side, names in enumerate(_EDGES) if item.key in names})


def _add(found: list[_Found], corners: Any) -> None:
    if max(abs(number) for number in corners) <= LARGEST:
        found.append(_Found(tuple(corners)))


def _describe(found: list[_Found], record: _Record) -> None:
    """Gives the record's label and confidence to its boxes that have none of their own."""
    if record.label is None and record.confidence is None:
        return
    for at in range(record.start, len(found)):
        box = found[at]
        found[at] = box._replace(
            label=record.label if box.label is None else box.label,
            confidence=record.confidence if box.confidence is None else box.confidence,
        )


def _label(label: object) -> str | None:
    return " ".join(label.casefold().split()) if isinstance(label, str) else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _first(entry: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return next((entry[key] for key in keys if key in entry), None)


def _size(sample: Sample, name: str) -> Float[np.ndarray, "2"]:
    size = list_fact(sample, name)
    if not are_numbers(size, 2) or min(size) <= 0:
        raise ValueError(f"sample {sample.id}: facts[{name!r}] is {size}, but should be [width, height]")
    return np.array(size, float)
