"""Look through a data set before anything is computed, reading the headers of images only."""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.data.pipeline import PromptFormat, check_demonstration
from mmrl.data.sources import Source
from mmrl.models.images import image_size
from mmrl.models.processor import Processor
from mmrl.models.prompts import measure, messages

SHOWN = 5  # problems quoted in an error


@dataclass(frozen=True)
class Report:
    """What a look through a source found."""

    rows: int  # looked at
    problems: tuple[str, ...]  # one message for each row that cannot be used
    over_budget: int  # rows that need more than the largest buckets, as they stand


def inspect(
    source: Source,
    processor: Processor,
    form: PromptFormat,
    *,
    rows: int | None = None,
    with_solutions: bool = False,
) -> Report:
    """Check the first ``rows`` rows (None: all): columns, placeholders, image headers, length of the prompt.

    ``with_solutions`` also asks for a solution or turns in each. Pixels are not decoded and turns not played,
    so damage behind a header shows only when the row is drawn.
    """
    count = len(source) if rows is None else min(rows, len(source))
    problems, over = [], 0
    for index in range(count):
        try:
            sample = source[index]
            sizes = [image_size(image, f"{sample.id}, image {k}") for k, image in enumerate(sample.images)]
            conversation = messages(sample.problem, form.system, form.suffix)
            tokens, slots = measure(processor, conversation, sizes, sample.id)
            if with_solutions:
                check_demonstration(sample, processor)
        except ValueError as error:
            problems.append(str(error))
            continue
        over += tokens > max(form.prompt_buckets) or slots > max(form.patch_buckets)
    return Report(count, tuple(problems), over)


def validate(
    source: Source,
    processor: Processor,
    form: PromptFormat,
    *,
    rows: int | None = None,
    with_solutions: bool = False,
) -> Report:
    """`inspect`; ValueError if a row cannot be used, or if all are over budget and images are not resized."""
    wrong = [size for size in form.patch_buckets if size % processor.slots]
    if wrong:
        raise ValueError(
            f"patch bucket {wrong[0]} is not a multiple of {processor.slots}, the slots of a window"
        )
    report = inspect(source, processor, form, rows=rows, with_solutions=with_solutions)
    if report.problems:
        shown = "\n  ".join(report.problems[:SHOWN])
        raise ValueError(
            f"{source.name}: {len(report.problems)} of {report.rows} rows cannot be used:\n  {shown}"
        )
    if report.over_budget == report.rows and form.overlong != "resize":
        raise ValueError(
            f"{source.name}: all {report.rows} prompts looked at are over budget. Raise the largest prompt or"
            ' patch bucket, or set overlong="resize".'
        )
    return report
