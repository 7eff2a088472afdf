"""Findings about a data set as sections of tables and histograms, and these as text for a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmrl.data.inspection import Findings

LISTED = 20  # rows of a list of broken or repeated rows
BINS = 14
BAR = 40  # characters of the longest bar
_VARIES = re.compile(r"\S*/\S*|\d+")  # of a reason, between rows that are broken alike: paths and numbers
JOINERS = "\u200c\u200d"  # unprintable, but needed to write several languages


class Histogram(NamedTuple):
    """How many values lie in each bin: from its edge up to, but without, the next; the last has its end."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    unit: str
    whole: bool  # values are whole numbers
    limit: int | None = None  # values beyond are too many

    def label(self, bin: int) -> str:
        """The values of a bin."""
        low, high = self.edges[bin], self.edges[bin + 1]
        if not self.whole:
            return f"{low:g} to {high:g}"
        return f"{low:.0f}" if high - low <= 1 else f"{low:.0f} to {high - 1:.0f}"

    def over(self, bin: int) -> bool:
        """Whether the values of a bin are too many."""
        return self.limit is not None and self.edges[bin] > self.limit


class Section(NamedTuple):
    """A part of a report."""

    title: str
    rows: Sequence[Sequence[str]]  # of a table; the first is its header
    note: str = ""
    histogram: Histogram | None = None


def sections(found: Findings) -> list[Section]:
    """What was found, for people; text is `shown`."""
    parts = [_overview(found), _columns(found), _verifiers(found)]
    if len(found.usable):
        parts += [_lengths(found), _images(found), *_sizes(found), *_tokens(found)]
    return [*parts, *_broken(found), *_repeated(found), *_spelt(found)]


def as_text(found: Findings) -> str:
    """The sections, for a terminal."""
    return "\n\n".join(_section_text(section) for section in sections(found))


def shown(text: str, longest: int = 200, *, lines: bool = False) -> str:
    """Text of a data set that does nothing to a terminal or a page: no control or direction characters.

    Longer text is cut; line breaks stay where ``lines`` is set.
    """
    cut = text if len(text) <= longest else text[:longest] + "..."
    kept = JOINERS + ("\n" if lines else "")
    return "".join(
        one if one.isprintable() or one in kept else " " if one.isspace() else "\N{REPLACEMENT CHARACTER}"
        for one in cut
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
    whole = values.dtype.kind == "i"
    low, high = float(values.min()), float(values.max()) + whole  # whole numbers end before the next
    if high > 8 * max(float(np.median(values)), 1.0 if whole else 1e-9):
        steps = np.array([m * 10.0**k for k in range(-9, 13) for m in (1, 2, 5)])
        smallest = values[values > 0].min()
        first, end = steps[steps <= smallest].max(), steps[steps >= high].min()
        inside = steps[(steps >= first) & (steps <= end)]
        return np.concatenate([[0.0], inside]) if low <= 0 else inside
    width = _round_up((high - low) / BINS or max(high, 1.0) / BINS, whole=whole)
    first = np.floor(low / width)
    count = max(int(np.ceil(high / width - 1e-9) - first), 1)
    return (first + np.arange(count + 1)) * width


def _round_up(width: float, *, whole: bool) -> float:
    scale = 10.0 ** np.floor(np.log10(width))
    found = next(m * scale for m in (1, 2, 5, 10) if m * scale >= width * (1 - 1e-9))
    return max(found, 1.0) if whole else found


def _overview(found: Findings) -> Section:
    rows = [
        ("", "rows"),
        ("looked at", str(found.rows) + (f" of {found.of}" if found.of > found.rows else "")),
    ]
    rows.append(("usable", _share(len(found.usable), found.rows)))
    rows.append(("broken", _share(len(found.broken), found.rows)))
    rows.append(("repeated", _share(len(found.repeated), found.rows)))
    if found.spelt:
        rows.append(("with a control token's name", _share(found.spelling, found.rows)))
    if found.tokens is not None:
        rows.append(("over budget", _share(len(found.over_budget), found.rows)))
    note = "\n".join(f"Of those over budget, {one}." for one in found.budgets)
    if found.tokens is None:
        note = "Tokens are not counted: name a model, by --model or --config."
    return Section(shown(found.name), rows, note)


def _columns(found: Findings) -> Section:
    rows = [("column", "type", "is")]
    for column in found.columns:
        used = (
            "ignored" if not column.used_as else column.used_as if column.used_as != column.name else "used"
        )
        rows.append((shown(column.name, 40), shown(column.type), used))
    return Section("Columns", rows)


def _verifiers(found: Findings) -> Section:
    rows = [("verifier", "rows", "different answers", "commonest answer", "its share")]
    for name, group in found.verifiers.items():
        rows.append(
            (
                shown(name, 40),
                str(group.rows),
                str(group.answers),
                shown(group.commonest, 100),
                f"{group.share:.1%}",
            )
        )
    return Section("Answers", rows, "The share is what a policy gets that always answers so and never looks.")


def _lengths(found: Findings) -> Section:
    rows: list[tuple[str, ...]] = [("characters", *_QUANTILES)]
    rows.append(("problem", *_quantiles(found.problem_length)))
    rows.append(("answer", *_quantiles(found.answer_length)))
    return Section("Text", rows, histogram=histogram(found.answer_length, "characters of an answer"))


def _images(found: Findings) -> Section:
    counts = sorted(Counter(found.images.tolist()).items())
    rows = [
        ("images", "rows"),
        *((str(number), _share(rows, len(found.usable))) for number, rows in counts[:LISTED]),
    ]
    return Section("Images of a row", rows)


def _sizes(found: Findings) -> list[Section]:
    if not len(found.sizes):
        return []
    common = Counter(map(tuple, found.sizes.tolist())).most_common(5)
    rows = [("width x height", "images")]
    rows += [(f"{width}x{height}", _share(count, len(found.sizes))) for (height, width), count in common]
    if len(np.unique(found.sizes, axis=0)) > len(common):
        rows.append(("others", _share(len(found.sizes) - sum(n for _, n in common), len(found.sizes))))
    pixels = found.sizes.prod(axis=1) / 1e6
    return [Section("Sizes of images", rows, histogram=histogram(pixels, "megapixels"))]


def _tokens(found: Findings) -> list[Section]:
    if found.tokens is None or found.slots is None:
        return []
    parts = []
    needs = (("Tokens of a prompt", found.tokens, 0), ("Patch slots of a prompt", found.slots, 1))
    for title, values, which in needs:
        limit = found.budget[which]
        over = int((values > limit).sum())
        rows: list[tuple[str, ...]] = [("", *_QUANTILES, "largest bucket", "over it")]
        rows.append(("", *_quantiles(values), str(limit), _share(over, len(values))))
        parts.append(Section(title, rows, histogram=histogram(values, title.lower(), limit)))
    return parts


def _broken(found: Findings) -> list[Section]:
    if not found.broken:
        return []
    same = Counter(_VARIES.sub("#", one.reason) for one in found.broken)
    rows = [("row", "why", "rows like it")]
    named: set[str] = set()
    for one in found.broken:
        kind = _VARIES.sub("#", one.reason)
        if kind not in named:
            named.add(kind)
            rows.append((shown(one.id, 80), shown(one.reason, 300), str(same[kind])))
    return [Section("Broken rows", rows[: LISTED + 1], _more(len(rows) - 1, "other reasons"))]


def _repeated(found: Findings) -> list[Section]:
    if not found.repeated:
        return []
    rows = [("row", "is", "answer")]
    for one in found.repeated[:LISTED]:
        rows.append((shown(one.id, 80), shown(one.first, 80), "the same" if one.same_answer else "another"))
    differing = sum(not one.same_answer for one in found.repeated)
    note = f"{differing} of {len(found.repeated)} have another answer. {_more(len(found.repeated), 'more')}"
    return [Section("Repeated rows: problem and images of an earlier one", rows, note.strip())]


def _spelt(found: Findings) -> list[Section]:
    if not found.spelt:
        return []
    rows = [
        ("token", "rows", "first"),
        *((one.token, str(one.rows), shown(one.first, 80)) for one in found.spelt),
    ]
    note = (
        "They are encoded as text: only the chat template makes control tokens. Are they meant to be there?"
    )
    return [Section("Names of control tokens in problems, solutions and turns", rows, note)]


_QUANTILES = ("least", "median", "95 %", "most")


def _quantiles(values: np.ndarray) -> tuple[str, ...]:
    points = np.quantile(values, (0, 0.5, 0.95, 1), method="inverted_cdf")
    return tuple(str(int(value)) for value in points)


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})" if whole else str(part)


def _more(count: int, what: str) -> str:
    return f"And {count - LISTED} {what}." if count > LISTED else ""


def _section_text(section: Section) -> str:
    lines = [section.title, *_table_text(section.rows)]
    if section.histogram:
        lines += ["", *_bars(section.histogram)]
    return "\n".join([*lines, section.note] if section.note else lines)


def _table_text(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _bars(bins: Histogram) -> list[str]:
    most = max(bins.counts)
    labels = [bins.label(k) for k in range(len(bins.counts))]
    wide = max(map(len, labels))
    lines = [f"  {bins.unit}"]
    for k, count in enumerate(bins.counts):
        beyond = " over the largest bucket" if count and bins.over(k) else ""
        bar = "#" * max(round(BAR * count / most), 1 if count else 0)
        lines.append(f"  {labels[k].rjust(wide)}  {bar} {count}{beyond}")
    return lines
