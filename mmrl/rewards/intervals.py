"""A stretch of a video or recording: when something happens."""

import re

from mmrl.rewards.answers import answer_of, wrong_answer
from mmrl.rewards.facts import number_fact
from mmrl.rewards.grounding import LEAST_THRESHOLD
from mmrl.rewards.text import DASHES
from mmrl.sample import Sample

_CLOCK = r"(?:[0-9]{1,3}:)?[0-9]{1,3}:[0-5][0-9](?:\.[0-9]{1,9})?"
_SECONDS = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_TIME = re.compile(rf"(?<![\w.:])(?<!\A-)(?<![\[(]-)(?:{_CLOCK}|{_SECONDS}(?![0-9.]*:))")


def interval(sample: Sample, response: str) -> dict[str, float]:
    """The interval that an answer gives, against the one of ``sample.answer``.

    Both are two times, ``[12.5, 20]`` or ``1:05 - 1:20``, in seconds, minutes:seconds or
    hours:minutes:seconds, with any words between. ``temporal_iou`` is the length that both share over the
    length that they cover, and ``accuracy`` is 1 if it is at least ``facts["threshold"]`` (0.5). Both are 0
    if the answer holds more or fewer than two times, or ends before it starts.

    Raises ValueError if ``sample.answer`` is no interval.
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
    times = [_seconds(match[0]) for match in _TIME.finditer(text.translate(DASHES))]
    return (times[0], times[1]) if len(times) == 2 and times[0] < times[1] else None


def _seconds(time: str) -> float:
    total = 0.0
    for part in time.split(":"):
        total = 60.0 * total + float(part)
    return total
