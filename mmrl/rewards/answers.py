"""Input of verifiers: options of a row, rollout information, and where in a response the answer stands.

``sample.facts`` are the row's own, above those that ``config.reward.options`` gives to all rows. Under
"rollout" the trainer adds what became of the response (`RolloutInfo`).
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mmrl.rewards.quantity import last_number
from mmrl.rewards.text import MAX_ANSWER, first_tagged, has_tag, last_answer_line, last_boxed, unboxed
from mmrl.sample import Sample


@dataclass(frozen=True)
class RolloutInfo:
    """One response and the run it was sampled in."""

    progress: float = 1.0  # share of the run's steps that are done; 1 in an evaluation
    tokens: int = 0  # of the response, without tool observations
    max_tokens: int = 0  # the budget of a response
    truncated: bool = False  # the budget ran out


def rollout_info(sample: Sample) -> RolloutInfo:
    """The rollout's part of a sample. Raises ValueError if it was not sampled in one."""
    info = sample.facts.get("rollout")
    if not isinstance(info, Mapping):
        raise ValueError(
            f"sample {sample.id}: the verifier {sample.verifier!r} needs facts of a rollout; grade in a run,"
            ' or give facts["rollout"] with progress, tokens, max_tokens and truncated'
        )
    return RolloutInfo(**info)


def number_fact(
    sample: Sample,
    name: str,
    default: float | None = None,
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> float:
    """The finite number ``facts[name]``. Raises ValueError if it is another thing, or absent and required."""
    value = _fact(sample, name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        bounds = "" if math.isinf(least) and math.isinf(most) else f" from {least:g} to {most:g}"
        raise _wrong_fact(sample, name, value, f"a number{bounds}")
    return float(value)


def text_fact(
    sample: Sample, name: str, default: str | None = None, *, choices: Collection[str] | None = None
) -> str:
    """The text ``facts[name]``, one of ``choices`` if given. Raises ValueError likewise."""
    value = _fact(sample, name, default)
    if not isinstance(value, str) or (choices is not None and value not in choices):
        wanted = "text" if choices is None else f"one of {', '.join(sorted(choices))}"
        raise _wrong_fact(sample, name, value, wanted)
    return value


def flag_fact(sample: Sample, name: str, default: bool | None = None) -> bool:
    """The truth value ``facts[name]``. Raises ValueError likewise."""
    value = _fact(sample, name, default)
    if not isinstance(value, bool):
        raise _wrong_fact(sample, name, value, "true or false")
    return value


def list_fact(sample: Sample, name: str, default: list[Any] | None = None) -> list[Any]:
    """The list ``facts[name]``. Raises ValueError likewise."""
    value = _fact(sample, name, default)
    if not isinstance(value, list | tuple):
        raise _wrong_fact(sample, name, value, "a list")
    return list(value)


def _fact(sample: Sample, name: str, default: Any) -> Any:
    value = sample.facts.get(name, default)
    if value is None:
        raise ValueError(
            f"sample {sample.id}: the verifier {sample.verifier!r} needs facts[{name!r}]; give it in the row,"
            " or in config.reward.options"
        )
    return value


def _wrong_fact(sample: Sample, name: str, value: Any, kind: str) -> ValueError:
    return ValueError(f"sample {sample.id}: facts[{name!r}] is {str(value)[:80]!r}, but should be {kind}")


def wrong_answer(sample: Sample, problem: str) -> ValueError:
    """The error of a row whose own answer a verifier cannot use: what is wrong with it, and the fix."""
    return ValueError(f"sample {sample.id}: answer {sample.answer[:80]!r} {problem}")


def _after_thinking(response: str) -> str | None:
    rest = response.rpartition("</think>")[2].strip()
    return rest if len(rest) <= MAX_ANSWER else None


def _in_tag(response: str) -> str | None:
    return unboxed(first_tagged(response))


READERS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {
        "box": last_boxed,
        "tag": _in_tag,
        # as in EasyR1's examples/reward_function/r1v.py
        "tag_or_all": lambda response: (_in_tag if has_tag(response) else _after_thinking)(response),
        "line": lambda response: unboxed(last_answer_line(response)),
        "number": last_number,
        "all": _after_thinking,
    }
)


def answer_of(sample: Sample, response: str) -> str | None:
    r"""The answer that ``response`` gives, stripped; None if there is none, or it is too long to be one.

    ``facts["answer_in"]``: "box" (the default: the last ``\boxed{}``), "tag" (the first ``<answer>``),
    "tag_or_all" (that, or the whole of a response without the tag), "line" (after the last ``Answer:``),
    "number" (the last number), "all" (what follows the thinking). In a tag or on a line a box may stand
    around the answer. Raises ValueError for another.
    """
    return READERS[text_fact(sample, "answer_in", "box", choices=READERS)](response)
