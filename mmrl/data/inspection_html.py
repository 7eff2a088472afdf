"""Findings about a data set as one page: no script, nothing fetched, and all of the data's text escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Int64
from PIL import Image

from mmrl.data.inspection import Findings
from mmrl.data.inspection_examples import Example, encoded
from mmrl.data.inspection_report import Histogram, Section, round_edges, sections, shown

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --faint: #6a6a6a; --line: #ddd;
  --bar: #3b6ea8; --over: #c04a2f; --right: #0a6b2d; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e6e6; --paper: #161616; --faint: #9a9a9a;
  --line: #3a3a3a; --bar: #6fa3dc; --over: #e58468; --right: #6fcf8f; }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  padding: 1rem; max-width: 72rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.05rem; margin: 2rem 0 .5rem; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: top; padding: .15rem .9rem .15rem 0; min-width: 3rem;
  border-bottom: 1px solid var(--line); unicode-bidi: isolate; }}
th {{ font-weight: 600; color: var(--faint); }}
p {{ color: var(--faint); margin: .4rem 0; }}
svg {{ display: block; width: 100%; max-width: 40rem; height: auto; margin: .7rem 0; }}
svg text {{ font: 11px system-ui, sans-serif; fill: var(--faint); }}
.bar {{ fill: var(--bar); }} .over {{ fill: var(--over); }}
.examples {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }}
.example {{ border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; min-width: 0; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: .3rem; }}
img {{ max-width: 100%; height: auto; image-rendering: auto; }}
pre {{ white-space: pre-wrap; font: inherit; margin: .4rem 0; unicode-bidi: isolate; }}
.answer {{ color: var(--right); font-weight: 600; }}
.id, .facts {{ color: var(--faint); font-size: .85rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
WIDE, HIGH, LOW, SIDE = 640, 180, 34, 44  # of a histogram: size, and the edges below and at the side


def page(found: Findings, examples: Sequence[Example]) -> str:
    """The whole report."""
    first, *rest = sections(found)
    parts = [_section(first, heading=False), *(_section(section) for section in rest)]
    if len(found.sizes):
        parts.append(f"<h2>Width and height of images</h2>\n{_heat_map(found.sizes)}")
    if examples:
        shown_ones = "\n".join(map(_example, examples))
        parts.append(f'<h2>Examples</h2>\n<div class="examples">\n{shown_ones}\n</div>')
    return _PAGE.format(title=escape(shown(found.name)), body="\n".join(parts))


def _section(section: Section, *, heading: bool = True) -> str:
    head, *rows = section.rows
    lines = [f"<h2>{escape(section.title)}</h2>"] if heading else []
    lines.append('<div class="table"><table>')
    lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>")
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    lines.append("</table></div>")
    if section.note:
        lines.append(f"<p>{escape(section.note)}</p>")
    if section.histogram:
        lines.append(_bars(section.histogram))
    return "\n".join(lines)


def _example(example: Example) -> str:
    pictures = "".join(
        f'<img alt="" loading="lazy" width="{one.width}" height="{one.height}" src="{_address(one)}">'
        for one in example.pictures
    )
    lines = [
        f'<div class="id">{escape(example.id)} &middot; {escape(example.verifier)}</div>',
        f'<div class="pictures">{pictures}</div>',
        f'<pre dir="auto">{escape(example.problem)}</pre>',
        f'<pre dir="auto" class="answer">{escape(example.answer)}</pre>',
    ]
    if example.facts:
        lines.append(f'<pre class="facts">{escape(example.facts)}</pre>')
    if example.written:
        told = escape(example.written)
        lines.append(f'<details><summary>to imitate</summary><pre dir="auto">{told}</pre></details>')
    if example.note:
        lines.append(f"<p>{escape(example.note)}</p>")
    return '<div class="example">\n' + "\n".join(lines) + "\n</div>"


def _address(picture: Image.Image) -> str:
    kind, data = encoded(picture)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _bars(bins: Histogram) -> str:
    """A bar for each bin; those over the limit in another colour."""
    most, step = max(bins.counts), (WIDE - 2 * SIDE) / len(bins.counts)
    parts = []
    for k, count in enumerate(bins.counts):
        tall = (HIGH - LOW - 16) * count / most
        where = f'x="{SIDE + k * step + 1:.1f}" y="{HIGH - LOW - tall:.1f}"'
        size = f'width="{step - 2:.1f}" height="{tall:.1f}"'
        told = f"<title>{bins.label(k)}: {count}</title>"
        parts.append(f'<rect class="{"over" if bins.over(k) else "bar"}" {where} {size}>{told}</rect>')
    every = max(len(bins.counts) // 7, 1)
    for k in range(0, len(bins.edges), every):
        parts.append(_label(SIDE + k * step, HIGH - LOW + 14, f"{bins.edges[k]:g}", "middle"))
    parts.append(_label(WIDE / 2, HIGH - 4, bins.unit, "middle"))
    parts.append(_label(SIDE - 4, 16, str(most), "end"))
    return _drawing(HIGH, bins.unit, parts)


def _heat_map(sizes: Int64[np.ndarray, "i 2"]) -> str:
    """How many images have which width (across) and height (upwards)."""
    across, up = round_edges(sizes[:, 1]), round_edges(sizes[:, 0])
    counts, _, _ = np.histogram2d(sizes[:, 1], sizes[:, 0], (across, up))
    high = 320
    wide_step = (WIDE - 2 * SIDE) / (len(across) - 1)
    high_step = (high - LOW - 10) / (len(up) - 1)
    parts = []
    for (i, j), count in np.ndenumerate(counts):
        if count:
            strength = 0.15 + 0.85 * np.log1p(count) / np.log1p(counts.max())
            where = f'x="{SIDE + i * wide_step:.1f}" y="{high - LOW - (j + 1) * high_step:.1f}"'
            size = f'width="{wide_step - 1:.1f}" height="{high_step - 1:.1f}"'
            told = f"{across[i]:g} to {across[i + 1]:g} wide, {up[j]:g} to {up[j + 1]:g} high: {count:.0f}"
            parts.append(
                f'<rect class="bar" opacity="{strength:.2f}" {where} {size}><title>{told}</title></rect>'
            )
    for k in range(0, len(across), max(len(across) // 7, 1)):
        parts.append(_label(SIDE + k * wide_step, high - LOW + 14, f"{across[k]:g}", "middle"))
    for k in range(0, len(up), max(len(up) // 7, 1)):
        parts.append(_label(SIDE - 4, high - LOW - k * high_step + 4, f"{up[k]:g}", "end"))
    parts.append(_label(WIDE / 2, high - 4, "width in pixels, height upwards", "middle"))
    return _drawing(high, "width and height of images", parts)


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _drawing(high: int, name: str, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDE} {high}" role="img" aria-label="{escape(name)}">\n{inside}\n</svg>'
