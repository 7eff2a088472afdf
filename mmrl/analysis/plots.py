"""Plots of what this package computes: matplotlib figures, none of them global.

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

from mmrl.analysis.compare import Change, Curve, RunsByArm, Share, compare_runs
from mmrl.analysis.perception import Occlusion, PerceptionProfile, TokenPerception, lorenz
from mmrl.analysis.runs import KINDS, Run

COLUMNS = 3  # most panels side by side
LETTERS = 88  # of a line of tokens
POINT = 10.0  # size of their letters
ADVANCE = 0.602 * POINT / 72  # inches from one monospaced letter to the next
LINE = 1.9 * POINT / 72  # inches from one line to the next
SHORTEST = 1e-4  # nats; perception below is drawn as this much, on a scale of logarithms
_COLOURS = ("#4c9f70", "#d1495b", "#edae49", "#8d96a3", "#b36a5e", "#d9d9d9")  # of `KINDS`
_LEGEND = {"frameon": False, "fontsize": 8}


def plot_curves(runs: Sequence[Run] | RunsByArm, metrics: Sequence[str], baseline: str = "") -> Figure:
    """A panel a metric: each arm's mean over seeds, its 95 % interval as a band, its runs as thin lines.

    Arguments as for `compare_runs`; with ``baseline``, the differences from it are drawn instead. Raises
    ValueError as it does.
    """
    figure, axes = _panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for number, curve in enumerate(compare_runs(runs, metric, baseline)):
            if not baseline or curve.differences:
                _draw_curve(axis, curve, f"C{number % 10}", of_differences=bool(baseline))
        if baseline:
            axis.axhline(0.0, color="0.4", linewidth=0.8)
        _label(axis, metric, "step", f"difference from {baseline}" if baseline else "")
        axis.legend(**_LEGEND)
    return figure


def _draw_curve(axis: Axes, curve: Curve, colour: str, of_differences: bool) -> None:
    points = curve.differences if of_differences else curve.means
    table = np.array([(point.mean, point.low, point.high) for point in points])
    there = ~np.isnan(table[:, 0])
    steps, (mean, low, high) = curve.steps[there], table[there].T
    marker = "o" if len(steps) < 12 else None
    axis.plot(steps, mean, color=colour, label=curve.arm, marker=marker, markersize=4)
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if len(curve.seeds) > 1 and not of_differences:
        for values in curve.values:
            there = ~np.isnan(values)
            axis.plot(curve.steps[there], values[there], color=colour, alpha=0.35, linewidth=0.7)


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
    values = {title: getattr(response, estimate) for title, response in several.items()}
    largest = float(np.concatenate([*values.values(), np.zeros(1)]).max())
    scale = ScalarMappable(Normalize(0.0, highest or max(largest, 1e-6)), colormaps["YlOrRd"])
    laid = {title: _wrap(response.pieces) for title, response in several.items()}
    last = {title: max((row for row, *_ in cells), default=0) for title, cells in laid.items()}
    lines = sum(row + (3.2 if title else 2.2) for title, row in last.items())
    width, height = LETTERS * ADVANCE + 0.4, lines * LINE + 0.8
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0.2 / width, 0.7 / height, LETTERS * ADVANCE / width, 1 - 0.8 / height))
    axis.set(xlim=(0, LETTERS), ylim=((height - 0.8) / LINE, 0))
    axis.set_axis_off()
    top = 0.3
    for title, cells in laid.items():
        if title:
            axis.text(0, top + 0.5, title, fontsize=POINT, color="0.35", va="center", parse_math=False)
            top += 1
        for row, column, token, text in cells:
            _draw_token(axis, column, top + row, text, np.asarray(scale.to_rgba(values[title][token])))
        top += 2.2 + last[title]
    bar = figure.add_axes((0.2 / width, 0.45 / height, 0.3, 0.1 / height))
    name = {"exact": "perception, exact KL", "k3": "perception, k3"}.get(estimate, estimate)
    figure.colorbar(scale, cax=bar, orientation="horizontal", label=f"{name} (nats)")
    return figure


def _wrap(pieces: Sequence[str]) -> list[tuple[int, int, int, str]]:
    """(row, column, token, text) of every part of a piece that stands on one line of ``LETTERS``."""
    cells, row, column = [], 0, 0
    for token, piece in enumerate(pieces):
        shown = (letter if letter.isprintable() else "↵" if letter == "\n" else "·" for letter in piece)
        text = "".join(shown) or "∎"
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


def _draw_token(axis: Axes, column: int, row: float, text: str, colour: np.ndarray) -> None:
    face = tuple(colour.tolist())
    axis.add_patch(Rectangle((column, row), len(text), 0.94, facecolor=face, edgecolor="w", linewidth=0.8))
    ink = "white" if 0.3 * face[0] + 0.6 * face[1] + 0.1 * face[2] < 0.45 else "black"
    place = (column, row + 0.5, text)
    axis.text(*place, fontsize=POINT, family="monospace", va="center", color=ink, parse_math=False)


def plot_perception_histogram(profiles: Mapping[str, PerceptionProfile]) -> Figure:
    """Perception of tokens, the Lorenz curve of it, and the mean perception of each response.

    ``profiles`` are of `perception_profile`, with a name each.
    """
    figure, (tokens, curve, responses) = _panels(3)
    most = max((float(profile.tokens.max(initial=SHORTEST)) for profile in profiles.values()), default=1.0)
    edges = np.geomspace(SHORTEST, max(most, 10 * SHORTEST), 40).tolist()
    means = [profile.responses[~np.isnan(profile.responses)] for profile in profiles.values()]
    bins = np.linspace(0, max((float(row.max(initial=0)) for row in means), default=0.0) or 1.0, 30).tolist()
    for (name, profile), of_responses in zip(profiles.items(), means, strict=True):
        _histogram(tokens, np.clip(profile.tokens, edges[0], edges[-1]), edges, name)
        curve.plot(*lorenz(profile.tokens), label=f"{name} (Gini {profile.gini:.2f})")
        _histogram(responses, of_responses, bins, name)
    curve.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    tokens.set_xscale("log")
    _label(tokens, "perception of a token", "nats", "share of tokens")
    _label(curve, "how few tokens carry it", "share of tokens, lowest first", "share of all perception")
    _label(responses, "mean perception of a response", "nats", "share of responses")
    for axis in (tokens, curve, responses):
        axis.legend(**_LEGEND)
    return figure


def _histogram(axis: Axes, values: np.ndarray, bins: list[float], name: str) -> None:
    weights = np.full(len(values), 1 / max(len(values), 1))
    axis.hist(values, bins, weights=weights, label=name, histtype="step", linewidth=1.5)


def plot_errors(breakdowns: Mapping[str, Sequence[Share]]) -> Figure:
    """Bars of the kinds of responses: a bar a group of questions, a panel a breakdown of `error_breakdown`.

    Raises ValueError if there is none.
    """
    if not breakdowns:
        raise ValueError("plot_errors: give at least one breakdown, with a name")
    figure, axes = _panels(len(breakdowns), height=2.6)
    there = {share.kind for shares in breakdowns.values() for share in shares}
    colours = {kind: colour for kind, colour in zip(KINDS, _COLOURS, strict=True) if kind in there}
    for axis, (name, shares) in zip(axes, breakdowns.items(), strict=True):
        groups = list(dict.fromkeys(share.group for share in shares))
        left = np.zeros(len(groups))
        for kind, colour in colours.items():
            means = {share.group: share.share.mean for share in shares if share.kind == kind}
            widths = np.array([means.get(group, 0.0) for group in groups])
            axis.barh(range(len(groups)), widths, left=left, color=colour, label=kind.replace("_", " "))
            left += widths
        axis.set_yticks(range(len(groups)), groups, parse_math=False)
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        _label(axis, name, "share of responses")
        axis.grid(visible=False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(colours), **_LEGEND)
    return figure


def plot_param_changes(changes: Sequence[Change], most: int = 30) -> Figure:
    """Bars of how far weights moved, relative to their size; of `diff_params` or `by_module`.

    The ``most`` that moved furthest are drawn. Raises ValueError if there is none.
    """
    shown = [change for change in changes if math.isfinite(change.relative)][:most]
    if not shown:
        raise ValueError("plot_param_changes: no change to draw")
    figure = Figure(figsize=(7.5, 0.22 * len(shown) + 1.0), layout="constrained")
    axis = figure.subplots()
    places = range(len(shown))
    colours = ["C1" if change.path.startswith("vision") else "C0" for change in shown]
    axis.barh(places, [change.relative for change in shown], color=colours)
    axis.set_yticks(places, [change.path for change in shown], fontsize=8, parse_math=False)
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
    maps = {"whole response": drop.sum(axis=2)}
    for token in sorted(order.tolist()):
        maps[f"{token}: {occlusion.pieces[token].strip() or '∎'}"] = drop[:, :, token]
    figure, (first, *axes) = _panels(1 + len(maps), height=3.2)
    first.imshow(occlusion.picture, interpolation="nearest")
    _label(first, "what the model sees")
    grey = occlusion.picture.convert("L").convert("RGB")
    wide, high = occlusion.picture.size
    rows, columns = drop.shape[:2]
    limit = max(max(float(np.abs(values).max()) for values in maps.values()), 1e-6)
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        axis.imshow(grey, interpolation="nearest")
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
        _label(axis, name)
    for axis in (first, *axes):
        axis.set_axis_off()
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


def _label(axis: Axes, title: str, along: str = "", up: str = "") -> None:
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_xlabel(along)
    axis.set_ylabel(up, parse_math=False)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
