"""Verifiers `number`, `count` and `interval`: right within a tolerance, with credit for near answers."""

import math
import re
from fractions import Fraction

from mmrl.rewards.quantity import Quantity, in_terms_of, read_quantity
from mmrl.rewards.text import DASHES, canonical
from mmrl.rewards.verifier import AnswerIn, Components, Share, Size, Verifier, answer_of, wrong_answer
from mmrl.sample import Sample

THRESHOLDS = tuple(Fraction(k, 20) for k in range(10, 20))  # 0.50, 0.55, ..., 0.95
NEAR, FAR = Fraction(1, 20), Fraction(1, 5)  # relative errors of full and of no credit

_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_CLOCK = r"(?:[0-9]{1,3}:)?[0-9]{1,3}:[0-5][0-9](?:\.[0-9]{1,9})?"
_SECONDS = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_TIME = re.compile(rf"(?<![\w.:])(?<!\A-)(?<![\[(]-)(?:{_CLOCK}|{_SECONDS}(?![0-9.]*:))")
WORDS = {"none": 0} | {word: value for value, word in enumerate(_NAMES.split())}


@Verifier
def number(
    sample: Sample,
    response: str,
    *,
    tolerance: Size = 0.0,
    relative_tolerance: Size = 0.0,
    answer_in: AnswerIn = "box",
) -> Components:
    """A number: ``accuracy``, ``mean_relative_accuracy`` and ``near``, each in [0, 1].

    ``accuracy`` is 1 within ``tolerance`` (absolute, in the truth's unit) or ``relative_tolerance`` (of the
    truth; 0.05 is the relaxed accuracy of ChartQA); either suffices. The others do not depend on these.
    ValueError if ``sample.answer`` holds no one number.
    """
    truth = read_quantity(sample.answer)
    if truth is None:
        raise wrong_answer(sample, "is not a number; use another verifier")
    absolute, relative = Fraction(str(tolerance)), Fraction(str(relative_tolerance))  # 0.01 is 1/100
    given = _read(answer_of(response, answer_in))
    readings = [] if given is None else in_terms_of(truth, given)
    if not readings:
        return {"accuracy": 0.0, "mean_relative_accuracy": 0.0, "near": 0.0}
    value = min(readings, key=lambda reading: abs(reading - truth.value))
    return {
        "accuracy": float(abs(value - truth.value) <= max(absolute, relative * abs(truth.value))),
        "mean_relative_accuracy": mean_relative_accuracy(value, truth.value),
        "near": near_credit(value, truth.value),
    }


def _read(text: str) -> Quantity | None:
    """The one number of ``text``, which may be a word up to twenty."""
    word = WORDS.get(canonical(text))
    return read_quantity(text) if word is None else Quantity(Fraction(word))


def _relative_error(given: Fraction, truth: Fraction) -> float | Fraction:
    return abs(given - truth) / abs(truth) if truth else Fraction(0) if given == truth else math.inf


def mean_relative_accuracy(given: Fraction, truth: Fraction) -> float:
    """Share of the thresholds t = 0.50, 0.55, ..., 0.95 with a relative error below 1 - t.

    Yang et al. 2024 (Thinking in Space, equation 1); the reward of SpatialLadder and ViLaSR.
    """
    error = _relative_error(given, truth)
    return sum(error < 1 - threshold for threshold in THRESHOLDS) / len(THRESHOLDS)


def near_credit(given: Fraction, truth: Fraction) -> float:
    """1 up to a relative error of 5 %, 0 from 20 % on, between them half a cosine (Reason-RFT)."""
    error = _relative_error(given, truth)
    if error >= FAR:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * float(max(Fraction(0), Fraction(error) - NEAR) / (FAR - NEAR))))


@Verifier
def count(sample: Sample, response: str, *, answer_in: AnswerIn = "box") -> Components:
    """A count: ``accuracy`` (the same whole number) and ``near_count``.

    ``near_count`` is ``max(0, 1 - |given - truth| / max(truth, 1))``. Words may stand around the number,
    which may itself be a word up to twenty. ValueError if ``sample.answer`` is no such number.
    """
    truth = _read_count(sample.answer)
    if truth is None:
        raise wrong_answer(sample, "is not a count; give a whole number from 0 on, or use 'number'")
    given = _read_count(answer_of(response, answer_in))
    if given is None:
        return {"accuracy": 0.0, "near_count": 0.0}
    distance = Fraction(abs(given - truth), max(truth, 1))
    return {"accuracy": float(given == truth), "near_count": float(max(Fraction(0), 1 - distance))}


def _read_count(text: str) -> int | None:
    given = _read(text)
    if given is None or given.scale < 1:  # a share is no count
        return None
    value = given.value * given.scale
    return int(value) if value >= 0 and value.denominator == 1 else None


@Verifier
def interval(
    sample: Sample, response: str, *, threshold: Share = 0.5, answer_in: AnswerIn = "box"
) -> Components:
    """The interval that an answer gives, against the one of ``sample.answer``.

    Both are two times, ``[12.5, 20]`` or ``1:05 - 1:20``, in seconds, minutes:seconds or
    hours:minutes:seconds, with any words between. ``temporal_iou`` is the length that both share over the
    length that they cover, and ``accuracy`` is 1 if it is at least ``threshold``. Both are 0
    if the answer holds more or fewer than two times, or ends before it starts.
    """
    truth, given = read_interval(sample.answer), read_interval(answer_of(response, answer_in))
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
