"""One row of a dataset. Apart from ``types`` so that reward workers import neither jax nor flax."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One row of a dataset, as it is read: text and undecoded images, on the host."""

    id: str  # names the row in messages and logs: "<source>:<row>"
    problem: str  # text with one "<image>" placeholder per image
    answer: str
    images: tuple[bytes | str, ...] = ()  # encoded bytes, or a path
    verifier: str = "math"  # a key of mmrl.rewards.verifiers.VERIFIERS
    solution: str | None = None  # a full response to imitate (supervised stage)
    turns: tuple[str, ...] = ()  # what the policy writes in an episode to imitate; goes before ``solution``
    facts: dict[str, Any] = field(default_factory=dict)  # what a verifier may know beyond the answer
    source: str = ""
    difficulty: float | None = None  # as the data set has it, on a scale of its own; larger is harder
