"""Where in a response the answer stands: one rule for every verifier, chosen by ``facts["answer_in"]``."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from mmrl.rewards.facts import text_fact
from mmrl.rewards.number import last_number
from mmrl.rewards.text import MAX_ANSWER, first_tagged, has_tag, last_answer_line, last_boxed, unboxed
from mmrl.sample import Sample


def tagged(response: str) -> str | None:
    """The first ``<answer>...</answer>``."""
    return unboxed(first_tagged(response))


def tagged_or_all(response: str) -> str | None:
    """The first ``<answer>...</answer>``, or the whole of a response without that tag.

    As in EasyR1's ``examples/reward_function/r1v.py``.
    """
    return tagged(response) if has_tag(response) else after_thought(response)


def lined(response: str) -> str | None:
    """What follows the last ``Answer:``."""
    return unboxed(last_answer_line(response))


def after_thought(response: str) -> str | None:
    """What follows the last ``</think>``, or all of it; None if that is too long for an answer."""
    rest = response.rpartition("</think>")[2].strip()
    return rest if len(rest) <= MAX_ANSWER else None


READERS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {
        "box": last_boxed,
        "tag": tagged,
        "tag_or_all": tagged_or_all,
        "line": lined,
        "number": last_number,
        "all": after_thought,
    }
)


def answer_of(sample: Sample, response: str) -> str | None:
    r"""The answer that ``response`` gives, stripped; None if there is none, or it is too long to be one.

    ``facts["answer_in"]``: "box" (the default: the last ``\boxed{}``), "tag" (the first ``<answer>``),
    "tag_or_all", "line" (after the last ``Answer:``), "number" (the last number), "all" (what follows the
    thinking). In a tag or on a line a box may stand around the answer. Raises ValueError for another.
    """
    return READERS[text_fact(sample, "answer_in", "box", choices=READERS)](response)


def wrong_answer(sample: Sample, what: str) -> ValueError:
    """The error of a row whose own answer a verifier cannot use: ``what`` is wrong with it, and the fix."""
    return ValueError(f"sample {sample.id}: answer {sample.answer[:80]!r} {what}")
