"""What a verifier may know of a sample beside its answer: options of its row, and facts of the rollout.

``sample.facts`` are the row's own, above those that the config gives to all rows. Under "rollout" the trainer
adds what became of the response (`Rollout`).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.sample import Sample


@dataclass(frozen=True)
class Rollout:
    """Facts of one response, and of the run it was sampled in."""

    progress: float = 1.0  # share of the run's steps that are done; 1 in an evaluation
    tokens: int = 0  # of the response, those that tools answered left out
    max_tokens: int = 0  # the budget of a response
    truncated: bool = False  # the budget ran out


def rollout(sample: Sample) -> Rollout:
    """Facts of the rollout. Raises ValueError if the sample was not sampled in one."""
    facts = sample.facts.get("rollout")
    if not isinstance(facts, Mapping):
        raise ValueError(
            f"sample {sample.id}: the verifier {sample.verifier!r} needs facts of a rollout; grade in a run,"
            ' or give facts["rollout"] with progress, tokens, max_tokens and truncated'
        )
    return Rollout(**facts)


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
        raise _wrong(sample, name, value, f"a number{bounds}")
    return float(value)


def text_fact(
    sample: Sample, name: str, default: str | None = None, *, choices: Collection[str] | None = None
) -> str:
    """The text ``facts[name]``, one of ``choices`` if given. Raises ValueError likewise."""
    value = _fact(sample, name, default)
    if not isinstance(value, str) or (choices is not None and value not in choices):
        raise _wrong(
            sample, name, value, "text" if choices is None else f"one of {', '.join(sorted(choices))}"
        )
    return value


def flag_fact(sample: Sample, name: str, default: bool | None = None) -> bool:
    """The truth value ``facts[name]``. Raises ValueError likewise."""
    value = _fact(sample, name, default)
    if not isinstance(value, bool):
        raise _wrong(sample, name, value, "true or false")
    return value


def list_fact(sample: Sample, name: str, default: list[Any] | None = None) -> list[Any]:
    """The list ``facts[name]``. Raises ValueError likewise."""
    value = _fact(sample, name, default)
    if not isinstance(value, list | tuple):
        raise _wrong(sample, name, value, "a list")
    return list(value)


def _fact(sample: Sample, name: str, default: Any) -> Any:
    value = sample.facts.get(name, default)
    if value is None:
        raise ValueError(
            f"sample {sample.id}: the verifier {sample.verifier!r} needs facts[{name!r}]; give it in the row,"
            " or in config.reward.options"
        )
    return value


def _wrong(sample: Sample, name: str, value: Any, kind: str) -> ValueError:
    return ValueError(f"sample {sample.id}: facts[{name!r}] is {str(value)[:80]!r}, but should be {kind}")
