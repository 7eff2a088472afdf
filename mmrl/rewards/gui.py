"""Verifiers of an action on a screen: the action and its argument, or candidates for where to click."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np
from jaxtyping import Float

from mmrl.rewards.boxes import (
    BOX_KEYS,
    Token,
    Where,
    are_numbers,
    contains,
    json_truth,
    point_hits,
    read_answer,
    read_points,
    tokenize,
)
from mmrl.rewards.verifier import Components, Share, Size, Verifier, wrong_answer
from mmrl.sample import Sample

MAX_CANDIDATES = 32  # a longer list is malformed
COLLINEAR = 1e-9  # sine of the angle up to which three points are on a line

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


class Action(NamedTuple):
    """An action as it was written."""

    name: str  # a key of `ARGUMENTS`, or "" if it is none of them
    tokens: tuple[Token, ...]  # that may be its argument


@Verifier
def gui(sample: Sample, response: str, *, text_f1: Share = 1.0, **where: Unpack[Where]) -> Components:
    """The one action that an answer gives, against the one of ``sample.answer``.

    The answer is JSON or a call: ``click(10, 20)``, ``type(text="...")``, ``scroll(direction="down")``. The
    truth is JSON, ``{"action": "click", "box": [...]}``, or with "text", "direction" or "key": `ARGUMENTS`.
    ``action_type``: the right kind of action (UI-R1's first term). ``argument``: the one point given lies in
    a box of the truth; the text is the same but for case and blanks, or by F1 of words at least
    ``text_f1``; the same direction; the same keys in any order. It is judged apart from the
    kind, but where none is wanted it is right if the kind is (UI-R1's second term). ``accuracy``: both. All
    are 0 for no action, or several. ValueError if ``sample.answer`` is no such action, or a fact is wrong.
    """
    name, wanted = _true_action(sample)
    answer, scale = read_answer(sample, response, **where)
    given = read_action(answer)
    if given is None:
        return {"accuracy": 0.0, "action_type": 0.0, "argument": 0.0}
    kind, right = ARGUMENTS[name], given.name == name
    argument = right
    if kind == "box":
        points = read_points(answer) * scale
        argument = len(points) == 1 and bool(contains(wanted, points).any())
    elif kind == "text":
        argument = _same_text(_argument(given, _TEXT_KEYS), wanted, text_f1)
    elif kind == "direction":
        words = _argument(given, ("direction",)).casefold().split()
        argument = set(words) & set(_DIRECTIONS) == {wanted}
    elif kind == "key":
        argument = _key_names(_argument(given, ("key", "keys"))) == _key_names(wanted)
    return {"accuracy": float(right and argument), "action_type": float(right), "argument": float(argument)}


@Verifier
def gui_candidates(
    sample: Sample, response: str, *, radius: Size | None = None, **where: Unpack[Where]
) -> Components:
    """A ranked list of points to click at, against the target that ``sample.answer`` marks (see `point`).

    ``accuracy``: the first point hits. ``exploration``: InfiGUI-G1's adaptive exploration reward, from -1 to
    1: 1 / sqrt(N k) if the first of N points to hit has rank k, -1/N if none does, -1 if there are no points,
    more than `MAX_CANDIDATES`, or three on one line. ValueError if the row marks nothing, or a fact is wrong.
    """
    answer, scale = read_answer(sample, response, **where)
    points = read_points(answer)
    hits = np.asarray(point_hits(sample, points * scale, radius).any(axis=0))
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
