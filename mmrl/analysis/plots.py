"""Pictures of what the other files of this room compute: matplotlib figures, none of them global.

A figure shows itself in a notebook, and is written by ``figure.savefig("curves.png")``. Texts of models and
data sets are drawn as they stand, never read as formulas.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmrl.analysis.compare import Arms, Curve, compare_runs
from mmrl.analysis.errors import Share
from mmrl.analysis.occlusion import Occlusion
from mmrl.analysis.perception import TokenPerception
from mmrl.analysis.profile import PerceptionProfile, lorenz
from mmrl.analysis.rollouts import KINDS
from mmrl.analysis.runs import Run
from mmrl.analysis.weights import Change

COLUMNS = 3  # most panels side by side
LETTERS = 88  # of a line of tokens
POINT = 10.0  # size of their letters
ADVANCE = 0.602 * POINT / 72  # inches from one monospaced letter to the next
LINE = 1.9 * POINT / 72  # inches from one line to the next
SHORTEST = 1e-4  # nats; perception below is drawn as this much, on a scale of logarithms
_KIND_COLOURS = dict(
    zip(KINDS, ("#4c9f70", "#d1495b", "#edae49", "#8d96a3", "#b36a5e", "#d9d9d9"), strict=True)
)


def plot_curves(runs: Sequence[Run] | Arms, metrics: Sequence[str], baseline: str = "") -> Figure:
    """A panel a metric: each arm's mean over seeds, its 95 % interval as a band, its runs as thin lines.

    Arguments as for `compare_runs`; with ``baseline``, the differences from it are drawn instead. Raises
    ValueError as it does.
    """
    figure, axes = _panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        curves = compare_runs(runs, metric, baseline)
        for number, curve in enumerate(curves):
            if not baseline or curve.differences:
                _draw_curve(axis, curve, f"C{number % 10}", of_differences=bool(baseline))
        if baseline:
            axis.axhline(0.0, color="0.4", linewidth=0.8)
        _label(axis, metric, "step", f"difference from {baseline}" if baseline else "")
        axis.legend(frameon=False, fontsize=8)
    return figure


def _draw_curve(axis: Axes, curve: Curve, colour: str, of_differences: bool) -> None:
    points = curve.differences if of_differences else curve.means
    table = np.array([(one.mean, one.low, one.high) for one in points])
    there = ~np.isnan(table[:, 0])
    steps, (mean, low, high) = curve.steps[there], table[there].T
    marker = "o" if len(steps) < 12 else None
    axis.plot(steps, mean, color=colour, label=curve.arm, marker=marker, markersize=4)
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if len(curve.seeds) > 1 and not of_differences:
        for values in curve.values:
            axis.plot(
                curve.steps[~np.isnan(values)],
                values[~np.isnan(values)],
                color=colour,
                alpha=0.35,
                linewidth=0.7,
            )


def plot_tokens(
    measured: TokenPerception | Mapping[str, TokenPerception],
    estimate: str = "exact",
    highest: float | None = None,
) -> Figure:
    """Responses with each token coloured by its perception.

    Args:
      measured: one, or several with a title each, one below the other on one scale.
      estimate: "exact", "k3", or "entropy".
      highest: nats of the darkest colour; by default the largest value there is.
    """
    several = {"": measured} if isinstance(measured, TokenPerception) else measured
    every = np.concatenate([*(getattr(one, estimate) for one in several.values()), np.zeros(1)])
    scale = ScalarMappable(Normalize(0.0, highest or max(float(every.max()), 1e-6)), colormaps["YlOrRd"])
    laid = {title: _lines(one.pieces) for title, one in several.items()}
    last = {title: max((row for row, *_ in cells), default=0) for title, cells in laid.items()}
    lines = sum(row + (3.2 if title else 2.2) for title, row in last.items())
    figure = Figure(figsize=(LETTERS * ADVANCE + 0.4, lines * LINE + 0.8))
    height = figure.get_figheight()
    axis = figure.add_axes(
        (
            0.2 / figure.get_figwidth(),
            0.7 / height,
            LETTERS * ADVANCE / figure.get_figwidth(),
            1 - 0.8 / height,
        )
    )
    axis.set(xlim=(0, LETTERS), ylim=((height - 0.8) / LINE, 0))
    axis.set_axis_off()
    top = 0.3
    for title, cells in laid.items():
        if title:
            axis.text(0, top + 0.5, title, fontsize=POINT, color="0.35", va="center", parse_math=False)
            top += 1
        values = getattr(several[title], estimate)
        for row, column, token, text in cells:
            _draw_token(
                axis, column, top + row, text, tuple(np.asarray(scale.to_rgba(values[token])).tolist())
            )
        top += 2.2 + last[title]
    bar = figure.add_axes((0.2 / figure.get_figwidth(), 0.45 / height, 0.3, 0.1 / height))
    figure.colorbar(scale, cax=bar, orientation="horizontal", label=f"{_names(estimate)} (nats)")
    return figure


def _names(estimate: str) -> str:
    return {"exact": "perception, exact KL", "k3": "perception, k3"}.get(estimate, estimate)


def _lines(pieces: Sequence[str]) -> list[tuple[int, int, int, str]]:
    """(row, column, token, text) of every part of a piece that stands on one line of ``LETTERS``."""
    cells, row, column = [], 0, 0
    for token, piece in enumerate(pieces):
        text = (
            "".join(letter if letter.isprintable() else "↵" if letter == "\n" else "·" for letter in piece)
            or "∎"
        )
        if column + len(text) > LETTERS and len(text) <= LETTERS:
            row, column = row + 1, 0
        while text:
            part = text[: LETTERS - column]
            cells.append((row, column, token, part))
            text, column = text[len(part) :], column + len(part)
            if column >= LETTERS:
                row, column = row + 1, 0
        if "\n" in piece and column:
            row, column = row + 1, 0
    return cells


def _draw_token(axis: Axes, column: int, row: float, text: str, colour: tuple[float, ...]) -> None:
    axis.add_patch(
        Rectangle((column, row), len(text), 0.94, facecolor=colour, edgecolor="white", linewidth=0.8)
    )
    dark = 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] < 0.45
    axis.text(
        column,
        row + 0.5,
        text,
        fontsize=POINT,
        family="monospace",
        va="center",
        color="white" if dark else "black",
        parse_math=False,
    )


def plot_perception_histogram(profiles: Mapping[str, PerceptionProfile]) -> Figure:
    """Perception of tokens, the Lorenz curve of it, and the mean perception of each response.

    ``profiles`` are of `perception_profile`, with a name each.
    """
    figure, (tokens, curve, responses) = _panels(3)
    most = max((float(one.tokens.max(initial=SHORTEST)) for one in profiles.values()), default=1.0)
    edges = np.geomspace(SHORTEST, max(most, 10 * SHORTEST), 40).tolist()
    means = [one.responses[~np.isnan(one.responses)] for one in profiles.values()]
    bins = np.linspace(0, max((float(one.max(initial=0)) for one in means), default=0.0) or 1.0, 30).tolist()
    for (name, one), of_responses in zip(profiles.items(), means, strict=True):
        share = np.full(len(one.tokens), 1 / max(len(one.tokens), 1))
        tokens.hist(
            np.clip(one.tokens, edges[0], edges[-1]),
            edges,
            weights=share,
            label=name,
            histtype="step",
            linewidth=1.5,
        )
        curve.plot(*lorenz(one.tokens), label=f"{name} (Gini {one.gini:.2f})")
        share = np.full(len(of_responses), 1 / max(len(of_responses), 1))
        responses.hist(of_responses, bins, weights=share, label=name, histtype="step", linewidth=1.5)
    curve.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    tokens.set_xscale("log")
    _label(tokens, "perception of a token", "nats", "share of tokens")
    _label(curve, "how few tokens carry it", "share of tokens, lowest first", "share of all perception")
    _label(responses, "mean perception of a response", "nats", "share of responses")
    for axis in (tokens, curve, responses):
        axis.legend(frameon=False, fontsize=8)
    return figure


def plot_errors(breakdowns: Mapping[str, Sequence[Share]]) -> Figure:
    """Bars of what responses were: a bar a group of questions, a panel a breakdown of `error_breakdown`.

    Raises ValueError if there is none.
    """
    if not breakdowns:
        raise ValueError("plot_errors: give at least one breakdown, with a name")
    figure, axes = _panels(len(breakdowns), height=2.6)
    kinds = [
        kind for kind in KINDS if any(one.kind == kind for shares in breakdowns.values() for one in shares)
    ]
    for axis, (name, shares) in zip(axes, breakdowns.items(), strict=True):
        groups = list(dict.fromkeys(one.group for one in shares))
        left = np.zeros(len(groups))
        for kind in kinds:
            of_kind = {one.group: one.share.mean for one in shares if one.kind == kind}
            widths = np.array([of_kind.get(group, 0.0) for group in groups])
            axis.barh(
                range(len(groups)), widths, left=left, color=_KIND_COLOURS[kind], label=kind.replace("_", " ")
            )
            left += widths
        axis.set_yticks(range(len(groups)), groups, parse_math=False)
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        _label(axis, name, "share of responses")
        axis.grid(visible=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=8)
    return figure


def plot_param_changes(changes: Sequence[Change], most: int = 30) -> Figure:
    """Bars of how far weights moved, relative to their size; of `diff_params` or `by_module`.

    The ``most`` that moved furthest are drawn. Raises ValueError if there is none.
    """
    shown = [one for one in changes if math.isfinite(one.relative)][:most]
    if not shown:
        raise ValueError("plot_param_changes: no change to draw")
    figure = Figure(figsize=(7.5, 0.22 * len(shown) + 1.0), layout="constrained")
    axis = figure.subplots()
    places = range(len(shown))
    colours = ["C1" if one.path.startswith("vision") else "C0" for one in shown]
    axis.barh(places, [one.relative for one in shown], color=colours)
    axis.set_yticks(places, [one.path for one in shown], fontsize=8, parse_math=False)
    axis.invert_yaxis()
    _label(axis, "change of the weights (orange: vision tower)", "norm of the difference / norm before")
    return figure


def plot_where_it_looks(occlusion: Occlusion, most: int = 5) -> Figure:
    """The image, and over it what each region is worth to the whole response and to ``most`` of its tokens.

    Red: blackening the region makes the response less likely; blue: more; all on one scale. The tokens are
    those that change most by one region. Raises ValueError for a response without tokens.
    """
    if not occlusion.pieces:
        raise ValueError("plot_where_it_looks: the response has no tokens")
    drop = occlusion.drop
    order = np.argsort(-np.abs(drop).max(axis=(0, 1)), kind="stable")[:most]
    maps = {"whole response": drop.sum(axis=2)} | {
        f"{place}: {occlusion.pieces[place].strip() or '∎'}": drop[:, :, place]
        for place in sorted(order.tolist())
    }
    figure, (first, *axes) = _panels(1 + len(maps), height=3.2)
    first.imshow(occlusion.picture, interpolation="nearest")
    _bare(first, "what the model sees")
    wide, high = occlusion.picture.size
    limit = max(max(float(np.abs(values).max()) for values in maps.values()), 1e-6)
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        rows, columns = values.shape
        axis.imshow(occlusion.picture.convert("L").convert("RGB"), interpolation="nearest")
        drawn = axis.imshow(
            values,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            alpha=0.1 + 0.75 * np.abs(values) / limit,
            interpolation="nearest",
            extent=(-0.5, columns * occlusion.side - 0.5, rows * occlusion.side - 0.5, -0.5),
        )
        axis.set(xlim=(-0.5, wide - 0.5), ylim=(high - 0.5, -0.5))
        figure.colorbar(drawn, ax=axis, shrink=0.8, label="nats lost")
        _bare(axis, name)
    return figure


def _panels(count: int, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, in as even rows as there are."""
    down = max(math.ceil(count / COLUMNS), 1)
    across = max(math.ceil(count / down), 1)
    figure = Figure(figsize=(4.4 * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _label(axis: Axes, title: str, along: str, up: str = "") -> None:
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_xlabel(along)
    axis.set_ylabel(up, parse_math=False)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def _bare(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_axis_off()
