"""Inspection of a data set: statistics of every row, from headers of images and not their pixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mmrl.data import tfds
from mmrl.data.columnar import schema_of
from mmrl.data.examples import Example, example
from mmrl.data.folders import SUFFIXES
from mmrl.data.pipeline import PromptFormat
from mmrl.data.sources import FIRST_ROWS, Source
from mmrl.data.validation import (
    EVERY,
    Broken,
    Budget,
    check_buckets,
    exceeded_budgets,
    merge_budgets,
    prompt_need,
    reason,
)
from mmrl.models.images import image_size
from mmrl.models.processor import SPECIAL_TOKENS, Processor
from mmrl.models.prompts import IMAGE, budget, check_placeholders, measure, messages, spelt
from mmrl.sample import Sample

LONGEST_ANSWER = 60  # characters of an answer that is kept to be counted; of a longer one, its start
LONGEST_TYPE = 60  # characters of a column's type


class Column(NamedTuple):
    """A column of a data set's files."""

    name: str
    type: str
    used_as: str  # its name in the schema; "" if it is ignored


class Repeated(NamedTuple):
    """A row whose problem and images are those of an earlier one."""

    id: str
    first: str
    same_answer: bool


class SpelledToken(NamedTuple):
    """A control token whose name stands in texts of rows, where it is text like any other."""

    token: str
    rows: int
    first: str  # id of the first of them


@dataclass(frozen=True)
class AnswerStats:
    """The answers of the rows that one verifier grades."""

    rows: int
    answers: int  # different ones
    commonest: str
    share: float  # of rows that have the commonest: what answering so always is worth


class _Usable(NamedTuple):
    """A row that can be used."""

    row: int
    id: str
    verifier: str
    answer: str  # as it is counted
    lengths: tuple[int, int, int]  # characters of problem and answer, images
    sizes: list[tuple[int, int]]
    need: tuple[int, int]  # tokens and patch slots
    exceeded: list[Budget]
    spelt: Sequence[str]
    digest: bytes


@dataclass(frozen=True)
class Findings:
    """The statistics of a source. Numbers are of the usable rows, but for ``rows``."""

    name: str
    rows: int  # looked at
    of: int  # rows that the data set has
    columns: tuple[Column, ...]
    broken: tuple[Broken, ...]
    repeated: tuple[Repeated, ...]
    spelt: tuple[SpelledToken, ...]
    spelling: int  # rows in which at least one control token is spelt
    verifiers: dict[str, AnswerStats]  # by the verifier that the column names, most rows first
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


def inspect_rows(
    source: Source,
    prompt: tuple[Processor, PromptFormat] | None = None,
    *,
    probe: Callable[[Sample], Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    of: int | None = None,
) -> Findings:
    """Statistics of every row of a source.

    Args:
      source: a data set, or a view of some of its rows.
      prompt: how prompts are made; None: tokens are not counted.
      probe: raises ValueError for a row that its verifier cannot grade.
      progress: called now and then, and at the end, with rows looked at and rows to look at.
      of: rows of the whole data set, where the source is a view.
    """
    if prompt:
        check_buckets(*prompt)
    usable: list[_Usable] = []
    broken: list[Broken] = []
    for row in range(len(source)):
        name = source.id(row)
        try:
            sample = source[row]
            if probe:
                probe(sample)
            usable.append(_inspect(sample, row, prompt))
        except Exception as error:  # whatever a row makes a parser raise, that row is broken and no other
            broken.append(Broken(row, name, reason(error, name)))
        if progress and ((row + 1) % EVERY == 0 or row + 1 == len(source)):
            progress(row + 1, len(source))
    return _findings(source, usable, broken, prompt, len(source) if of is None else of)


def _inspect(sample: Sample, row: int, prompt: tuple[Processor, PromptFormat] | None) -> _Usable:
    sizes = [image_size(image, f"{sample.id}, image {k}") for k, image in enumerate(sample.images)]
    if prompt:
        processor, form = prompt
        need = measure(processor, messages(sample.problem, form.system, form.suffix), sizes, sample.id)
        exceeded = exceeded_budgets(prompt_need(sample, sizes, processor, form), form)
        control: Sequence[str] = tuple(processor.control)
    else:
        check_placeholders(sample.problem.count(IMAGE), len(sizes), sample.id)
        need, exceeded, control = (0, 0), [], SPECIAL_TOKENS
    return _Usable(
        row,
        sample.id,
        sample.verifier,
        _answer_key(sample.answer),
        (len(sample.problem), len(sample.answer), len(sizes)),
        sizes,
        need,
        exceeded,
        spelt((sample.problem, sample.solution or "", *sample.turns), control),
        _digest(sample),
    )


def _answer_key(answer: str) -> str:
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
    source: Source,
    usable: list[_Usable],
    broken: list[Broken],
    prompt: tuple[Processor, PromptFormat] | None,
    of: int,
) -> Findings:
    lengths = np.array([one.lengths for one in usable], np.int64).reshape(-1, 3)
    needs = np.array([one.need for one in usable], np.int64).reshape(-1, 2)
    buckets = (prompt[1].prompt_buckets, prompt[1].patch_buckets) if prompt else ((), ())
    # Where no buckets are given, a run makes them large enough.
    limits = [
        budget(sizes) or most for sizes, most in zip(buckets, needs.max(axis=0, initial=1), strict=True)
    ]
    first: dict[bytes, _Usable] = {}
    repeated = []
    answers: dict[str, Counter[str]] = {}
    spelled: dict[str, list[str]] = {}
    for one in usable:
        earlier = first.setdefault(one.digest, one)
        if earlier is not one:
            repeated.append(Repeated(one.id, earlier.id, earlier.answer == one.answer))
        answers.setdefault(one.verifier, Counter())[one.answer] += 1
        for token in one.spelt:
            spelled.setdefault(token, []).append(one.id)
    verifiers = {}
    for name, counts in sorted(answers.items(), key=lambda item: -item[1].total()):
        commonest, count = counts.most_common(1)[0]
        verifiers[name] = AnswerStats(counts.total(), len(counts), commonest, count / counts.total())
    return Findings(
        name=source.name,
        rows=len(source),
        of=of,
        columns=columns_of(source),
        broken=tuple(broken),
        repeated=tuple(repeated),
        spelt=tuple(SpelledToken(token, len(ids), ids[0]) for token, ids in spelled.items()),
        spelling=sum(bool(one.spelt) for one in usable),
        verifiers=verifiers,
        usable=np.array([one.row for one in usable], np.int64),
        problem_length=lengths[:, 0],
        answer_length=lengths[:, 1],
        images=lengths[:, 2],
        sizes=np.array([size for one in usable for size in one.sizes], np.int64).reshape(-1, 2),
        tokens=needs[:, 0] if prompt else None,
        slots=needs[:, 1] if prompt else None,
        budget=(int(limits[0]), int(limits[1])) if prompt else (0, 0),
        over_budget=np.array([one.row for one in usable if one.exceeded], np.int64),
        budgets=merge_budgets(budget for one in usable for budget in one.exceeded),
    )


def choose_examples(source: Source, found: Findings, count: int) -> list[Example]:
    """So many of the usable rows, evenly spread over the source."""
    places = np.unique(np.linspace(0, len(found.usable) - 1, min(count, len(found.usable))).astype(int))
    return [example(source[int(found.usable[place])]) for place in places]


def columns_of(source: Source) -> tuple[Column, ...]:
    """All columns of the files, in their order; of JSONL and CSV those that the first rows have."""
    files = source.table.files
    suffix = files[0].suffix if files else ""
    if suffix in (".parquet", ".arrow"):
        fields = [field for file in files for field in schema_of(file)]
        types = {field.name: str(field.type).replace("element: ", "") for field in fields}
    elif suffix == ".csv" or suffix in SUFFIXES:
        types = _types_of_first_rows(source)
    else:
        builder = tfds.directory_builder(files[0].parent)
        names = tfds.feature_names(builder)
        types = {name: " ".join(str(builder.info.features[name]).split()) for name in names}
    used = {column: name for name, column in source.columns.items()}
    return tuple(
        Column(
            name, kind if len(kind) <= LONGEST_TYPE else kind[: LONGEST_TYPE - 3] + "...", used.get(name, "")
        )
        for name, kind in types.items()
    )


def _types_of_first_rows(source: Source) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for index in range(min(source.table.length, FIRST_ROWS)):
        try:
            row = source.table.row(index)
        except ValueError:  # a broken row, which is listed as such
            continue
        for name, value in row.items():
            found.setdefault(name, {})[_type_name(value)] = None
    return {name: " or ".join(kinds) for name, kinds in found.items()}


def _type_name(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "number", float: "number", dict: "object"}
    if isinstance(value, list):
        inner = dict.fromkeys(map(_type_name, value))
        return f"list of {' or '.join(inner)}" if inner else "empty list"
    return names.get(type(value), "null")
