"""Verifiers of one place: a box, a point, an interval of time, an action on a screen."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mmrl.rewards.answers import answer_of, flag_fact, number_fact, wrong_answer
from mmrl.rewards.boxes import (
    BOX_KEYS,
    LEAST_THRESHOLD,
    Token,
    answer_scale,
    are_numbers,
    areas,
    best_matching,
    contains,
    giou,
    iou,
    json_truth,
    read_boxes,
    read_points,
    tokenize,
    true_boxes,
    true_points,
)
from mmrl.rewards.text import DASHES
from mmrl.sample import Sample

MAX_CANDIDATES = 32  # a longer list is malformed
COLLINEAR = 1e-9  # sine of the angle up to which three points are on a line

_CLOCK = r"(?:[0-9]{1,3}:)?[0-9]{1,3}:[0-5][0-9](?:\.[0-9]{1,9})?"
_SECONDS = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_TIME = re.compile(rf"(?<![\w.:])(?<!\A-)(?<![\[(]-)(?:{_CLOCK}|{_SECONDS}(?![0-9.]*:))")

ARGUMENTS: Mapping[str, str] = {  # of each action, the key of its argument in a row
    **dict.fromkeys(("click", "double_click", "right_click", "long_press"), "box"),
    **dict.fromkeys(("type", "open_app"), "text"),
    **dict.fromkeys(("scroll", "swipe"), "direction"),
    "press": "key",
    **dict.fromkeys(("wait", "back", "home", "finished"), ""),
}
_OTHER_NAMES = {
    "click": "tap left_click left_single",
    "double_click": "doubleclick left_double double_tap",
    "right_click": "rightclick right_single",
    "long_press": "longpress long_click long_tap",
    "type": "input input_text type_text write typewrite enter_text",
    "open_app": "open launch launch_app open_application",
    "press": "hotkey press_key key keypress keyboard",
    "back": "press_back navigate_back go_back",
    "home": "press_home navigate_home",
    "finished": "finish done terminate complete completed",
}
_NAMES = {other: name for name, others in _OTHER_NAMES.items() for other in others.split()} | {
    name: name for name in ARGUMENTS
}
_ACTION_KEYS = ("action", "action_type")
_CALL_KEYS = ("name", "type", "function")  # hold an action only where nothing else does
_TEXT_KEYS = ("text", "content", "value", "input", "app", "app_name")
_DIRECTIONS = ("up", "down", "left", "right")
_KEY_NAMES = {
    **{"control": "ctrl", "return": "enter", "escape": "esc", "delete": "del"},
    **{"command": "cmd", "spacebar": "space"},
}


def box(sample: Sample, response: str) -> dict[str, float]:
    """The one box that an answer gives, against the one of ``sample.answer``.

    ``accuracy``: the IoU is at least ``facts["threshold"]`` (0.5). ``iou``: from 0 to 1. ``giou``: (GIoU + 1)
    / 2, from 0 to 1, as in VLA-R1's ``robot_bbox_traj_norm.py``. All are 0 if the answer gives no box,
    several, or one without area. ValueError if ``sample.answer`` is not one box, or a fact is wrong.
    """
    truth, scale = true_boxes(sample), answer_scale(sample)
    threshold = number_fact(sample, "threshold", 0.5, least=LEAST_THRESHOLD, most=1.0)
    if len(truth.corners) != 1:
        raise wrong_answer(sample, f"holds {len(truth.corners)} boxes; 'box' wants one, 'boxes' any number")
    found = read_boxes(answer_of(sample, response) or "")
    if found is None or len(found.corners) != 1 or areas(found.corners)[0] <= 0.0:
        return {"accuracy": 0.0, "iou": 0.0, "giou": 0.0}
    given = found.corners * np.tile(scale, 2)
    overlap = float(iou(given, truth.corners)[0, 0])
    return {
        "accuracy": float(overlap >= threshold),
        "iou": overlap,
        "giou": (float(giou(given, truth.corners)[0, 0]) + 1.0) / 2.0,
    }


def point(sample: Sample, response: str) -> dict[str, float]:
    """``accuracy``: the one point that an answer gives lies on what ``sample.answer`` marks.

    The truth is one or more boxes, or points with ``facts["radius"]`` pixels around them. With
    ``facts["several"]`` the answer is to point once at each, and ``accuracy`` is the F1 of a best matching.
    ValueError if the answer of the row marks nothing, or a fact is wrong.
    """
    points = read_points(answer_of(sample, response) or "") * answer_scale(sample)
    hits = _hits(sample, points)
    if not flag_fact(sample, "several", False):
        return {"accuracy": float(len(points) == 1 and bool(hits.any()))}
    return {"accuracy": 2.0 * len(best_matching(hits.astype(float))) / (len(points) + len(hits))}


def _hits(sample: Sample, points: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, "n m"]:
    """True if each point lies on each of the things that the truth marks."""
    centers = true_points(sample)
    if centers is not None:
        radius = number_fact(sample, "radius", least=0.0)
        return np.hypot(*np.moveaxis(points[None] - centers[:, None], -1, 0)) <= radius
    marked = true_boxes(sample).corners
    if not len(marked):
        raise wrong_answer(sample, "marks nothing to point at; give a box, or a point")
    return contains(marked, points)


def interval(sample: Sample, response: str) -> dict[str, float]:
    """The interval that an answer gives, against the one of ``sample.answer``.

    Both are two times, ``[12.5, 20]`` or ``1:05 - 1:20``, in seconds, minutes:seconds or
    hours:minutes:seconds, with any words between. ``temporal_iou`` is the length that both share over the
    length that they cover, and ``accuracy`` is 1 if it is at least ``facts["threshold"]`` (0.5). Both are 0
    if the answer holds more or fewer than two times, or ends before it starts.
    """
    threshold = number_fact(sample, "threshold", 0.5, least=LEAST_THRESHOLD, most=1.0)
    truth, given = read_interval(sample.answer), read_interval(answer_of(sample, response) or "")
    if truth is None:
        raise wrong_answer(
            sample, "should be two times, the first before the second: [12.5, 20] or 1:05 - 1:20"
        )
    overlap = 0.0 if given is None else interval_iou(given, truth)
    return {"accuracy": float(overlap >= threshold), "temporal_iou": overlap}


def interval_iou(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Intersection over union of two intervals (start, end), each with its start before its end."""
    both = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return both / (first[1] - first[0] + second[1] - second[0] - both)


def read_interval(text: str) -> tuple[float, float] | None:
    """The two times of ``text`` in seconds, if it holds just two and the first is before the second."""
    times = []
    for match in _TIME.finditer(text.translate(DASHES)):
        seconds = 0.0
        for part in match[0].split(":"):
            seconds = 60.0 * seconds + float(part)
        times.append(seconds)
    return (times[0], times[1]) if len(times) == 2 and times[0] < times[1] else None


class Action(NamedTuple):
    """An action as it was written."""

    name: str  # a key of `ARGUMENTS`, or "" if it is none of them
    tokens: tuple[Token, ...]  # that may be its argument


def gui(sample: Sample, response: str) -> dict[str, float]:
    """The one action that an answer gives, against the one of ``sample.answer``.

    The answer is JSON or a call: ``click(10, 20)``, ``type(text="...")``, ``scroll(direction="down")``. The
    truth is JSON, ``{"action": "click", "box": [...]}``, or with "text", "direction" or "key": `ARGUMENTS`.
    ``action_type``: the right kind of action (UI-R1's first term). ``argument``: the one point given lies in
    a box of the truth; the text is the same but for case and blanks, or by F1 of words at least
    ``facts["text_f1"]`` (1); the same direction; the same keys in any order. It is judged apart from the
    kind, but where none is wanted it is right if the kind is (UI-R1's second term). ``accuracy``: both. All
    are 0 for no action, or several. ValueError if ``sample.answer`` is no such action, or a fact is wrong.
    """
    name, wanted = _true_action(sample)
    least, scale = number_fact(sample, "text_f1", 1.0, least=0.01, most=1.0), answer_scale(sample)
    answer = answer_of(sample, response) or ""
    given = read_action(answer)
    if given is None:
        return {"accuracy": 0.0, "action_type": 0.0, "argument": 0.0}
    kind, right = ARGUMENTS[name], given.name == name
    argument = right
    if kind == "box":
        points = read_points(answer) * scale
        argument = len(points) == 1 and bool(contains(wanted, points).any())
    elif kind == "text":
        argument = _same_text(_argument(given, _TEXT_KEYS), wanted, least)
    elif kind == "direction":
        words = _argument(given, ("direction",)).casefold().split()
        argument = set(words) & set(_DIRECTIONS) == {wanted}
    elif kind == "key":
        argument = _key_names(_argument(given, ("key", "keys"))) == _key_names(wanted)
    return {"accuracy": float(right and argument), "action_type": float(right), "argument": float(argument)}


def gui_candidates(sample: Sample, response: str) -> dict[str, float]:
    """A ranked list of points to click at, against the target that ``sample.answer`` marks (see `point`).

    ``accuracy``: the first point hits. ``exploration``: InfiGUI-G1's adaptive exploration reward, from -1 to
    1: 1 / sqrt(N k) if the first of N points to hit has rank k, -1/N if none does, -1 if there are no points,
    more than `MAX_CANDIDATES`, or three on one line. ValueError if the row marks nothing, or a fact is wrong.
    """
    points = read_points(answer_of(sample, response) or "")
    hits = np.asarray(_hits(sample, points * answer_scale(sample)).any(axis=0))
    count = len(points)
    if not 0 < count <= MAX_CANDIDATES:
        return {"accuracy": 0.0, "exploration": -1.0}
    if three_on_a_line(points):
        exploration = -1.0
    elif hits.any():
        exploration = 1.0 / math.sqrt(count * (int(hits.argmax()) + 1.0))
    else:
        exploration = -1.0 / count
    return {"accuracy": float(hits[0]), "exploration": exploration}


def three_on_a_line(points: Float[np.ndarray, "n 2"]) -> bool:
    """True if any three points lie on one line; two in the same place do with every third."""
    away = points[None] - points[:, None]
    length = np.hypot(away[..., 0], away[..., 1])
    across = away[:, :, None, 0] * away[:, None, :, 1] - away[:, :, None, 1] * away[:, None, :, 0]
    flat = np.abs(across) <= COLLINEAR * length[:, :, None] * length[:, None, :]
    first, second, third = np.ogrid[: len(points), : len(points), : len(points)]
    return bool((flat & (first < second) & (second < third)).any())


def read_action(answer: str) -> Action | None:
    """The action that ``answer`` writes, under any of its usual names; None if it writes none, or several."""
    tokens = tokenize(answer)
    named = [at for at, token in enumerate(tokens) if token.kind == "value" and token.key in _ACTION_KEYS]
    if not named:
        named = [
            at
            for at, token in enumerate(tokens)
            if (token.kind == "call" or (token.kind == "value" and token.key in _CALL_KEYS))
            and _action_name(token.text)
        ]
    if len(named) != 1:
        return None
    at = named[0]
    before = [] if tokens[at].kind == "call" else tokens[:at]  # before a call there is only text
    return Action(_action_name(tokens[at].text), (*before, *tokens[at + 1 :]))


def _true_action(sample: Sample) -> tuple[str, Any]:
    """The action of the row and its argument: boxes [n 4], a text, or None."""
    truth = json_truth(sample)
    name = _action_name(truth.get("action")) if isinstance(truth, Mapping) else ""
    if not name:
        raise wrong_answer(
            sample,
            f'is no action; give {{"action": ...}} with one of {", ".join(ARGUMENTS)}, and its argument',
        )
    kind = ARGUMENTS[name]
    wanted = truth.get(kind) if kind else None
    if kind == "box":
        wanted = next((truth[key] for key in BOX_KEYS if key in truth), None)
        every = wanted if isinstance(wanted, list) and not are_numbers(wanted, 4) else [wanted]
        if not every or not all(are_numbers(corners, 4) for corners in every):
            raise wrong_answer(sample, f'needs a "box" for {name}: [x1, y1, x2, y2], or a list of these')
        return name, np.array(every, float)
    if kind and (not isinstance(wanted, str) or not wanted.strip()):
        raise wrong_answer(sample, f'needs a text under "{kind}" for {name}')
    if kind == "direction" and wanted not in _DIRECTIONS:
        raise wrong_answer(sample, f"needs a direction that is one of {', '.join(_DIRECTIONS)}")
    return name, wanted


def _argument(given: Action, keys: tuple[str, ...]) -> str:
    """The text under one of ``keys``, or else the words that stand alone, or else the numbers."""
    named = [token.text for token in given.tokens if token.kind == "value" and token.key in keys]
    words = [token.text for token in given.tokens if token.kind == "word"]
    return " ".join(named or words or [token.text for token in given.tokens if token.kind == "numbers"])


def _same_text(text: str, wanted: str, least: float) -> bool:
    given, true = (
        " ".join(unicodedata.normalize("NFKC", words).casefold().split()) for words in (text, wanted)
    )
    if given == true or least >= 1.0:
        return given == true
    words, true_words = Counter(given.split()), Counter(true.split())
    return 2.0 * (words & true_words).total() >= least * (words.total() + true_words.total())


def _key_names(text: str) -> list[str]:
    """Names of keys in alphabetical order, without what joins them."""
    names = [re.sub("[_-]", "", name) for name in re.split(r"[\s+,]+", text.casefold()) if name]
    return sorted(_KEY_NAMES.get(name, name) for name in names)


def _action_name(name: object) -> str:
    """The action that ``name`` stands for; "" if it is none."""
    return _NAMES.get(name.casefold().strip(), "") if isinstance(name, str) else ""
