"""One number: right within a tolerance, with credit for coming near."""

import math
from fractions import Fraction

from mmrl.rewards.answers import answer_of, wrong_answer
from mmrl.rewards.facts import number_fact
from mmrl.rewards.quantity import Quantity, in_terms_of, read_quantity
from mmrl.sample import Sample

LARGEST_TOLERANCE = 1e15
THRESHOLDS = tuple(Fraction(k, 20) for k in range(10, 20))  # 0.50, 0.55, ..., 0.95
NEAR, FAR = Fraction(1, 20), Fraction(1, 5)  # relative errors of full and of no credit


def number(sample: Sample, response: str) -> dict[str, float]:
    r"""Judges a number: ``accuracy``, ``mean_relative_accuracy`` and ``near``, each in [0, 1].

    ``accuracy`` is 1 within ``facts["tolerance"]`` (absolute, in the truth's unit) or
    ``facts["relative_tolerance"]`` (of the truth; 0.05 is the relaxed accuracy of charts, Masry et al. 2022,
    ChartQA), each 0 by default; either suffices. The others do not depend on these:
    `mean_relative_accuracy`, and `near_credit` as ``near``. How words, percent signs and units beside the
    number are read, see ``quantity``. ValueError if ``sample.answer`` holds no one number.
    """
    truth = read_quantity(sample.answer)
    if truth is None:
        raise wrong_answer(sample, "is not a number; use another verifier")
    tolerance, relative = (
        Fraction(str(number_fact(sample, name, 0.0, least=0.0, most=LARGEST_TOLERANCE)))  # 0.01 is 1/100
        for name in ("tolerance", "relative_tolerance")
    )
    given = closest(truth, read_quantity(answer_of(sample, response) or ""))
    if given is None:
        return {"accuracy": 0.0, "mean_relative_accuracy": 0.0, "near": 0.0}
    error = abs(given - truth.value)
    return {
        "accuracy": float(error <= max(tolerance, relative * abs(truth.value))),
        "mean_relative_accuracy": mean_relative_accuracy(given, truth.value),
        "near": near_credit(given, truth.value),
    }


def closest(truth: Quantity, given: Quantity | None) -> Fraction | None:
    """What ``given`` means, in terms of the truth; of two readings the one nearer to it."""
    meant = [] if given is None else in_terms_of(truth, given)
    return min(meant, key=lambda value: abs(value - truth.value), default=None)


def relative_error(given: Fraction, truth: Fraction) -> Fraction | None:
    """``|given - truth| / |truth|``; None, for infinity, if only the truth is 0."""
    if given == truth:
        return Fraction(0)
    return abs(given - truth) / abs(truth) if truth else None


def mean_relative_accuracy(given: Fraction, truth: Fraction) -> float:
    """Share of the thresholds t = 0.50, 0.55, ..., 0.95 with a relative error below 1 - t.

    Yang et al. 2024 (Thinking in Space, equation 1); the reward of SpatialLadder
    (``grpo_spld_stage3.py``) and ViLaSR.
    """
    error = relative_error(given, truth)
    if error is None:
        return 0.0
    return sum(error < 1 - threshold for threshold in THRESHOLDS) / len(THRESHOLDS)


def near_credit(given: Fraction, truth: Fraction) -> float:
    """1 up to a relative error of 5 %, 0 from 20 % on, between them half a cosine.

    ``math_accuracy_reward`` in Reason-RFT's ``train/stage_rl/reward.py``.
    """
    error = relative_error(given, truth)
    if error is None or error >= FAR:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * float(max(Fraction(0), error - NEAR) / (FAR - NEAR))))
