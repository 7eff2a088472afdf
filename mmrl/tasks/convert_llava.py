"""Conversations as LLaVA writes them, ``{"image": ..., "conversations": [{"from": ..., "value": ...}]}``.

The same with ``messages`` of ``role`` and ``content`` is read too. A human turn becomes the question of a row
and the reply to it the answer, which is also kept as a solution to imitate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.models.prompts import IMAGE
from mmrl.tasks.convert_entries import Entry, Images, Options, first_of, read_entries

ROLES = {"human": "human", "user": "human", "gpt": "reply", "assistant": "reply"}


def entries(spec: Path) -> Iterator[Entry]:
    """The conversations of a file."""
    return read_entries(spec)


def rows(entry: Mapping[str, Any], images: Images, options: Options) -> list[dict[str, Any]]:
    """A row for each human turn, or for the first; earlier turns stand before the question.

    Raises ValueError for turns that are no conversation, images that are not there, or a video.
    """
    turns = _turns(entry)
    named = first_of(entry, ("image", "images"))
    named = named if isinstance(named, list) else [] if named is None else [named]
    pictures = [images.picture(image) for image in named]
    questions = [text for role, text in turns if role == "human"]
    replies = [text for role, text in turns if role == "reply"]
    if any(IMAGE in reply for reply in replies):
        raise ValueError(f"a reply holds {IMAGE}; only questions may show an image")
    if pictures and not any(IMAGE in question for question in questions):
        questions[0] = IMAGE * len(pictures) + questions[0]
    marks = sum(question.count(IMAGE) for question in questions)
    if marks != len(pictures):
        raise ValueError(f"{len(pictures)} images but {marks} placeholders in the questions")
    last = len(questions) if options.turns == "each" else 1
    return [
        _row(questions[: k + 1], replies[: k + 1], pictures, options.verifier)
        for k in range(min(last, len(replies)))
    ]


def _row(
    questions: Sequence[str], replies: Sequence[str], pictures: Sequence[Any], verifier: str
) -> dict[str, Any]:
    before = [
        f"Question: {question}\nAnswer: {reply}\n\n"
        for question, reply in zip(questions[:-1], replies[:-1], strict=True)
    ]
    problem = "".join([*before, f"Question: {questions[-1]}"]) if before else questions[-1]
    return {
        "problem": problem,
        "answer": replies[-1],
        "images": list(pictures[: problem.count(IMAGE)]),
        "verifier": verifier,
        "solution": replies[-1],
        "kind": "conversation",
    }


def _turns(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a conversation, which is a human's turn, a reply, and so on."""
    if entry.get("video"):
        raise ValueError("it is about a video; only images are read")
    told = first_of(entry, ("conversations", "messages"))
    if not isinstance(told, list):
        raise ValueError('no list \'conversations\' of {"from": ..., "value": ...}')
    turns = [_turn(turn) for turn in told]
    turns = [turn for turn in turns if turn[0] != "system"]
    if len(turns) < 2 or any(role != ("human", "reply")[k % 2] for k, (role, _) in enumerate(turns)):
        raise ValueError("its turns are not a question, a reply, and so on")
    return turns


def _turn(turn: Any) -> tuple[str, str]:
    role = first_of(turn, ("from", "role")) if isinstance(turn, Mapping) else None
    text = first_of(turn, ("value", "content")) if isinstance(turn, Mapping) else None
    if not isinstance(text, str) or not isinstance(role, str):
        raise ValueError("a turn without a role or a text")
    if "<video>" in text:
        raise ValueError("it is about a video; only images are read")
    if role != "system" and role not in ROLES:
        raise ValueError(f"a turn of {role[:40]!r}; there are {', '.join(ROLES)} and system")
    return ROLES.get(role, role), text.strip()
