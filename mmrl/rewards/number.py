"""Verifiers `number` and `count`: right within a tolerance, with credit for near answers."""

import math
from fractions import Fraction

from mmrl.rewards.answers import answer_of, number_fact, wrong_answer
from mmrl.rewards.quantity import Quantity, in_terms_of, read_quantity
from mmrl.rewards.text import canonical
from mmrl.sample import Sample

LARGEST_TOLERANCE = 1e15
THRESHOLDS = tuple(Fraction(k, 20) for k in range(10, 20))  # 0.50, 0.55, ..., 0.95
NEAR, FAR = Fraction(1, 20), Fraction(1, 5)  # relative errors of full and of no credit

_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
WORDS = {"none": 0} | {word: value for value, word in enumerate(_NAMES.split())}


def number(sample: Sample, response: str) -> dict[str, float]:
    """A number: ``accuracy``, ``mean_relative_accuracy`` and ``near``, each in [0, 1].

    ``accuracy`` is 1 within ``facts["tolerance"]`` (absolute, in the truth's unit) or
    ``facts["relative_tolerance"]`` (of the truth; 0.05 is the relaxed accuracy of ChartQA), each 0 by
    default; either suffices. The others do not depend on these. ValueError if ``sample.answer`` holds no one
    number.
    """
    truth = read_quantity(sample.answer)
    if truth is None:
        raise wrong_answer(sample, "is not a number; use another verifier")
    tolerance, relative = (
        Fraction(str(number_fact(sample, name, 0.0, least=0.0, most=LARGEST_TOLERANCE)))  # 0.01 is 1/100
        for name in ("tolerance", "relative_tolerance")
    )
    given = _read(answer_of(sample, response) or "")
    readings = [] if given is None else in_terms_of(truth, given)
    if not readings:
        return {"accuracy": 0.0, "mean_relative_accuracy": 0.0, "near": 0.0}
    value = min(readings, key=lambda reading: abs(reading - truth.value))
    return {
        "accuracy": float(abs(value - truth.value) <= max(tolerance, relative * abs(truth.value))),
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


def count(sample: Sample, response: str) -> dict[str, float]:
    """A count: ``accuracy`` (the same whole number) and ``near_count``.

    ``near_count`` is ``max(0, 1 - |given - truth| / max(truth, 1))``. Words may stand around the number,
    which may itself be a word up to twenty. ValueError if ``sample.answer`` is no such number.
    """
    truth = _read_count(sample.answer)
    if truth is None:
        raise wrong_answer(sample, "is not a count; give a whole number from 0 on, or use 'number'")
    given = _read_count(answer_of(sample, response) or "")
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
