r"""The response format of PAPO, VPPO and EasyR1: ``<think> ... </think> ... \boxed{ ... }``."""

import re

from mmrl.rewards.facts import text_fact
from mmrl.sample import Sample

# A run of blanks is tried from its beginning only, which keeps the time linear.
_BLANKS_AT_TAGS = re.compile(r"(?<=[<>/])\s++|(?<!\s)\s++(?=[<>/])")


def form(sample: Sample, response: str) -> dict[str, float]:
    """``{"format": 1.0}`` if a response has the form that goes with ``facts["answer_in"]``.

    "box": `think_boxed`; "tag" and "tag_or_all": `think_answer`; others: a thinking and then something else.
    """
    where = text_fact(sample, "answer_in", "box")
    return {"box": think_boxed, "tag": think_answer, "tag_or_all": think_answer}.get(where, think_then)(
        sample, response
    )


def think_then(sample: Sample, response: str) -> dict[str, float]:
    """``{"format": 1.0}`` if the response is ``<think>.*</think>`` and then anything but blanks."""
    _, opening, rest = response.lstrip().partition("<think>")
    thinking, closing, answer = rest.rpartition("</think>")
    starts = response.lstrip().startswith("<think>")
    return {"format": float(bool(starts and opening and closing and thinking.strip() and answer.strip()))}


def think_boxed(sample: Sample, response: str) -> dict[str, float]:
    r"""``{"format": 1.0}`` if the whole response reads ``<think>.*</think>.*\boxed{.*}.*``, else 0.

    The rule of ``format_reward`` in EasyR1's ``examples/reward_function/math.py``, whose ``accuracy`` and
    ``format`` both read a response without blanks around ``<``, ``>`` and ``/``. Searching for the parts one
    after another finds a match exactly when the backtracking expression does, in linear time.
    """
    text = tight_tags(response)
    if not text.startswith("<think>"):
        return {"format": 0.0}
    at = len("<think>")
    for part in ("</think>", "\\boxed{", "}"):
        found = text.find(part, at)
        if found < 0:
            return {"format": 0.0}
        at = found + len(part)
    return {"format": 1.0}


def think_answer(sample: Sample, response: str) -> dict[str, float]:
    """``{"format": 1.0}`` if the whole response reads ``<think>.*</think><answer>.*</answer>``, else 0.

    The rule of ``format_reward`` in EasyR1's ``examples/reward_function/r1v.py``, read without blanks around
    the tags.
    """
    text = tight_tags(response)
    middle = text.find("</think><answer>", len("<think>"))
    ending = len(text) - len("</answer>")
    inside = 0 <= middle <= ending - len("</think><answer>")
    return {"format": float(text.startswith("<think>") and text.endswith("</answer>") and inside)}


def tight_tags(response: str) -> str:
    """``response`` without the blanks around ``<``, ``>`` and ``/``."""
    return _BLANKS_AT_TAGS.sub("", response)
