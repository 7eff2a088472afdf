r"""Forms of a response: ``<think> ... </think> ... \boxed{ ... }`` of PAPO, VPPO and EasyR1, and others."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from mmrl.rewards.facts import list_fact, number_fact, text_fact
from mmrl.sample import Sample

# A run of blanks is tried from its beginning only, which keeps the time linear.
_BLANKS_AT_TAGS = re.compile(r"(?<=[<>/])\s++|(?<!\s)\s++(?=[<>/])")
_STAGE = re.compile(r"[A-Za-z][\w-]*")
_WORD = re.compile(r"\w+")


def form(sample: Sample, response: str) -> dict[str, float]:
    """``{"format": 1.0}`` if a response has the form that goes with ``facts["answer_in"]``.

    "box": `think_boxed`; "tag" and "tag_or_all": `think_answer`; others: a thinking and then something else.
    """
    where = text_fact(sample, "answer_in", "box")
    return {"box": think_boxed, "tag": think_answer, "tag_or_all": think_answer}.get(where, think_then)(
        sample, response
    )


def think_then(sample: Sample, response: str) -> dict[str, float]:
    """``{"format": 1.0}`` if the response is a ``<think>...</think>`` and something else, neither empty."""
    answer = response.rpartition("</think>")[2]
    return {"format": float(says_something(_thinking(response)) and says_something(answer))}


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


def thought(sample: Sample, response: str) -> dict[str, float]:
    """``{"thought": 1.0}`` if the response begins with a ``<think>...</think>`` of ``facts["least_words"]``
    different words or more (1 if absent), else 0.

    EasyR1's forms take an empty thought for a thought. Words are runs of letters and digits.
    """
    least = number_fact(sample, "least_words", 1, least=1)
    words: set[str] = set()
    for word in _WORD.finditer(_thinking(response)):
        words.add(word[0])
        if len(words) >= least:
            return {"thought": 1.0}
    return {"thought": 0.0}


def says_something(text: str) -> bool:
    """Whether any character of ``text`` can be seen: it is no blank and no control or format character."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def _thinking(response: str) -> str:
    """The thinking with which a response begins; "" if there is none."""
    opened = response.lstrip()
    inside, closing, _ = opened.removeprefix("<think>").partition("</think>")
    return inside if closing and opened.startswith("<think>") else ""


def stages(sample: Sample, response: str) -> dict[str, float]:
    """Whether the response is the stages ``facts["stages"]``, each in tags of its name.

    Returns:
      ``stages``: 1 if each stage stands where the list has it, says something, and nothing but blanks stands
        around them, else 0.
      ``stage_tags``: the share of the list's opening and closing tags that occur as often as it has them;
        those of a stage that is empty, or closed before it is opened, do not count. V-Triune pays 0.25 for
        each of the tags of ``["think", "answer"]`` (``verify_format`` of ``reward_server/verify.py``).

    Raises ValueError if the list is empty or has other things than names.
    """
    names = list_fact(sample, "stages")
    if not names or not all(isinstance(name, str) and _STAGE.fullmatch(name) for name in names):
        raise ValueError(f'sample {sample.id}: facts["stages"] should be names of tags, but is {names!r:.80}')
    return {"stages": float(in_stages(response, names)), "stage_tags": _right_tags(response, names)}


def in_stages(response: str, names: Sequence[str]) -> bool:
    """Whether ``response`` is the tagged stages ``names`` in this order, none blank, and nothing else."""
    expected = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    if [tag[0] for tag in _tags(response, names, at_most=len(expected))] != expected:
        return False
    # Outside of stages there is nothing, inside of each something.
    pieces = _any_of(names).split(response)
    return all(map(says_something, pieces[1::2])) and not any(piece.strip() for piece in pieces[::2])


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("</?(?:" + "|".join(sorted(set(names))) + ")>")


def _tags(response: str, names: Sequence[str], at_most: int) -> list[re.Match[str]]:
    """The tags of ``names`` in ``response``; one more than ``at_most`` if there are so many."""
    return list(itertools.islice(_any_of(names).finditer(response), at_most + 1))


def _right_tags(response: str, names: Sequence[str]) -> float:
    wanted = Counter(names)
    right = 0
    for name, count in wanted.items():
        ends = [[m.start() for m in re.finditer(tag, response)] for tag in (f"<{name}>", f"</{name}>")]
        often = [len(places) == count for places in ends]
        if not all(often):
            right += count * sum(often)
            continue
        inside = [response[opening + len(name) + 2 : closing] for opening, closing in zip(*ends, strict=True)]
        right += 2 * sum(map(says_something, inside))
    return right / (2 * len(names))
