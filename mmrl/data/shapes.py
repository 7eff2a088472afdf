"""The shapes world: rendered scenes with known content, questions about them, and what may be seen in them.

A world is a pure function: ``example(seed, split, index)`` gives the same record, bytes of the picture
included, whatever was drawn before it. Its questions come in five kinds and three levels of difficulty; a
full response states what is seen and then concludes, ``<think> b1 a2 </think> \\boxed{2}``, so that
``mmrl.rewards.shapes`` can tell an error of perception from one of reasoning.

The splits ``cold_start`` and ``train`` carry a shortcut: every question text has a preferred answer, and with
probability ``prior`` the scene is drawn to fit it. A policy that learns the text and doesn't look is then
right on these splits well above chance, and at chance on ``heldout``, whose answers are balanced given the
text.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrl.data.shapes_questions import KINDS, Question
from mmrl.data.shapes_scenes import render

SPLITS = ("cold_start", "train", "heldout")
LEVELS = (1, 2, 3)
PRIOR = 0.3


def example(
    seed: int,
    split: str,
    index: int,
    *,
    prior: float = PRIOR,
    kinds: Sequence[str] = tuple(KINDS),
    levels: Sequence[int] = LEVELS,
) -> dict[str, Any]:
    """One record of the world, by position.

    Args:
        seed: names the world, 0 or more.
        split: one of SPLITS.
        index: position in the split, 0 or more.
        prior: probability, in the splits that carry the shortcut, of drawing the scene to fit the text's
            preferred answer; otherwise the answer is uniform.
        kinds, levels: what to draw from, uniformly.

    Returns:
        The row of the public schema: ``problem`` (one ``<image>``), ``answer``, ``images`` (one ``{bytes,
        path}``), and ``verifier``, ``solution`` (the ideal response), ``facts`` (JSON: kind, the words
        ``seen`` that the thinking should state, and the scene), ``kind``, ``difficulty``.

    Raises:
        ValueError: an unknown split, kind or level, or a prior outside [0, 1].
    """
    _check(split, prior, kinds, levels)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    kind = kinds[int(rng.integers(len(kinds)))]
    level = levels[int(rng.integers(len(levels)))]
    bias = 0.0 if split == "heldout" else prior

    def choose(problem: str, options: Sequence[str]) -> str:
        if rng.random() < bias:
            return preferred_answer(seed, problem, options)
        return options[int(rng.integers(len(options)))]

    question = KINDS[kind](rng, level, choose)
    return {
        "problem": f"<image>{question.problem}",
        "answer": question.answer,
        "images": [{"bytes": render(question.scene), "path": f"{split}_{index}.png"}],
        "verifier": "shapes",
        "solution": solution(question),
        "facts": json.dumps(_facts(kind, question)),
        "kind": kind,
        "difficulty": level,
    }


def solution(question: Question) -> str:
    """The ideal response: it states the facts, then concludes."""
    return f"<think> {' '.join(question.seen)} </think> \\boxed{{{question.answer}}}"


def preferred_answer(seed: int, problem: str, options: Sequence[str]) -> str:
    """The answer that the shortcut of this world favours for a question text."""
    return options[zlib.crc32(f"{seed}: {problem}".encode()) % len(options)]


def _facts(kind: str, question: Question) -> dict[str, Any]:
    scene = question.scene
    return {
        "kind": kind,
        "seen": list(question.seen),
        "grid": [scene.rows, scene.columns],
        "objects": {item.cell: str(item.look) for item in scene.objects},
    }


def _check(split: str, prior: float, kinds: Sequence[str], levels: Sequence[int]) -> None:
    if split not in SPLITS:
        raise ValueError(f"shapes world: unknown split {split!r}; give one of {', '.join(SPLITS)}")
    if not 0 <= prior <= 1:
        raise ValueError(f"shapes world: prior is {prior}, but a probability lies in [0, 1]")
    for name, given, known in (("kinds", kinds, tuple(KINDS)), ("levels", levels, LEVELS)):
        unknown = [value for value in given if value not in known]
        if unknown or not given:
            raise ValueError(f"shapes world: {name} is {list(given)}; choose from {list(known)}")
