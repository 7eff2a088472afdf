"""Counts: whole numbers, with credit for coming near."""

from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

from mmrl.rewards.answers import answer_of, wrong_answer
from mmrl.rewards.quantity import read_quantity
from mmrl.rewards.text import canonical
from mmrl.sample import Sample

_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
WORDS: Mapping[str, int] = MappingProxyType(
    {"none": 0} | {word: number for number, word in enumerate(_NAMES.split())}
)


def count(sample: Sample, response: str) -> dict[str, float]:
    """Judges how many there are: ``accuracy`` (the same whole number) and ``near_count``.

    ``near_count`` is ``max(0, 1 - |given - truth| / max(truth, 1))``. Words may stand around the number,
    which may itself be a word up to twenty; what is no whole number from 0 on, or several numbers, is 0.
    ValueError if ``sample.answer`` is no such number.
    """
    truth = read_count(sample.answer)
    if truth is None:
        raise wrong_answer(sample, "is not a count; give a whole number from 0 on, or use 'number'")
    given = read_count(answer_of(sample, response) or "")
    if given is None:
        return {"accuracy": 0.0, "near_count": 0.0}
    distance = Fraction(abs(given - truth), max(truth, 1))
    return {"accuracy": float(given == truth), "near_count": float(max(Fraction(0), 1 - distance))}


def read_count(text: str) -> int | None:
    """The one whole number from 0 on that ``text`` names; None if there is no one."""
    word = WORDS.get(canonical(text))
    if word is not None:
        return word
    given = read_quantity(text)
    if given is None or given.scale < 1:  # a share is no count
        return None
    value = given.value * given.scale
    return int(value) if value >= 0 and value.denominator == 1 else None
