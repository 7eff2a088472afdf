"""What is in a data set, in numbers: one look at every row, at headers of images and not at their pixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mmrl.data.inspection_columns import Column, columns_of
from mmrl.data.pipeline import PromptFormat
from mmrl.data.sources import Source
from mmrl.data.validation import (
    EVERY,
    Broken,
    Budget,
    check_buckets,
    exceeded,
    needed,
    reason,
    together,
)
from mmrl.models.images import image_size
from mmrl.models.processor import SPECIAL_TOKENS, Processor
from mmrl.models.prompts import IMAGE, budget, check_placeholders, measure, messages, spelt
from mmrl.sample import Sample

LONGEST_ANSWER = 60  # characters of an answer that is kept to be counted; of a longer one, its start


class Prompt(NamedTuple):
    """How prompts are made and measured."""

    processor: Processor
    form: PromptFormat


class Repeated(NamedTuple):
    """A row whose problem and images are those of an earlier one."""

    id: str
    first: str
    same_answer: bool


class Spelt(NamedTuple):
    """A control token whose name stands in texts of rows, where it is text like any other."""

    token: str
    rows: int
    first: str  # id of the first of them


@dataclass(frozen=True)
class Group:
    """The rows that one verifier grades."""

    rows: int
    answers: int  # different ones
    commonest: str  # the answer that most rows have
    share: float  # of rows that have it: what answering so always is worth


@dataclass(frozen=True)
class Findings:
    """What a look through a source found. Numbers are of the usable rows, but for ``rows``."""

    name: str
    rows: int  # looked at
    of: int  # rows that the data set has
    columns: tuple[Column, ...]
    broken: tuple[Broken, ...]
    repeated: tuple[Repeated, ...]
    spelt: tuple[Spelt, ...]
    spelling: int  # rows in which at least one control token is spelt
    verifiers: dict[str, Group]  # by what the column says, most rows first
    usable: Int64[np.ndarray, "n"]  # rows of the source
    problem_length: Int64[np.ndarray, "n"]  # characters
    answer_length: Int64[np.ndarray, "n"]
    images: Int64[np.ndarray, "n"]  # of a row
    sizes: Int64[np.ndarray, "i 2"]  # (height, width) of each image
    tokens: Int64[np.ndarray, "n"] | None  # of a prompt; None without a processor
    slots: Int64[np.ndarray, "n"] | None  # patch slots of a prompt
    budget: tuple[int, int]  # tokens and slots of the largest buckets; 0 without a processor
    over_budget: Int64[np.ndarray, "k"]  # usable rows that a run leaves out, as they need more
    budgets: tuple[Budget, ...]  # that these are over


@dataclass
class _Tally:
    """What the rows looked at so far were like."""

    usable: list[int] = field(default_factory=list)
    lengths: list[tuple[int, int, int]] = field(default_factory=list)  # problem, answer, images
    sizes: list[tuple[int, int]] = field(default_factory=list)
    needs: list[tuple[int, int]] = field(default_factory=list)
    over: list[int] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    answers: dict[str, Counter[str]] = field(default_factory=dict)  # by verifier
    seen: dict[bytes, tuple[str, str]] = field(default_factory=dict)  # digest -> id and answer
    broken: list[Broken] = field(default_factory=list)
    repeated: list[Repeated] = field(default_factory=list)
    spelt: dict[str, list[str]] = field(default_factory=dict)  # control token -> ids


def look(
    source: Source,
    prompt: Prompt | None = None,
    *,
    probe: Callable[[Sample], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    of: int | None = None,
) -> Findings:
    """Look at every row of a source.

    Args:
      source: a data set, or a view of some of its rows.
      prompt: how prompts are made; None: tokens are not counted.
      probe: raises ValueError for a row that its verifier cannot grade.
      progress: called now and then, and at the end, with rows looked at and rows to look at.
      of: rows of the whole data set, where the source is a view.
    """
    if prompt:
        check_buckets(prompt.processor, prompt.form)
    tally = _Tally()
    control = tuple(prompt.processor.control) if prompt else SPECIAL_TOKENS
    for row in range(len(source)):
        name = source.id(row)
        try:
            sample = source[row]
            if probe:
                probe(sample)
            sizes = [image_size(image, f"{name}, image {k}") for k, image in enumerate(sample.images)]
            need = _need(sample, sizes, prompt)
            over = exceeded(needed(sample, sizes, *prompt), prompt.form) if prompt else []
        except Exception as error:  # whatever a row makes a parser raise, that row is broken and no other
            tally.broken.append(Broken(row, name, reason(error, name)))
        else:
            _count(tally, row, sample, sizes, need)
            tally.over += [row] if over else []
            tally.budgets += over
            for token in spelt((sample.problem, sample.solution or "", *sample.turns), control):
                tally.spelt.setdefault(token, []).append(name)
        if progress and ((row + 1) % EVERY == 0 or row + 1 == len(source)):
            progress(row + 1, len(source))
    limits = (prompt.form.prompt_buckets, prompt.form.patch_buckets) if prompt else None
    return _findings(source, tally, limits, len(source) if of is None else of)


def _need(sample: Sample, sizes: Sequence[tuple[int, int]], prompt: Prompt | None) -> tuple[int, int]:
    """Tokens and patch slots of a prompt; (0, 0) where nobody can tell. Raises ValueError if it is none."""
    if prompt:
        conversation = messages(sample.problem, prompt.form.system, prompt.form.suffix)
        return measure(prompt.processor, conversation, sizes, sample.id)
    check_placeholders(sample.problem.count(IMAGE), len(sizes), sample.id)
    return 0, 0


def _count(
    tally: _Tally, row: int, sample: Sample, sizes: Sequence[tuple[int, int]], need: tuple[int, int]
) -> None:
    tally.usable.append(row)
    tally.lengths.append((len(sample.problem), len(sample.answer), len(sizes)))
    tally.sizes.extend(sizes)
    tally.needs.append(need)
    answer = _key(sample.answer)
    tally.answers.setdefault(sample.verifier, Counter())[answer] += 1
    digest = _digest(sample)
    if digest in tally.seen:
        first, its_answer = tally.seen[digest]
        tally.repeated.append(Repeated(sample.id, first, its_answer == answer))
    else:
        tally.seen[digest] = (sample.id, answer)


def _key(answer: str) -> str:
    """The answer, or of a long one its start and what tells it from others."""
    if len(answer) <= LONGEST_ANSWER:
        return answer
    mark = hashlib.blake2b(answer.encode(), digest_size=4).hexdigest()
    return f"{answer[:LONGEST_ANSWER]}... ({len(answer)} characters, {mark})"


def _digest(sample: Sample) -> bytes:
    """Equal for equal problems with equal images, by bytes or by path."""
    digest = hashlib.blake2b(sample.problem.encode(), digest_size=16)
    for image in sample.images:
        part = image if isinstance(image, bytes) else image.encode()
        digest.update(f"\0{type(image).__name__}{len(part)}\0".encode())
        digest.update(part)
    return digest.digest()


def _findings(
    source: Source, tally: _Tally, buckets: tuple[Sequence[int], Sequence[int]] | None, of: int
) -> Findings:
    lengths = np.array(tally.lengths, np.int64).reshape(-1, 3)
    needs = np.array(tally.needs, np.int64).reshape(-1, 2)
    # Where no buckets are given, a run makes them large enough.
    longest = needs.max(axis=0, initial=1).tolist()
    limits = [budget(sizes) or most for sizes, most in zip(buckets or (), longest, strict=False)]
    groups = {name: _group(answers) for name, answers in tally.answers.items()}
    return Findings(
        name=source.name,
        rows=len(source),
        of=of,
        columns=columns_of(source),
        broken=tuple(tally.broken),
        repeated=tuple(tally.repeated),
        spelt=tuple(Spelt(token, len(ids), ids[0]) for token, ids in tally.spelt.items()),
        spelling=len(set().union(*tally.spelt.values())),
        verifiers=dict(sorted(groups.items(), key=lambda item: -item[1].rows)),
        usable=np.array(tally.usable, np.int64),
        problem_length=lengths[:, 0],
        answer_length=lengths[:, 1],
        images=lengths[:, 2],
        sizes=np.array(tally.sizes, np.int64).reshape(-1, 2),
        tokens=needs[:, 0] if buckets else None,
        slots=needs[:, 1] if buckets else None,
        budget=(limits[0], limits[1]) if buckets else (0, 0),
        over_budget=np.array(tally.over, np.int64),
        budgets=together(tally.budgets),
    )


def _group(answers: Counter[str]) -> Group:
    rows = answers.total()
    commonest, count = answers.most_common(1)[0]
    return Group(rows, len(answers), commonest, count / rows)
