"""Inspection of a data set: statistics of every row, by the headers of images, and a report of them.

The report is text for a terminal or one page, which has no script, fetches nothing, and escapes all of the
data's text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mmrl.data import tfds
from mmrl.data.columnar import schema_of
from mmrl.data.examples import Example, encode_picture, example, printable
from mmrl.data.folders import SUFFIXES
from mmrl.data.pipeline import PromptFormat
from mmrl.data.sources import FIRST_ROWS, Source
from mmrl.data.validation import (
    Broken,
    Budget,
    check_buckets,
    examine_rows,
    exceeded_budgets,
    merge_budgets,
    prompt_need,
)
from mmrl.models.images import image_size
from mmrl.models.processor import SPECIAL_TOKENS, Processor
from mmrl.models.prompts import IMAGE, check_placeholders, largest_bucket, spelt
from mmrl.sample import Sample
from mmrl.terminal import table_lines

LONGEST_ANSWER = 60  # characters of an answer that is kept to be counted; of a longer one, its start
LONGEST_TYPE = 60  # characters of a column's type
LISTED = 20  # rows of a list of broken or repeated rows
BINS = 14
BAR = 40  # characters of the longest bar
_VARIES = re.compile(r"\S*/\S*|\d+")  # of a reason, between rows that are broken alike: paths and numbers
_QUANTILES = ("least", "median", "95 %", "most")
_FAINT, _BLUE, _RED = "#808080", "#3b6ea8", "#c04a2f"  # on light and dark pages alike


class Column(NamedTuple):
    """A column of a data set's files."""

    name: str
    type: str
    used_as: str  # its name in the schema; "" if it is ignored


class UsableRow(NamedTuple):
    """A row that can be used."""

    row: int  # of the source
    id: str
    verifier: str
    answer: str  # as it is counted
    problem_length: int  # characters
    answer_length: int
    sizes: list[tuple[int, int]]  # (height, width) of each image
    tokens: int  # of a prompt; 0 without a processor
    slots: int  # patch slots of a prompt
    exceeded: list[Budget]  # for which a run leaves it out
    spelt: Sequence[str]  # control tokens whose name stands in its texts, where it is text like any other
    digest: bytes  # equal for equal problems with equal images, by bytes or by path


@dataclass(frozen=True)
class Findings:
    """The statistics of a source."""

    name: str
    rows: int  # looked at
    of: int  # rows that the data set has
    columns: tuple[Column, ...]
    broken: tuple[Broken, ...]
    usable: tuple[UsableRow, ...]
    form: PromptFormat | None  # of the prompts; None: tokens are not counted

    def values(self, name: str) -> Int64[np.ndarray, "n"]:
        """A number of each usable row, by its name in `UsableRow`."""
        return np.array([getattr(row, name) for row in self.usable], np.int64)

    @property
    def sizes(self) -> Int64[np.ndarray, "i 2"]:
        """(height, width) of all images."""
        return np.array([size for row in self.usable for size in row.sizes], np.int64).reshape(-1, 2)

    @property
    def over_budget(self) -> tuple[int, ...]:
        """The usable rows that a run leaves out, as they need more than its largest buckets."""
        return tuple(row.row for row in self.usable if row.exceeded)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets that rows are over."""
        return merge_budgets(budget for row in self.usable for budget in row.exceeded)

    def repeated(self) -> list[tuple[UsableRow, UsableRow]]:
        """Rows whose problem and images are those of an earlier one, each with that one."""
        first: dict[bytes, UsableRow] = {}
        pairs = [(row, first.setdefault(row.digest, row)) for row in self.usable]
        return [(row, earlier) for row, earlier in pairs if earlier is not row]

    def spelt(self) -> dict[str, list[str]]:
        """The ids of rows in which each control token is spelt."""
        found: dict[str, list[str]] = {}
        for row in self.usable:
            for token in row.spelt:
                found.setdefault(token, []).append(row.id)
        return found

    def answers(self) -> dict[str, Counter[str]]:
        """Counts of the answers that each verifier grades, most rows first."""
        found: dict[str, Counter[str]] = {}
        for row in self.usable:
            found.setdefault(row.verifier, Counter())[row.answer] += 1
        return dict(sorted(found.items(), key=lambda item: -item[1].total()))


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
      prompt: how prompts are made; None: tokens are not counted.
      probe, progress: as for `mmrl.data.validation.inspect`.
      of: rows of the whole data set, where the source is a view.
    """
    if prompt:
        check_buckets(*prompt)
    usable, broken = examine_rows(
        source,
        range(len(source)),
        lambda row, sample: _inspect(sample, row, prompt),
        probe=probe,
        progress=progress,
    )
    return Findings(
        name=source.name,
        rows=len(source),
        of=len(source) if of is None else of,
        columns=columns_of(source),
        broken=tuple(broken),
        usable=tuple(usable),
        form=prompt[1] if prompt else None,
    )


def _inspect(sample: Sample, row: int, prompt: tuple[Processor, PromptFormat] | None) -> UsableRow:
    sizes = [image_size(image, f"{sample.id}, image {k}") for k, image in enumerate(sample.images)]
    if prompt:
        processor, form = prompt
        need, used = prompt_need(sample, sizes, processor, form)
        exceeded = exceeded_budgets(used, form)
        control: Sequence[str] = tuple(processor.control)
    else:
        check_placeholders(sample.problem.count(IMAGE), len(sizes), sample.id)
        need, exceeded, control = (0, 0), [], SPECIAL_TOKENS
    answer = sample.answer
    if len(answer) > LONGEST_ANSWER:  # its start, and what tells it from others
        mark = hashlib.blake2b(answer.encode(), digest_size=4).hexdigest()
        answer = f"{answer[:LONGEST_ANSWER]}... ({len(answer)} characters, {mark})"
    images = [i if isinstance(i, str) else hashlib.blake2b(i).digest() for i in sample.images]
    return UsableRow(
        row,
        sample.id,
        sample.verifier,
        answer,
        len(sample.problem),
        len(sample.answer),
        sizes,
        *need,
        exceeded,
        spelt((sample.problem, sample.solution or "", *sample.turns), control),
        hashlib.blake2b(repr([sample.problem, images]).encode(), digest_size=16).digest(),
    )


def choose_examples(source: Source, found: Findings, count: int) -> list[Example]:
    """So many of the usable rows, evenly spread over the source."""
    places = np.unique(np.linspace(0, len(found.usable) - 1, min(count, len(found.usable))).astype(int))
    return [example(source[found.usable[place].row]) for place in places]


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


# The report


class Histogram(NamedTuple):
    """Counts of values in bins: from an edge up to, but without, the next; the last has its end."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    unit: str
    integers: bool
    limit: int | None = None  # values beyond are too many

    def label(self, bin: int) -> str:
        """The values of a bin."""
        low, high = self.edges[bin], self.edges[bin + 1]
        if not self.integers:
            return f"{low:g} to {high:g}"
        return f"{low:.0f}" if high - low <= 1 else f"{low:.0f} to {high - 1:.0f}"

    def over(self, bin: int) -> bool:
        """True if the values of a bin are too many."""
        return self.limit is not None and self.edges[bin] > self.limit


class ReportPart(NamedTuple):
    """A part of a report; its text is `printable`."""

    title: str
    rows: Sequence[Sequence[str]]  # of a table; the first is its header
    note: str = ""
    histogram: Histogram | None = None


def report_parts(found: Findings) -> list[ReportPart]:
    """Findings as tables and histograms."""
    return [*_overview(found), *(_statistics(found) if len(found.usable) else ()), *_problems(found)]


def as_text(found: Findings) -> str:
    """The report for a terminal."""
    return "\n\n".join(_part_text(part) for part in report_parts(found))


def page(found: Findings, examples: Sequence[Example]) -> str:
    """The report as a page."""
    import jinja2

    parts: list[dict[str, Any]] = [
        {**part._asdict(), "drawing": part.histogram and _draw_histogram(part.histogram)}
        for part in report_parts(found)
    ]
    if len(found.sizes):
        parts.append({"title": "Width and height of images", "drawing": _draw_sizes(found.sizes)})
    pictures = [
        [
            {"width": picture.width, "height": picture.height, "src": _data_url(*encode_picture(picture))}
            for picture in example.pictures
        ]
        for example in examples
    ]
    template = Path(__file__).with_name("inspection.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=printable(found.name), parts=parts, examples=list(zip(examples, pictures, strict=True))
    )


def histogram(values: np.ndarray, unit: str, limit: int | None = None) -> Histogram:
    """Values, at least one, in bins with round edges, and one at ``limit``, up to which they may be."""
    edges = round_edges(values)
    if limit is not None and edges[0] <= limit < edges[-1] - 1:
        edges = np.unique([*edges, limit + 1])
    counts, _ = np.histogram(values, edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), unit, values.dtype.kind == "i", limit)


def round_edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins: of equal width, or 1, 2, 5, 10, ... where the largest value is far over the median."""
    integers = values.dtype.kind == "i"
    low, high = float(values.min()), float(values.max()) + integers  # whole numbers end before the next
    if high > 8 * max(float(np.median(values)), 1.0 if integers else 1e-9):
        steps = np.array([m * 10.0**k for k in range(-9, 13) for m in (1, 2, 5)])
        smallest = values[values > 0].min()
        first, end = steps[steps <= smallest].max(), steps[steps >= high].min()
        inside = steps[(steps >= first) & (steps <= end)]
        return np.concatenate([[0.0], inside]) if low <= 0 else inside
    width = (high - low) / BINS or max(high, 1.0) / BINS
    scale = 10.0 ** np.floor(np.log10(width))
    width = next(m * scale for m in (1, 2, 5, 10) if m * scale >= width * (1 - 1e-9))
    width = max(width, 1.0) if integers else width
    first = np.floor(low / width)
    count = max(int(np.ceil(high / width - 1e-9) - first), 1)
    edges = (first + np.arange(count + 1)) * width
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # which rounding may have left outside
    return edges


def _overview(found: Findings) -> Iterator[ReportPart]:
    looked_at = str(found.rows) + (f" of {found.of}" if found.of > found.rows else "")
    rows: list[Sequence[str]] = [("", "rows"), ("looked at", looked_at)]
    spelling = sum(bool(row.spelt) for row in found.usable)
    for name, count, listed in (
        ("usable", len(found.usable), True),
        ("broken", len(found.broken), True),
        ("repeated", len(found.repeated()), True),
        ("with a control token's name", spelling, spelling > 0),
        ("over budget", len(found.over_budget), found.form is not None),
    ):
        rows += [(name, _share(count, found.rows))] if listed else []
    note = "\n".join(f"Of those over budget, {budget}." for budget in found.budgets)
    if found.form is None:
        note = "Tokens are not counted: name a model, by --model or --config."
    yield ReportPart(printable(found.name), rows, note)
    rows = [("column", "type", "is")]
    for column in found.columns:
        used = "used" if column.used_as == column.name else column.used_as or "ignored"
        rows.append((printable(column.name, 40), printable(column.type), used))
    yield ReportPart("Columns", rows)
    rows = [("verifier", "rows", "different answers", "commonest answer", "its share")]
    for name, counts in found.answers().items():
        commonest, count = counts.most_common(1)[0]
        share = f"{count / counts.total():.1%}"
        numbers = (str(counts.total()), str(len(counts)), printable(commonest, 100), share)
        rows.append((printable(name, 40), *numbers))
    note = "The share is what a policy gets that always answers so and never looks."
    yield ReportPart("Answers", rows, note)


def _statistics(found: Findings) -> Iterator[ReportPart]:
    answers = found.values("answer_length")
    rows: list[Sequence[str]] = [
        ("characters", *_QUANTILES),
        ("problem", *_quantiles(found.values("problem_length"))),
        ("answer", *_quantiles(answers)),
    ]
    yield ReportPart("Text", rows, histogram=histogram(answers, "characters of an answer"))
    numbers = sorted(Counter(len(row.sizes) for row in found.usable).items())[:LISTED]
    rows = [(str(number), _share(count, len(found.usable))) for number, count in numbers]
    yield ReportPart("Images of a row", [("images", "rows"), *rows])
    if len(found.sizes):
        sizes = Counter(map(tuple, found.sizes.tolist()))
        common = sizes.most_common(5)
        rows = [(f"{width}x{height}", _share(count, sizes.total())) for (height, width), count in common]
        if len(sizes) > len(common):
            rows.append(("others", _share(sizes.total() - sum(n for _, n in common), sizes.total())))
        pixels = histogram(found.sizes.prod(axis=1) / 1e6, "megapixels")
        yield ReportPart("Sizes of images", [("width x height", "images"), *rows], histogram=pixels)
    for title, name, buckets in (
        ("Tokens of a prompt", "tokens", found.form.prompt_buckets if found.form else None),
        ("Patch slots of a prompt", "slots", found.form.patch_buckets if found.form else None),
    ):
        if buckets is not None:
            values = found.values(name)
            # Where no buckets are given, a run makes them large enough.
            limit = largest_bucket(buckets) or max(int(values.max()), 1)
            over = _share(int((values > limit).sum()), len(values))
            rows = [
                ("", *_QUANTILES, "largest bucket", "over it"),
                ("", *_quantiles(values), str(limit), over),
            ]
            yield ReportPart(title, rows, histogram=histogram(values, title.lower(), limit))


def _problems(found: Findings) -> Iterator[ReportPart]:
    if found.broken:
        kinds = Counter(_VARIES.sub("#", broken.reason) for broken in found.broken)
        first = {_VARIES.sub("#", broken.reason): broken for broken in reversed(found.broken)}
        rows: list[Sequence[str]] = [
            (printable(first[kind].id, 80), printable(first[kind].reason, 300), str(count))
            for kind, count in kinds.items()
        ]
        note = _and_more(len(rows), "other reasons")
        yield ReportPart("Broken rows", [("row", "why", "rows like it"), *rows[:LISTED]], note)
    if repeated := found.repeated():
        differing = sum(row.answer != earlier.answer for row, earlier in repeated)
        rows = [
            (
                printable(row.id, 80),
                printable(earlier.id, 80),
                "the same" if row.answer == earlier.answer else "another",
            )
            for row, earlier in repeated[:LISTED]
        ]
        note = f"{differing} of {len(repeated)} have another answer. {_and_more(len(repeated), 'more')}"
        title = "Repeated rows: problem and images of an earlier one"
        yield ReportPart(title, [("row", "is", "answer"), *rows], note.strip())
    if tokens := found.spelt():
        rows = [(token, str(len(ids)), printable(ids[0], 80)) for token, ids in tokens.items()]
        note = (
            "They are encoded as text: only the chat template makes control tokens."
            " Are they meant to be there?"
        )
        title = "Names of control tokens in problems, solutions and turns"
        yield ReportPart(title, [("token", "rows", "first"), *rows], note)


def _quantiles(values: np.ndarray) -> tuple[str, ...]:
    points = np.quantile(values, (0, 0.5, 0.95, 1), method="inverted_cdf")
    return tuple(str(int(value)) for value in points)


def _share(part: int, total: int) -> str:
    return f"{part} ({part / total:.1%})" if total else str(part)


def _and_more(count: int, what: str) -> str:
    return f"And {count - LISTED} {what}." if count > LISTED else ""


def _part_text(part: ReportPart) -> str:
    lines = [part.title, *(f"  {line}".rstrip() for line in table_lines(part.rows))]
    if part.histogram:
        bins = part.histogram
        labels = [bins.label(k) for k in range(len(bins.counts))]
        width = max(map(len, labels))
        lines += ["", f"  {bins.unit}"]
        for k, count in enumerate(bins.counts):
            beyond = " over the largest bucket" if count and bins.over(k) else ""
            bar = "#" * max(round(BAR * count / max(bins.counts)), 1 if count else 0)
            lines.append(f"  {labels[k].rjust(width)}  {bar} {count}{beyond}")
    return "\n".join([*lines, part.note] if part.note else lines)


def _draw_histogram(bins: Histogram) -> str:
    """A bar for each bin; those over the limit in another colour."""
    figure, axes = _axes(1.8)
    places = range(len(bins.counts))
    colours = [_RED if bins.over(k) else _BLUE for k in places]
    axes.bar([k + 0.5 for k in places], bins.counts, width=0.9, color=colours)
    every = max(len(bins.counts) // 7, 1)
    axes.set_xticks(range(0, len(bins.edges), every), [f"{edge:g}" for edge in bins.edges[::every]])
    axes.set_xlabel(bins.unit)
    return _save(figure)


def _draw_sizes(sizes: Int64[np.ndarray, "i 2"]) -> str:
    """A heat map of the images' width (across) and height (upwards)."""
    across, up = round_edges(sizes[:, 1]), round_edges(sizes[:, 0])
    counts, _, _ = np.histogram2d(sizes[:, 1], sizes[:, 0], (across, up))
    figure, axes = _axes(3.2)
    shades = np.ma.masked_equal(np.log1p(counts.T), 0)
    axes.pcolormesh(range(len(across)), range(len(up)), shades, cmap="Blues", vmin=-1)
    for edges, set_ticks in ((across, axes.set_xticks), (up, axes.set_yticks)):
        every = max(len(edges) // 7, 1)
        set_ticks(range(0, len(edges), every), [f"{edge:g}" for edge in edges[::every]])
    axes.set_xlabel("width in pixels, height upwards")
    return _save(figure)


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((6.4, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=8)
    axes.xaxis.label.set(color=_FAINT, size=8)
    return figure, axes


def _save(figure: Any) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True)
    return _data_url("image/png", out.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
