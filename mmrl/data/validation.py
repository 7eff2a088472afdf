"""Look through a data set before anything is computed, reading the headers of images only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmrl.data.pipeline import PromptFormat, solution_tokens
from mmrl.data.sources import Source
from mmrl.models.images import image_size
from mmrl.models.processor import Processor
from mmrl.models.prompts import measure, messages, text_ids
from mmrl.sample import Sample

SHOWN = 5  # rows quoted in an error
REASON = 300  # characters of a reason
EVERY = 256  # rows between two reports of progress


@dataclass(frozen=True)
class Broken:
    """A row that cannot be used."""

    row: int  # index in the source looked at
    id: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What a look through a source found."""

    rows: int  # looked at
    broken: tuple[Broken, ...]
    over_budget: tuple[int, ...]  # rows that need more than the largest buckets, resized if that is the rule
    difficulty: tuple[tuple[int, float], ...] = ()  # of the rows that have one, by row


def inspect(
    source: Source,
    processor: Processor,
    form: PromptFormat,
    *,
    rows: int | None = None,
    with_solutions: bool = False,
    longest: int | None = None,
    start: int = 0,
    stride: int = 1,
    probe: Callable[[Sample], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check rows: columns, placeholders, image headers, length of the prompt.

    Pixels are not decoded and turns not played, so damage behind a header, or a replay that does not fit,
    shows only when the row is drawn.

    Args:
      source, processor, form: what is to be used, and how.
      rows: how many rows of the source to look at; None: all.
      with_solutions: also ask for a solution or turns in each.
      longest: tokens of a solution, or of all turns together, beyond which a row is over budget.
      start, stride: look at rows start, start + stride, ... only; `merged` puts such reports together.
      probe: raises ValueError if responses to a row could not be graded.
      progress: called now and then, and at the end, with rows looked at and rows to look at.

    Raises ValueError for a patch bucket that is not a whole number of windows.
    """
    _check_buckets(processor, form)
    looked = range(start, len(source) if rows is None else min(rows, len(source)), stride)
    broken: list[Broken] = []
    over: list[int] = []
    difficulty: list[tuple[int, float]] = []
    for count, row in enumerate(looked, 1):
        try:
            sample = source[row]
            if probe:
                probe(sample)
            if _over_budget(sample, processor, form, with_solutions, longest):
                over.append(row)
            if sample.difficulty is not None:
                difficulty.append((row, sample.difficulty))
        except Exception as error:  # whatever a row makes a parser raise, that row is broken and no other
            broken.append(Broken(row, source.id(row), reason(error, source.id(row))))
        if progress and (count % EVERY == 0 or count == len(looked)):
            progress(count, len(looked))
    return Report(len(looked), tuple(broken), tuple(over), tuple(difficulty))


def merged(reports: Sequence[Report]) -> Report:
    """Reports on different rows of one source as one."""
    broken = sorted((one for report in reports for one in report.broken), key=lambda one: one.row)
    over = sorted(row for report in reports for row in report.over_budget)
    difficulty = sorted(pair for report in reports for pair in report.difficulty)
    return Report(sum(report.rows for report in reports), tuple(broken), tuple(over), tuple(difficulty))


def usable(source: Source, report: Report, *, max_broken: float, overlong: str) -> Source:
    """The view of a source without broken rows and without those over budget.

    Args: ``report``, of all rows of this source; ``max_broken``, the share of rows that may be broken;
    ``overlong``, as in `PromptFormat`.

    Raises ValueError naming rows if more are broken, if ``overlong`` is "error" and one is over budget, or if
    nothing is left.
    """
    if len(report.broken) > max_broken * report.rows:
        raise ValueError(
            f"{_broken_rows(source, report)}\nMend or remove them, or raise the share that may be broken,"
            f" {max_broken:g}."
        )
    if overlong == "error" and report.over_budget:
        first = ", ".join(source.id(row) for row in report.over_budget[:SHOWN])
        raise ValueError(
            f"{source.name}: {len(report.over_budget)} of {report.rows} rows are over budget: {first}. Raise"
            ' the largest prompt or patch bucket, or set overlong="drop" or "resize".'
        )
    left_out = [*(one.row for one in report.broken), *report.over_budget]
    if len(left_out) >= len(source):
        raise _nothing_left(source, report)
    keep = np.ones(len(source), bool)
    keep[left_out] = False
    return source.choose(np.flatnonzero(keep))


def _check_buckets(processor: Processor, form: PromptFormat) -> None:
    """Raises ValueError for a patch bucket that is not a whole number of windows."""
    wrong = [size for size in form.patch_buckets if size % processor.slots]
    if wrong:
        raise ValueError(
            f"patch bucket {wrong[0]} is not a multiple of {processor.slots}, the slots of a window"
        )


def _over_budget(
    sample: Sample, processor: Processor, form: PromptFormat, with_solutions: bool, longest: int | None
) -> bool:
    """Whether a row needs more than there is. Raises if it cannot be used."""
    sizes = [image_size(image, f"{sample.id}, image {k}") for k, image in enumerate(sample.images)]
    conversation = messages(sample.problem, form.system, form.suffix)
    written = _written(sample, processor) if with_solutions else 0

    def fits(processor: Processor) -> bool:
        tokens, slots = measure(processor, conversation, sizes, sample.id)
        return tokens <= max(form.prompt_buckets) and slots <= max(form.patch_buckets)

    if longest is not None and written > longest:
        return True
    return not fits(processor) and not (form.overlong == "resize" and fits(_seeing_least(processor)))


def _seeing_least(processor: Processor) -> Processor:
    """The processor with images as small as resizing to fit makes them: one token each, if shape allows."""
    token = (processor.image.patch * processor.image.merge) ** 2
    image = replace(processor.image, max_pixels=token, min_pixels=min(processor.image.min_pixels, token))
    return replace(processor, image=image)


def _written(sample: Sample, processor: Processor) -> int:
    """Tokens that a row demonstrates, without what its tools would answer."""
    if not sample.turns:
        return len(solution_tokens(sample, processor))
    return sum(len(text_ids(processor, turn, sample.id)) for turn in sample.turns)


def reason(error: Exception, name: str) -> str:
    """What is wrong, in so many characters and without the row's name."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    text = text.removeprefix(name).removeprefix(":").removeprefix(",").strip()
    return text if len(text) <= REASON else text[:REASON] + "..."


def _broken_rows(source: Source, report: Report) -> str:
    shown = "\n  ".join(f"{one.id}: {one.reason}" for one in report.broken[:SHOWN])
    return f"{source.name}: {len(report.broken)} of {report.rows} rows cannot be used:\n  {shown}"


def _nothing_left(source: Source, report: Report) -> ValueError:
    if report.broken:
        return ValueError(f"{_broken_rows(source, report)}\nThe others are over budget: no row is left.")
    return ValueError(
        f"{source.name}: all {report.rows} prompts looked at are over budget. Raise the largest prompt or"
        ' patch bucket, or set overlong="resize".'
    )
