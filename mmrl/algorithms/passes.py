"""Inputs of an algorithm: quantities of the response tokens, each measured in one pass or between two.

A pass is a forward pass over the sampled responses by the weights of one model, with one view of the prompt's
images. An algorithm declares the scores that it reads as values; what runs it makes every pass that they name
once, and no other.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Pass:
    """A forward pass: the model whose weights make it, and what it is shown."""

    model: str = "policy"  # or "reference": the policy before the first step
    view: str = "clean"  # or "corrupted": with the images corrupted

    def __str__(self) -> str:
        return self.model if self.view == "clean" else f"{self.model}/{self.view}"


@dataclass(frozen=True, order=True)
class Score:
    """A quantity of each response token, measured in one pass or between two."""

    quantity: str
    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return f"{self.quantity}({', '.join(map(str, self.passes))})"


def logprob(of: Pass) -> Score:
    """The log-probability of the sampled token."""
    return Score("logprob", (of,))


def entropy(of: Pass) -> Score:
    """The entropy of the whole distribution."""
    return Score("entropy", (of,))


def kl(of: Pass, against: Pass) -> Score:
    """KL(of || against) over the whole vocabulary."""
    return Score("kl", (of, against))


def passes_of(scores: Iterable[Score]) -> frozenset[Pass]:
    """The passes in which the scores are measured."""
    return frozenset(measured for score in scores for measured in score.passes)


POLICY = Pass()
CORRUPTED = Pass(view="corrupted")
REFERENCE = Pass(model="reference")

LOGPROB = logprob(POLICY)
ENTROPY = entropy(POLICY)
PERCEPTION = kl(POLICY, CORRUPTED)
CORRUPTED_LOGPROB = logprob(CORRUPTED)
REFERENCE_LOGPROB = logprob(REFERENCE)
