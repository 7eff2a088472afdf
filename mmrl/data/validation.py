"""Validation of a data set before anything is computed, by the headers of images only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from mmrl import hosts
from mmrl.data.pipeline import PromptFormat, solution_tokens
from mmrl.data.sources import Source
from mmrl.models.images import image_size
from mmrl.models.processor import Processor
from mmrl.models.prompts import chat_messages, measure, text_ids
from mmrl.sample import Sample

T = TypeVar("T")
SHOWN = 5  # rows quoted in an error
REASON = 300  # characters of a reason
EVERY = 256  # rows between two reports of progress


class Broken(NamedTuple):
    """A row that cannot be used."""

    row: int  # index in the source looked at
    id: str
    reason: str


class Budget(NamedTuple):
    """A budget that rows are over."""

    what: str  # that it is of: "tokens", "patch slots"
    key: str  # of the config, that sets it
    limit: int
    rows: int  # that need more
    least: int  # that holds them all

    def __str__(self) -> str:
        over = f"{self.rows} need more {self.what} than config.{self.key} has"
        return f"{over}, {self.limit} ({self.least} holds all)"


def merge_budgets(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """Budgets of different rows, each once."""
    found: dict[str, Budget] = {}
    for budget in budgets:
        seen = found.get(budget.key, budget._replace(rows=0))
        rows, least = budget.rows + seen.rows, max(seen.least, budget.least)
        found[budget.key] = budget._replace(rows=rows, least=least)
    return tuple(found[key] for key in sorted(found, reverse=True))


@dataclass(frozen=True)
class Report:
    """The result of a look through a source."""

    rows: int  # looked at
    broken: tuple[Broken, ...]
    over_budget: tuple[int, ...]  # rows that need more than the largest buckets, resized if that is the rule
    difficulty: tuple[tuple[int, float], ...] = ()  # of the rows that have one, by row
    budgets: tuple[Budget, ...] = ()  # that those rows are over
    lengths: tuple[tuple[int, int], ...] = ()  # tokens and patch slots of the prompts that can be used


def inspect(
    source: Source,
    processor: Processor,
    form: PromptFormat,
    *,
    longest: int | None = None,
    probe: Callable[[Sample], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check every row: columns, placeholders, image headers, length of the prompt.

    The processes share the rows, and all of them have the report of the whole. Pixels are not decoded and
    turns not played, so damage behind a header, or a replay that does not fit, shows only when the row is
    drawn.

    Args:
      longest: tokens of a solution, or of all turns together, beyond which a row is over budget; one of the
        two is then asked for. None: neither is.
      probe: raises ValueError if responses to a row could not be graded.
      progress: called now and then, and at the end, with rows looked at and rows to look at.

    Raises ValueError for a patch bucket that is not a multiple of a window's slots.
    """
    check_buckets(processor, form)

    def examine(row: int, sample: Sample) -> tuple[int, float | None, tuple[int, int], list[Budget]]:
        sizes = [image_size(image, f"{sample.id}, image {k}") for k, image in enumerate(sample.images)]
        written = 0 if longest is None else _demonstration_length(sample, processor)
        _, need = prompt_need(sample, sizes, processor, form)
        over = exceeded_budgets(need, form)
        if longest is not None and written > longest:
            over.append(Budget("tokens of a solution", "cold_start.max_tokens", longest, 1, written))
        return row, sample.difficulty, need, over

    own = range(jax.process_index(), len(source), jax.process_count())
    parts = hosts.gather(examine_rows(source, own, examine, probe=probe, progress=progress))
    found = sorted((row for rows, _ in parts for row in rows), key=itemgetter(0))
    return Report(
        rows=len(source),
        broken=tuple(sorted(Broken(*row) for _, rows in parts for row in rows)),
        over_budget=tuple(row for row, _, _, over in found if over),
        difficulty=tuple((row, value) for row, value, _, _ in found if value is not None),
        budgets=merge_budgets(Budget(*budget) for *_, over in found for budget in over),
        lengths=tuple(sorted((need[0], need[1]) for _, _, need, over in found if not over)),
    )


def examine_rows(
    source: Source,
    rows: Sequence[int],
    examine: Callable[[int, Sample], T],
    *,
    probe: Callable[[Sample], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[T], list[Broken]]:
    """The results of ``examine`` for those rows of a source that can be used, and the rows that cannot.

    ``probe`` and ``progress``: as for `inspect`.
    """
    results, broken = [], []
    for count, row in enumerate(rows, 1):
        try:
            sample = source[row]
            if probe:
                probe(sample)
            results.append(examine(row, sample))
        except Exception as error:  # whatever a row makes a parser raise, that row is broken and no other
            broken.append(Broken(row, source.id(row), reason(error, source.id(row))))
        if progress and (count % EVERY == 0 or count == len(rows)):
            progress(count, len(rows))
    return results, broken


def keep_usable(source: Source, report: Report, *, max_broken: float, overlong: str) -> Source:
    """The view of a source without broken rows and without those over budget.

    Args: ``report``, of all rows of this source; ``max_broken``, the share of rows that may be broken;
    ``overlong``, as in `PromptFormat`.

    Raises ValueError naming rows if more are broken, if ``overlong`` is "error" and one is over budget, or if
    nothing is left.
    """
    listed = "\n  ".join(f"{row.id}: {row.reason}" for row in report.broken[:SHOWN])
    broken = f"{source.name}: {len(report.broken)} of {report.rows} rows cannot be used:\n  {listed}"
    if len(report.broken) > max_broken * report.rows:
        raise ValueError(
            f"{broken}\nFix or remove them, or raise the share that may be broken,"
            f" config.data.max_broken={max_broken:g}."
        )
    if overlong == "error" and report.over_budget:
        first = ", ".join(source.id(row) for row in report.over_budget[:SHOWN])
        raise ValueError(
            f"{source.name}: {len(report.over_budget)} of {report.rows} rows are over budget: {first}."
            f"{_budget_fix(report, 'drop or resize')}"
        )
    keep = np.ones(len(source), bool)
    keep[[*(row.row for row in report.broken), *report.over_budget]] = False
    if not keep.any() and report.broken:
        raise ValueError(f"{broken}\nThe others are over budget: no row is left.")
    if not keep.any():
        raise ValueError(
            f"{source.name}: all {report.rows} prompts looked at are over budget."
            f"{_budget_fix(report, 'resize')}"
        )
    return source.choose(np.flatnonzero(keep))


def check_buckets(processor: Processor, form: PromptFormat) -> None:
    """Raises ValueError for a patch bucket that is not a whole number of windows."""
    wrong = [size for size in form.patch_buckets if size % processor.slots]
    if wrong:
        raise ValueError(
            f"patch bucket {wrong[0]} is not a multiple of {processor.slots}, the slots of a window: change"
            " it in config.data.patch_buckets"
        )


def _demonstration_length(sample: Sample, processor: Processor) -> int:
    """Tokens of a row's turns, without what its tools would answer, or of its solution."""
    if sample.turns:
        return sum(len(text_ids(processor, turn, sample.id)) for turn in sample.turns)
    return len(solution_tokens(sample, processor))


def prompt_need(
    sample: Sample, sizes: Sequence[tuple[int, int]], processor: Processor, form: PromptFormat
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Tokens and patch slots of a prompt with images of these (height, width): as it is, and as it is used.

    These differ where ``form.overlong`` resizes images and the prompt is over budget: it then uses at most
    the budget if that helps, and what it needs with the smallest images if not. Raises ValueError naming the
    row if it is no prompt.
    """
    conversation = chat_messages(sample.problem, form.system, form.suffix)
    need = measure(processor, conversation, sizes, sample.id)
    if form.overlong == "resize" and exceeded_budgets(need, form):
        least = measure(_seeing_least(processor), conversation, sizes, sample.id)
        if exceeded_budgets(least, form):
            return need, least
        return need, (_within(need[0], form.prompt_buckets), _within(need[1], form.patch_buckets))
    return need, need


def _within(size: int, buckets: Sequence[int]) -> int:
    return min(size, max(buckets, default=size))


def exceeded_budgets(need: tuple[int, int], form: PromptFormat) -> list[Budget]:
    """The budgets that one prompt is over, which needs so many tokens and patch slots."""
    found = (
        ("tokens", "data.prompt_buckets", form.prompt_buckets, need[0]),
        ("patch slots", "data.patch_buckets", form.patch_buckets, need[1]),
    )
    return [
        Budget(what, key, max(buckets), 1, size)
        for what, key, buckets, size in found
        if buckets and size > max(buckets)
    ]


def _seeing_least(processor: Processor) -> Processor:
    """The processor with images as small as resizing to fit makes them: a token or tile, if shape allows."""
    image = processor.image
    token = (image.patch * image.merge) ** 2
    return replace(processor, image=image.limited(min(image.min_pixels, token), token))


def reason(error: Exception, name: str) -> str:
    """The message of an error, cut at `REASON` characters and without the row's name."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    text = text.removeprefix(name).removeprefix(":").removeprefix(",").strip()
    return text if len(text) <= REASON else text[:REASON] + "..."


def _budget_fix(report: Report, rules: str) -> str:
    """The budgets that rows are over, what would hold them, and what else could be done."""
    over = "".join(f" {budget}." for budget in report.budgets)
    other = f"lower config.data.max_pixels, or set config.data.overlong as {rules}"
    return f"{over} Raise what is too small, {other}."
