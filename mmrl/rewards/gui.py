"""Actions on a screen: one action, or a ranked list of places for a click."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mmrl.rewards.answers import answer_of, wrong_answer
from mmrl.rewards.box_reading import BOX_KEYS, are_numbers, json_truth, read_points, scale
from mmrl.rewards.boxes import contains
from mmrl.rewards.facts import number_fact
from mmrl.rewards.grounding import point_hits
from mmrl.rewards.notation import Item, items
from mmrl.sample import Sample

MAX_CANDIDATES = 32  # a longer list is malformed
COLLINEAR = 1e-9  # sine of the angle up to which three points are on a line

_PLACE, _TEXT, _DIRECTION, _KEYS, _NONE = (
    "box",
    "text",
    "direction",
    "key",
    "",
)  # an action's argument in a row
ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("click", "double_click", "right_click", "long_press"), _PLACE),
        **dict.fromkeys(("type", "open_app"), _TEXT),
        **dict.fromkeys(("scroll", "swipe"), _DIRECTION),
        "press": _KEYS,
        **dict.fromkeys(("wait", "back", "home", "finished"), _NONE),
    }
)
_OTHER_NAMES = {
    "click": ("tap", "left_click", "left_single"),
    "double_click": ("doubleclick", "left_double", "double_tap"),
    "right_click": ("rightclick", "right_single"),
    "long_press": ("longpress", "long_click", "long_tap"),
    "type": ("input", "input_text", "type_text", "write", "typewrite", "enter_text"),
    "open_app": ("open", "launch", "launch_app", "open_application"),
    "press": ("hotkey", "press_key", "key", "keypress", "keyboard"),
    "back": ("press_back", "navigate_back", "go_back"),
    "home": ("press_home", "navigate_home"),
    "finished": ("finish", "done", "terminate", "complete", "completed"),
}
_NAMES = {other: name for name, others in _OTHER_NAMES.items() for other in others} | {
    n: n for n in ARGUMENTS
}
_ACTION_KEYS = ("action", "action_type")
_CALL_KEYS = ("name", "type", "function")  # hold an action only where nothing else does
_TEXT_KEYS = ("text", "content", "value", "input", "app", "app_name")
_DIRECTIONS = ("up", "down", "left", "right")
_KEY_NAMES = {
    "control": "ctrl",
    "return": "enter",
    "escape": "esc",
    "delete": "del",
    "command": "cmd",
    "spacebar": "space",
}


class Action(NamedTuple):
    """An action as it was written."""

    name: str  # a key of `ARGUMENTS`, or "" if it is none of them
    said: tuple[Item, ...]  # what may be its argument


def gui(sample: Sample, response: str) -> dict[str, float]:
    """The one action that an answer gives, against the one of ``sample.answer``.

    The answer is JSON or a call: ``click(10, 20)``, ``type(text="...")``, ``scroll(direction="down")``. The
    truth is JSON, ``{"action": "click", "box": [...]}``, or with "text", "direction" or "key": `ARGUMENTS`.

    Returns:
        ``action_type``: the right kind of action (UI-R1's first term).
        ``argument``: the one point given lies in a box of the truth; the text is the same but for case and
        blanks, or by F1 of words at least ``facts["text_f1"]`` (1); the same direction; the same keys in any
        order. Judged apart from the kind, but where none is wanted it is right if the kind is (UI-R1's
        second term).
        ``accuracy``: both.
        All are 0 for no action, or several.

    Raises:
        ValueError: ``sample.answer`` is no such action, or a fact is wrong.
    """
    name, wanted = _true_action(sample)
    least, by = number_fact(sample, "text_f1", 1.0, least=0.01, most=1.0), scale(sample)
    answer = answer_of(sample, response) or ""
    given = read_action(answer)
    if given is None:
        return {"accuracy": 0.0, "action_type": 0.0, "argument": 0.0}
    kind = ARGUMENTS[name]
    argument = given.name == name
    if kind == _PLACE:
        points = read_points(answer) * by
        argument = len(points) == 1 and bool(contains(wanted, points).any())
    elif kind == _TEXT:
        argument = _same_text(_argument(given, _TEXT_KEYS), wanted, least)
    elif kind == _DIRECTION:
        argument = _directions(_argument(given, ("direction",))) == {wanted}
    elif kind == _KEYS:
        argument = _keys(_argument(given, ("key", "keys"))) == _keys(wanted)
    return {
        "accuracy": float(given.name == name and argument),
        "action_type": float(given.name == name),
        "argument": float(argument),
    }


def gui_candidates(sample: Sample, response: str) -> dict[str, float]:
    """A ranked list of points to click at, against the target that ``sample.answer`` marks (see `point`).

    Returns:
        ``accuracy``: the first point hits.
        ``exploration``: InfiGUI-G1's adaptive exploration reward, from -1 to 1. It is 1 / sqrt(N k) if the
        first of N points to hit has rank k, -1/N if none does, -1 if there are no points, more than
        `MAX_CANDIDATES`, or three on one line.

    Raises:
        ValueError: ``sample.answer`` marks nothing, or a fact is wrong.
    """
    by = scale(sample)
    points = read_points(answer_of(sample, response) or "")
    hits = np.asarray(point_hits(sample, points * by).any(axis=0))
    count = len(points)
    if not 0 < count <= MAX_CANDIDATES:
        return {"accuracy": 0.0, "exploration": -1.0}
    if three_on_a_line(points):
        return {"accuracy": float(hits[0]), "exploration": -1.0}
    found = 1.0 / math.sqrt(count * (int(hits.argmax()) + 1.0)) if hits.any() else -1.0 / count
    return {"accuracy": float(hits[0]), "exploration": found}


def three_on_a_line(points: Float[np.ndarray, "n 2"]) -> bool:
    """Whether any three points lie on one line; two in the same place do with every third."""
    away = points[None] - points[:, None]
    length = np.hypot(away[..., 0], away[..., 1])
    across = away[:, :, None, 0] * away[:, None, :, 1] - away[:, :, None, 1] * away[:, None, :, 0]
    flat = np.abs(across) <= COLLINEAR * length[:, :, None] * length[:, None, :]
    first, second, third = np.ogrid[: len(points), : len(points), : len(points)]
    return bool((flat & (first < second) & (second < third)).any())


def read_action(answer: str) -> Action | None:
    """The action that ``answer`` writes, under any of its usual names; None if it writes none, or several."""
    said = items(answer)
    named = [at for at, item in enumerate(said) if item.kind == "value" and item.key in _ACTION_KEYS]
    if not named:
        named = [
            at
            for at, item in enumerate(said)
            if (item.kind == "call" or (item.kind == "value" and item.key in _CALL_KEYS)) and _name(item.text)
        ]
    if len(named) != 1:
        return None
    at = named[0]
    before = () if said[at].kind == "call" else said[:at]  # before a call there is only text
    return Action(_name(said[at].text), (*before, *said[at + 1 :]))


def _true_action(sample: Sample) -> tuple[str, Any]:
    """The action of the row and its argument: boxes [n 4], a text, or None."""
    truth = json_truth(sample)
    name = _name(truth.get("action")) if isinstance(truth, Mapping) else ""
    if not name:
        raise wrong_answer(
            sample,
            f'is no action; give {{"action": ...}} with one of {", ".join(ARGUMENTS)}, and its argument',
        )
    kind = ARGUMENTS[name]
    wanted = truth.get(kind) if kind else None
    if kind == _PLACE:
        wanted = next((truth[key] for key in BOX_KEYS if key in truth), None)
        every = wanted if isinstance(wanted, list) and not are_numbers(wanted, 4) else [wanted]
        if not every or not all(are_numbers(box, 4) for box in every):
            raise wrong_answer(sample, f'needs a "box" for {name}: [x1, y1, x2, y2], or a list of these')
        return name, np.array(every, float)
    if kind and (not isinstance(wanted, str) or not wanted.strip()):
        raise wrong_answer(sample, f'needs a text under "{kind}" for {name}')
    if kind == _DIRECTION and wanted not in _DIRECTIONS:
        raise wrong_answer(sample, f"needs a direction that is one of {', '.join(_DIRECTIONS)}")
    return name, wanted


def _argument(given: Action, keys: tuple[str, ...]) -> str:
    """The text under one of ``keys``, or else the words that stand alone, or else the numbers."""
    named = [item.text for item in given.said if item.kind == "value" and item.key in keys]
    words = [item.text for item in given.said if item.kind == "word"]
    return " ".join(named or words or [item.text for item in given.said if item.kind == "numbers"])


def _same_text(text: str, wanted: str, least: float) -> bool:
    given, true = _plain(text), _plain(wanted)
    if given == true or least >= 1.0:
        return given == true
    words, true_words = Counter(given.split()), Counter(true.split())
    return 2.0 * (words & true_words).total() >= least * (words.total() + true_words.total())


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _directions(text: str) -> set[str]:
    return set(text.casefold().split()) & set(_DIRECTIONS)


def _keys(text: str) -> list[str]:
    """Names of keys in alphabetical order, without what joins them."""
    names = [re.sub("[_-]", "", name) for name in re.split(r"[\s+,]+", text.casefold()) if name]
    return sorted(_KEY_NAMES.get(name, name) for name in names)


def _name(name: object) -> str:
    """The action that ``name`` stands for; "" if it is none."""
    return _NAMES.get(name.casefold().strip(), "") if isinstance(name, str) else ""
