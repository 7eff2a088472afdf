r"""Boxes and points: reading them in answers and rows, overlaps, matching, and the verifiers of them.

Boxes are rows of x1 y1 x2 y2 with continuous edges: a box from 0 to 10 is 10 wide. A box may be written
``[x1, y1, x2, y2]``, ``(x1, y1), (x2, y2)``, ``<box>...</box>`` or ``x1=..., y1=..., x2=..., y2=...``; alone,
in text, or under any key of JSON or of a Python dict, fenced or not, with ``label`` and ``confidence`` beside
it. A point is ``[x, y]``, ``(x, y)`` or ``x=..., y=...`` likewise. Every box that an answer states counts.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from jaxtyping import Bool, Float, Int

from mmrl.rewards.text import DASHES
from mmrl.rewards.verifier import (
    AnswerIn,
    Components,
    Share,
    Size,
    Verifier,
    answer_of,
    missing_option,
    rollout_info,
    wrong_answer,
)
from mmrl.sample import Sample

MAX_BOXES = 256  # an answer with more is none
LARGEST = 1e9  # pixels; a coordinate beyond it is none
MAX_QUOTED = 1000  # characters of a text in quotes; quotes further apart enclose nothing
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, in COCO
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of a class, by confidence; the rest is not looked at
REFERENCE_THRESHOLD = 0.5  # of IoU, in Visual-RFT and VLM-R1
POSITION, COMPLETENESS = 0.7, 0.3  # weights of both VLM-R1's and V-Triune's score
PROGRESSIVE = ((0.10, 0.85), (0.25, 0.95), (1.0, 0.99))  # until this progress, this threshold (V-Triune)
COUNT_DECAY = 0.6  # for each box too many or too few (V-Triune)


BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box")  # of a truth; answers may use any
POINT_KEYS = ("point_2d", "point")
_LABEL_KEYS = ("label", "class", "category", "name")
_CONFIDENCE_KEYS = ("confidence", "score", "conf")
_EDGES = (("x1", "xmin", "left"), ("y1", "ymin", "top"), ("x2", "xmax", "right"), ("y2", "ymax", "bottom"))
_NOTHING = re.compile(
    r"(?:```(?:json)?\s*)?(?:\[\s*\]|\{\s*\}|none|null|nothing|no (?:boxes|objects))\.?(?:\s*```)?",
    re.IGNORECASE,
)
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


# Units of an answer's coordinates: the truth's own, 0 to 1 over the image, 0 to 1000.
Coordinates = Literal["pixels", "unit", "thousand"]


class Where(TypedDict, total=False):
    """Options of where an answer stands, and of what its coordinates mean."""

    answer_in: AnswerIn
    coordinates: Coordinates
    image_size: Sequence[Any]  # width and height; goes with "unit" and "thousand", and with ``input_size``
    input_size: Sequence[Any]  # of the resized image that the model saw, in whose pixels answers are (VLM-R1)


class Token(NamedTuple):
    """One thing that was written.

    "record" and "end": braces; "value": ``key: text`` or ``key=text``; "word": a text alone; "call": the name
    before a parenthesis; "numbers": the content of brackets that hold nothing else.
    """

    kind: Literal["record", "end", "value", "word", "call", "numbers"]
    key: str = ""  # lower case; of "value" only
    text: str = ""
    numbers: tuple[float, ...] = ()


def tokenize(text: str) -> list[Token]:
    """Tokens of JSON, Python literals, calls and text between them, in time linear in the text.

    Nothing is evaluated, and no whole value has to parse: a missing bracket, a trailing comma or single
    quotes cost nothing. The whole text counts as one bracket, so that bare numbers are found. Of a text in
    quotes that is nothing but numbers, these are found too, behind the text.
    """
    tokens: list[Token] = []
    group: list[str] | None = []  # of the innermost open bracket, while it holds only numbers
    key: str | None = None
    for (kind, part), (_, following) in pairwise([*_parts(text), ("mark", "")]):
        if kind == "mark":
            if part in (":", "="):
                continue
            if part in ("{", "}"):
                tokens.append(Token("record" if part == "{" else "end"))
            elif part in (")", "]") and group:
                tokens.append(_numbers(group))
            group, key = [] if part in ("(", "[") else None, None
        elif key is None and group is not None and _ONE_NUMBER.fullmatch(part):
            group.append(part)
        elif kind != "number" and following in (":", "="):
            group, key = None, part.lower()
        elif key is not None:
            tokens += [Token("value", key, part), *_quoted_numbers(part)]
            group, key = None, None
        elif kind != "number":
            is_call = kind == "word" and following == "("
            tokens += [Token("call" if is_call else "word", text=part), *_quoted_numbers(part)]
            group = None
    return [*tokens, _numbers(group)] if group else tokens


def _quoted_numbers(part: str) -> list[Token]:
    return tokenize(part) if _ONLY_NUMBERS.fullmatch(part) else []


def _numbers(group: list[str]) -> Token:
    return Token("numbers", text=" ".join(group), numbers=tuple(map(float, group)))


def _parts(text: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(text.translate(DASHES)):
        kind, part = str(match.lastgroup), match[0]
        if kind == "tag":
            yield "mark", "]" if "/" in part or "_end" in part else "["
        elif kind != "aside":
            yield kind, _unquote(part) if kind == "text" else part


def _unquote(part: str) -> str:
    """The text between quotes, with its escapes undone if they are such."""
    if "\\" not in part:
        return part[1:-1]
    if part[0] == "'":
        return part[1:-1].replace("\\'", "'")
    try:
        return str(json.loads(part, strict=False))
    except ValueError:
        return part[1:-1]


class Boxes(NamedTuple):
    """Boxes of an answer or a truth."""

    corners: Float[np.ndarray, "n 4"]  # x1 y1 x2 y2
    labels: tuple[str | None, ...]  # lower case, one blank between words
    confidence: Float[np.ndarray, "n"]  # from 0 to 1; 1 where none is given


class _Described(NamedTuple):
    """A box, or an open brace with the first box in it; and the label and confidence stated for it."""

    corners: tuple[float, ...] = ()
    start: int = 0
    label: str | None = None
    confidence: float | None = None


def read_boxes(answer: str) -> Boxes | None:
    """The boxes that ``answer`` states; none if it says that there are none.

    None (the value) if it states neither, or more than `MAX_BOXES`.
    """
    if _NOTHING.fullmatch(answer.strip()):
        return Boxes(np.zeros((0, 4)), (), np.zeros(0))
    found: list[_Described] = []
    records = [_Described()]  # open ones
    corner: tuple[float, ...] | None = None  # the first of two
    edges: dict[int, float] = {}

    def add(*corners: float) -> None:
        if max(map(abs, corners)) <= LARGEST:
            found.append(_Described(corners))

    def close(record: _Described) -> None:  # its label and confidence go to its boxes that have none
        for at in range(record.start, len(found)):
            label = record.label if found[at].label is None else found[at].label
            confidence = record.confidence if found[at].confidence is None else found[at].confidence
            found[at] = found[at]._replace(label=label, confidence=confidence)

    for token in tokenize(answer):
        if token.kind in ("record", "end"):
            corner, edges = None, {}
            if token.kind == "record":
                records.append(_Described(start=len(found)))
            elif len(records) > 1:
                close(records.pop())
        elif token.kind == "value":
            number = _number(token.text)
            if token.key in _LABEL_KEYS:
                records[-1] = records[-1]._replace(label=_label(token.text))
            elif token.key in _CONFIDENCE_KEYS and number is not None:
                records[-1] = records[-1]._replace(confidence=min(max(number, 0.0), 1.0))
            elif number is not None:
                edges.update({side: number for side, names in enumerate(_EDGES) if token.key in names})
            if len(edges) == 4:
                add(*(edges[side] for side in range(4)))
                edges = {}
        elif token.kind == "numbers" and len(token.numbers) == 2:
            if corner is not None:
                add(*corner, *token.numbers)
            corner = None if corner is not None else token.numbers
        elif token.kind == "numbers" and len(token.numbers) == 4:
            add(*token.numbers)
            corner = None
    for record in reversed(records):
        close(record)
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
    for token in tokenize(answer):
        number = _number(token.text) if token.kind == "value" else None
        if token.kind == "numbers" and len(token.numbers) == 2:
            points.append((token.numbers[0], token.numbers[1]))
        elif number is not None and re.fullmatch(r"x[0-9]*", token.key):
            across = token.key[1:], number
        elif number is not None and across is not None and token.key == "y" + across[0]:
            points.append((across[1], number))
            across = None
    near = [point for point in points if max(abs(point[0]), abs(point[1])) <= LARGEST]
    return np.array(near if len(near) <= MAX_BOXES else [], float).reshape(-1, 2)


def read_answer(
    sample: Sample,
    response: str,
    *,
    answer_in: AnswerIn = "box",
    coordinates: Coordinates = "pixels",
    image_size: Sequence[Any] | None = None,
    input_size: Sequence[Any] | None = None,
) -> tuple[str, Float[np.ndarray, "2"]]:
    """The answer, and factors, across and down, that bring its coordinates into the units of the truth.

    Raises ValueError if an option is missing that goes with another, or is not width and height.
    """
    answer, full = answer_of(response, answer_in), {"unit": 1.0, "thousand": 1000.0}
    if coordinates == "pixels" and input_size is None:
        return answer, np.ones(2)
    if coordinates != "pixels" and input_size is not None:
        raise ValueError(
            f'sample {sample.id}: give facts["input_size"] or coordinates in {coordinates!r}, not both'
        )
    whole = full[coordinates] if input_size is None else _size(sample, "input_size", input_size)
    return answer, _size(sample, "image_size", image_size) / whole


def true_boxes(sample: Sample) -> Boxes:
    """The boxes of ``sample.answer``, in JSON: four numbers, an object with box and label, or a list of such.

    Raises ValueError if it is another thing, if a box has no area, or if only some boxes have a label.
    """
    entries, corners = _entries(sample, 4, BOX_KEYS)
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
    _, points = _entries(sample, 2, POINT_KEYS)
    return np.array(points, float) if points and all(are_numbers(point, 2) for point in points) else None


def _entries(sample: Sample, count: int, keys: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """Entries of a row's answer, and of each its numbers, which may stand under one of ``keys``."""
    entries = json_truth(sample)
    if not isinstance(entries, list) or are_numbers(entries, count):
        entries = [entries]
    return entries, [
        next((entry[key] for key in keys if key in entry), None) if isinstance(entry, Mapping) else entry
        for entry in entries
    ]


def json_truth(sample: Sample) -> Any:
    """``sample.answer`` read as JSON. Raises ValueError if it is none."""
    try:
        return json.loads(sample.answer)
    except (ValueError, RecursionError):
        raise wrong_answer(sample, "is no JSON; write the truth of this verifier as JSON") from None


def are_numbers(value: object, count: int) -> bool:
    """True if ``value`` is a list of ``count`` numbers that can be coordinates."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= LARGEST for x in value)
    )


def _size(sample: Sample, name: str, size: Sequence[Any] | None) -> Float[np.ndarray, "2"]:
    if size is None:
        raise missing_option(sample, name)
    if not are_numbers(size, 2) or min(size) <= 0:
        raise ValueError(f"sample {sample.id}: facts[{name!r}] is {size}, but should be [width, height]")
    return np.array(size, float)


def _label(label: object) -> str | None:
    return " ".join(label.casefold().split()) if isinstance(label, str) else None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    """The area of each box; 0 with x2 <= x1 or y2 <= y1."""
    return _area(boxes[:, :2], boxes[:, 2:])


def iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of all pairs, from 0 to 1; 0 with a box that has no area."""
    return _ratio(*_overlap(first, second))


def giou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """IoU less the share of the smallest box around both that neither covers, from -1 to 1.

    Rezatofighi et al. 2019, equation 1. A pair without any extent is -1.
    """
    both, union = _overlap(first, second)
    corners = [boxes.reshape(-1, 2, 2) for boxes in (first, second)]
    low = np.minimum(corners[0].min(axis=1)[:, None], corners[1].min(axis=1)[None])
    high = np.maximum(corners[0].max(axis=1)[:, None], corners[1].max(axis=1)[None])
    return _ratio(both, union) - 1.0 + _ratio(union, _area(low, high))


def contains(boxes: Float[np.ndarray, "n 4"], points: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, "n m"]:
    """True if each point lies in each box, edges included."""
    at = points[None]
    return np.asarray(((boxes[:, None, :2] <= at) & (at <= boxes[:, None, 2:])).all(axis=2))


def _overlap(
    first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m"]]:
    """The areas of intersection and union of all pairs."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = _area(low, high)
    return both, areas(first)[:, None] + areas(second)[None] - both


def _area(low: Float[np.ndarray, "*n 2"], high: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    return np.prod(np.maximum(high - low, 0.0), axis=-1)


def _ratio(part: Float[np.ndarray, "n m"], total: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """``part / total`` within 0 and 1, and 0 where both are 0."""
    return np.clip(np.divide(part, total, out=np.zeros_like(total), where=total > 0.0), 0.0, 1.0)


def load_scipy() -> None:
    """Imports scipy's optimizer, half a second, ahead of the first matching."""
    import scipy.optimize  # noqa: F401


def best_matching(gain: Float[np.ndarray, "n m"]) -> Int[np.ndarray, "k 2"]:
    """Pairs (row, column), each row and column at most once, with the greatest sum of gains (Kuhn 1955).

    Pairs without a positive gain are left out.
    """
    from scipy.optimize import linear_sum_assignment

    pairs = np.stack(linear_sum_assignment(gain, maximize=True), axis=1)
    return pairs[gain[pairs[:, 0], pairs[:, 1]] > 0.0]


def greedy_matching(score: Float[np.ndarray, "n m"], least: float) -> Int[np.ndarray, "k 2"]:
    """Pairs (row, column), each row and column at most once, best score first, down to ``least``.

    Of equal scores the lower row goes first, then the lower column. Scores of 0 never match.
    """
    rows, columns = np.nonzero((score >= least) & (score > 0.0))
    pairs: list[tuple[int, int]] = []
    free_rows, free_columns = set(rows.tolist()), set(columns.tolist())
    for at in np.argsort(-score[rows, columns], kind="stable"):
        row, column = int(rows[at]), int(columns[at])
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            pairs.append((row, column))
    return np.array(pairs, int).reshape(-1, 2)


def average_precision(
    overlap: Float[np.ndarray, "p t"],
    confidence: Float[np.ndarray, "p"],
    thresholds: Float[np.ndarray, "k"] = THRESHOLDS,
) -> Float[np.ndarray, "k"]:
    """COCO's average precision of one class of one image at each threshold of IoU, as in ``pycocotools``.

    ``overlap`` is the IoU of each predicted box with each true one, of which there is at least one; of
    predictions with equal confidence the first given comes first. The result is the mean, over 101 levels of
    recall, of the best precision at that recall or above.
    """
    order = np.argsort(-confidence, kind="stable")[:MAX_DETECTIONS]
    right = np.cumsum(_hits(overlap[order], thresholds), axis=1)
    precision = right / np.arange(1, len(order) + 1)
    best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = right / overlap.shape[1]
    padded = np.pad(best_after, ((0, 0), (0, 1)))  # a recall that is never reached has precision 0
    at = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    return np.array([row[places].mean() for row, places in zip(padded, at, strict=True)])


def _hits(overlap: Float[np.ndarray, "p t"], thresholds: Float[np.ndarray, "k"]) -> Bool[np.ndarray, "k p"]:
    """True if each prediction finds a true box, in the order given, at each threshold.

    It takes the true box that it overlaps most of those not found yet; of equals the last.
    """
    kinds, (predicted, true) = np.arange(len(thresholds)), overlap.shape
    free = np.ones((len(thresholds), true), bool)
    hits = np.zeros((len(thresholds), predicted), bool)
    for row in range(predicted):
        candidates = np.where(free, overlap[row], -1.0)
        best = true - 1 - np.argmax(candidates[:, ::-1], axis=1)
        hit = candidates[kinds, best] >= thresholds
        hits[:, row] = hit
        free[kinds[hit], best[hit]] = False
    return hits


@Verifier
def box(sample: Sample, response: str, *, threshold: Share = 0.5, **where: Unpack[Where]) -> Components:
    """The one box that an answer gives, against the one of ``sample.answer``.

    ``accuracy``: the IoU is at least ``threshold``. ``iou``: from 0 to 1. ``giou``: (GIoU + 1)
    / 2, from 0 to 1, as in VLA-R1's ``robot_bbox_traj_norm.py``. All are 0 if the answer gives no box,
    several, or one without area. ValueError if ``sample.answer`` is not one box, or a fact is wrong.
    """
    answer, scale = read_answer(sample, response, **where)
    truth = true_boxes(sample)
    if len(truth.corners) != 1:
        raise wrong_answer(sample, f"holds {len(truth.corners)} boxes; 'box' wants one, 'boxes' any number")
    found = read_boxes(answer)
    if found is None or len(found.corners) != 1 or areas(found.corners)[0] <= 0.0:
        return {"accuracy": 0.0, "iou": 0.0, "giou": 0.0}
    given = found.corners * np.tile(scale, 2)
    overlap = float(iou(given, truth.corners)[0, 0])
    return {
        "accuracy": float(overlap >= threshold),
        "iou": overlap,
        "giou": (float(giou(given, truth.corners)[0, 0]) + 1.0) / 2.0,
    }


@Verifier
def point(
    sample: Sample,
    response: str,
    *,
    radius: Size | None = None,
    several: bool = False,
    **where: Unpack[Where],
) -> Components:
    """``accuracy``: the one point that an answer gives lies on what ``sample.answer`` marks.

    The truth is one or more boxes, or points with ``radius`` pixels around them. With ``several`` the answer
    is to point once at each, and ``accuracy`` is the F1 of a best matching.
    ValueError if the answer of the row marks nothing, or a fact is wrong.
    """
    answer, scale = read_answer(sample, response, **where)
    points = read_points(answer) * scale
    hits = point_hits(sample, points, radius)
    if not several:
        return {"accuracy": float(len(points) == 1 and bool(hits.any()))}
    return {"accuracy": 2.0 * len(best_matching(hits.astype(float))) / (len(points) + len(hits))}


def point_hits(
    sample: Sample, points: Float[np.ndarray, "m 2"], radius: float | None
) -> Bool[np.ndarray, "n m"]:
    """True if each point lies on each of the things that the truth marks."""
    centers = true_points(sample)
    if centers is not None:
        if radius is None:
            raise missing_option(sample, "radius")
        return np.hypot(*np.moveaxis(points[None] - centers[:, None], -1, 0)) <= radius
    marked = true_boxes(sample).corners
    if not len(marked):
        raise wrong_answer(sample, "marks nothing to point at; give a box, or a point")
    return contains(marked, points)


class Detections(NamedTuple):
    """Predicted boxes against true ones, at least one of each."""

    overlap: Float[np.ndarray, "p t"]  # IoU of each predicted box with each true one
    same: Bool[np.ndarray, "p t"]  # whether their labels agree; true where the truth has none
    confidence: Float[np.ndarray, "p"]
    classes: Int[np.ndarray, "t"]  # number of the label of each true box
    progress: float = 1.0  # of the run

    @property
    def surplus(self) -> float:
        """min(1, true / predicted number)."""
        return min(1.0, self.overlap.shape[1] / self.overlap.shape[0])


@Verifier
def boxes(sample: Sample, response: str, *, threshold: Share = 0.5, **where: Unpack[Where]) -> Components:
    """The boxes that an answer gives, against those of ``sample.answer``, and their labels if it has any.

    ``accuracy``: F1, ``precision`` and ``recall`` of a best matching at IoU ``threshold``; and the components
    of `REWARDS`. All are from 0 to 1: all are 1 if truth and answer both say that there is nothing, and 0 if
    only one does, or if no box can be read. ValueError if ``sample.answer`` does not hold boxes.
    """
    answer, scale = read_answer(sample, response, **where)
    truth = true_boxes(sample)
    progress = rollout_info(sample).progress if "rollout" in sample.facts else 1.0
    given = read_boxes(answer)
    if given is None or not len(given.corners) or not len(truth.corners):
        nothing = given is not None and len(given.corners) == len(truth.corners)
        return dict.fromkeys(("accuracy", "precision", "recall", *REWARDS), float(nothing))
    found = detections(given._replace(corners=given.corners * np.tile(scale, 2)), truth, progress)
    right = len(best_matching((found.same & (found.overlap >= threshold)).astype(float)))
    return {
        "accuracy": 2.0 * right / sum(found.overlap.shape),
        "precision": right / found.overlap.shape[0],
        "recall": right / found.overlap.shape[1],
        **{name: float(reward(found)) for name, reward in REWARDS.items()},
    }


def detections(given: Boxes, truth: Boxes, progress: float = 1.0) -> Detections:
    """``given`` against ``truth``."""
    names = list(dict.fromkeys(truth.labels))
    return Detections(
        overlap=iou(given.corners, truth.corners),
        same=np.array([[wanted in (None, label) for wanted in truth.labels] for label in given.labels]),
        confidence=given.confidence,
        classes=np.array([names.index(label) for label in truth.labels]),
        progress=progress,
    )


def mean_average_precision(found: Detections, thresholds: Float[np.ndarray, "k"] = THRESHOLDS) -> float:
    """COCO's AP, averaged over ``thresholds`` and the labels of the truth; other labels cost nothing."""
    precisions = []
    for name in np.unique(found.classes):
        of = found.classes == name
        given = found.same[:, of.argmax()]
        precisions.append(average_precision(found.overlap[given][:, of], found.confidence[given], thresholds))
    return float(np.mean(precisions))


def detection_score(found: Detections) -> float:
    """``detection_score`` of VLM-R1's ``grpo_jsonl.py``: 0.7 position + 0.3 completeness at IoU 0.5.

    Pairs are matched best IoU first, whatever their labels; the IoU of a pair counts if the labels agree.
    """
    return _position_and_completeness(found, greedy_matching(found.overlap, REFERENCE_THRESHOLD))


def progressive_iou(found: Detections) -> float:
    """V-Triune's dynamic IoU reward (``calculate_iou_score`` in ``verify.py``, 0.3 of it completeness).

    The threshold rises with the progress of the run (`PROGRESSIVE`); only boxes of the same label match. The
    result shrinks by `COUNT_DECAY` for each box too many or too few.
    """
    threshold = next((value for until, value in PROGRESSIVE if found.progress <= until), PROGRESSIVE[-1][1])
    pairs = greedy_matching(np.where(found.same, found.overlap, 0.0), threshold)
    predicted, true = found.overlap.shape
    return _position_and_completeness(found, pairs) * COUNT_DECAY ** abs(predicted - true)


def matched_iou(found: Detections) -> float:
    """Visual-RFT's R_iou: the summed IoU of matched boxes over the larger of the two numbers of boxes."""
    predicted, true = _match_by_confidence(found).T
    return float(found.overlap[predicted, true].sum()) / max(found.overlap.shape)


def confidence(found: Detections) -> float:
    """Visual-RFT's R_conf: the mean of the confidences of matched boxes and 1 - those of the others.

    Times min(1, true / predicted number), and 0 if nothing matches: as published, any number of wrong boxes
    with confidence 0 would earn all of it.
    """
    pairs = _match_by_confidence(found)
    calibrated = 1.0 - found.confidence
    calibrated[pairs[:, 0]] = found.confidence[pairs[:, 0]]
    return float(calibrated.mean()) * found.surplus if len(pairs) else 0.0


REWARDS: Mapping[str, Callable[[Detections], float]] = MappingProxyType(
    {
        "count": lambda found: min(found.overlap.shape) / max(found.overlap.shape),
        "map": mean_average_precision,
        "map50": lambda found: mean_average_precision(found, THRESHOLDS[:1]),
        # ``odLength_reward`` of VLM-R1's ``grpo_jsonl.py``
        "map_times_count": lambda found: mean_average_precision(found) * found.surplus,
        "detection": detection_score,
        "matched_iou": matched_iou,
        "confidence": confidence,
        "progressive_iou": progressive_iou,
    }
)


def _match_by_confidence(found: Detections) -> Int[np.ndarray, "k 2"]:
    """Pairs (predicted, true): the surest prediction first, each takes what it overlaps most, from 0.5 on."""
    overlap = np.where(found.same, found.overlap, 0.0)
    pairs: list[tuple[int, int]] = []
    for row in np.argsort(-found.confidence, kind="stable"):
        column = int(overlap[row].argmax())
        if overlap[row, column] >= REFERENCE_THRESHOLD:
            pairs.append((int(row), column))
            overlap[:, column] = 0.0
    return np.array(pairs, int).reshape(-1, 2)


def _position_and_completeness(found: Detections, pairs: Int[np.ndarray, "k 2"]) -> float:
    """0.7 position + 0.3 completeness.

    The IoU of pairs with the same label, for each true box; and 1 less the mean of the shares of true and of
    predicted boxes that are in no pair.
    """
    overlap = np.where(found.same, found.overlap, 0.0)[pairs[:, 0], pairs[:, 1]].sum()
    predicted, true = found.overlap.shape
    completeness = (len(pairs) / true + len(pairs) / predicted) / 2.0
    return float(POSITION * overlap / true + COMPLETENESS * completeness)
