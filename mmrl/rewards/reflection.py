"""Verifiers of reflection: answers before and after it, and the conclusion of a thinking."""

import itertools
import re
from typing import Literal

from mmrl.rewards.math import equal
from mmrl.rewards.quantity import last_number, parse_number, same_number
from mmrl.rewards.style import in_stages, is_visible
from mmrl.rewards.text import MAX_ANSWER, canonical, last_boxed, unboxed
from mmrl.rewards.verifier import AnswerIn, Components, Verifier, answer_of
from mmrl.sample import Sample

STAGES = ("think", "answer", "reflection", "think", "answer")
# By whether the first and the second answer are right.
GRADES = {(False, True): 1.0, (True, True): 0.75, (True, False): 0.25, (False, False): 0.0}
ONLY_ANSWER = 0.5  # if right

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*+)</answer>", re.DOTALL)
_REFLECTION = re.compile(r"\s*<reflection>((?:(?!</?reflection>).)*+)</reflection>", re.DOTALL)
_CONCLUSION = re.compile(
    r"\b(?:answer|option|choice)(?:\s+is|\s*[:=])\s*:?\s*([^\n]{1,200}?)(?=[.;](?!\d)|\s*(?:\n|$))",
    re.IGNORECASE,
)


@Verifier
def reflection(sample: Sample, response: str, *, compare: Literal["math", "text"] = "math") -> Components:
    """Grades a first answer, a reflection on it and a second answer, in ``<answer>`` and ``<reflection>``.

    ``reflection``: 1 wrong, then right; 0.75 right twice; 0.25 right, then wrong; 0 wrong twice; 0.5 for a
    right answer without a second one. More than two answers are wrong, and so are two without a reflection
    between them. ``accuracy``: the last answer is right. ``format``: the response is `STAGES` and nothing
    else. Answers are compared as mathematics (`equal`), or with ``compare="text"`` as text.
    Source: SRPO, Wan et al. 2025, ``srpo_reward_func.py``. ValueError if the sample's answer is blank.
    """
    truth = sample.answer.strip()
    if not truth:
        raise ValueError(f"sample {sample.id}: the answer is empty; give the text that a right response has")
    right = [_right(answer, truth, compare == "text") for answer in _answers(response)]
    grade = GRADES[right[0], right[1]] if len(right) == 2 else ONLY_ANSWER if right == [True] else 0.0
    return {
        "reflection": grade,
        "accuracy": float(bool(right) and right[-1]),
        "format": float(in_stages(response, STAGES)),
    }


def _answers(response: str) -> list[str]:
    """The only answer, or the two around a reflection; none if there are others."""
    found = list(itertools.islice(_ANSWER.finditer(response), 3))
    if len(found) == 2:
        between = _REFLECTION.match(response, found[0].end(), found[1].start())
        if between is None or not is_visible(between[1]):
            return []
    elif len(found) != 1:
        return []
    return [match[1].strip() for match in found]


def _right(answer: str, truth: str, as_text: bool) -> bool:
    given = unboxed(answer)
    if not given or len(given) > MAX_ANSWER:
        return False
    return canonical(given) == canonical(truth) if as_text else equal(given, truth)


@Verifier
def consistency(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """``{"consistency": 1.0}`` if the thinking concludes what is answered (`answer_of`), right or wrong.

    The thinking is what stands between ``<think>`` and the last ``</think>``. Its conclusion is its last box,
    else what its last "answer is", "Answer:" or "option is" says, else, if the answer is a number, its last
    number. Both are the same if they are one number, or one text (`canonical`). 0 without an answer, a
    thinking or a conclusion that can be read.
    """
    answer = unboxed(answer_of(response, answer_in)) or ""
    is_number = parse_number(answer) is not None
    concluded = _conclusions(_thinking(response), is_number) if canonical(answer) else ()
    return {"consistency": float(any(_same(answer, text) for text in concluded))}


def _same(answer: str, conclusion: str) -> bool:
    given, concluded = parse_number(answer), parse_number(conclusion)
    if given is not None and concluded is not None:
        return same_number(given, concluded, rounded=False)
    return canonical(conclusion) == canonical(answer)


def _thinking(response: str) -> str:
    inside = response.partition("<think>")[2].rpartition("</think>")[0]
    return inside[-MAX_ANSWER:]


def _conclusions(thinking: str, number: bool) -> tuple[str, ...]:
    """Readings of the conclusion: where a sentence goes on after a comma, with and without the rest."""
    if "\\boxed" in thinking:
        return (last_boxed(thinking) or "",)
    said = _CONCLUSION.findall(thinking)
    if said:
        return (said[-1], said[-1].split(", ")[0])
    return (last_number(thinking) or "",) if number else ()
