"""The picture of a run: what its metrics say, on one page."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mmrl.atomic import atomic_file
from mmrl.run_folder import read_metrics

Row = Mapping[str, float]
Panel = tuple[str, Sequence[tuple[str, str]]]  # title, and of each line the metric and the label

_PANELS: Sequence[Panel] = (
    (
        "accuracy",
        (("heldout/accuracy", "held out"), ("reward/accuracy", "training batch")),
    ),
    (
        "held-out errors",
        (
            ("heldout/perception_error", "perception"),
            ("heldout/reasoning_error", "reasoning"),
            ("heldout/format_error", "format"),
        ),
    ),
    (
        "tools (in a response)",
        (
            ("heldout/tool_calls", "calls, held out"),
            ("episode/tool_calls", "calls, training batch"),
            ("heldout/tool_errors", "errors, held out"),
        ),
    ),
    (
        "token perception (nats)",
        (("perception/mean", "mean"), ("perception/p50", "median"), ("perception/p90", "90th percentile")),
    ),
    (
        "policy",
        (
            ("policy/sampled_entropy", "sampled entropy (nats)"),
            ("policy/reference_kl", "KL to reference (nats)"),
            ("sampler/logprob_difference_max", "sampler/scorer rounding (nats)"),
            ("sampler/cut_mass_mean", "mass cut off by top-p, top-k, min-p"),
        ),
    ),
)

# What an evaluation tells of a data set besides the finer components of its rewards.
_FIGURES = ("accuracy", "format", "reward", "length", "truncated", "skipped", "invalid")
_COLUMNS = 4  # most panels side by side


def panels(rows: Sequence[Row]) -> list[Panel]:
    """What there is to plot of metrics: of several data sets, each apart as well."""
    there = sorted({key for row in rows for key in row})
    apart = [match for key in there if (match := re.fullmatch(r"(source|heldout)/(.+)/([^/]+)", key))]

    def of(kind: str, component: str, title: str) -> Panel:
        return title, [(m[0], m[2]) for m in apart if m[1] == kind and m[3] == component]

    finer = [(m[0], f"{m[2]}: {m[3]}") for m in apart if m[1] == "heldout" and m[3] not in _FIGURES]
    every = (
        _PANELS[0],
        of("heldout", "accuracy", "accuracy by data set, held out"),
        of("source", "accuracy", "accuracy by data set, training batch"),
        of("heldout", "format", "format by data set, held out"),
        ("other components, held out", finer),
        *_PANELS[1:],
    )
    present = [(title, [line for line in lines if line[0] in there]) for title, lines in every]
    return [panel for panel in present if panel[1]]


def draw_curves(directory: Path, out: Path, title: str) -> None:
    """Plot ``metrics.jsonl`` of ``directory`` to the PNG ``out``; panels without data are left out."""
    rows = read_metrics(directory)
    shown = panels(rows)
    down = math.ceil(len(shown) / _COLUMNS)
    across = math.ceil(len(shown) / down)
    figure = Figure(figsize=(4.2 * across, 3.6 * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis, (name, lines) in zip(axes, shown, strict=False):
        for key, label in lines:
            points = [(row["step"], row[key]) for row in rows if key in row]
            sparse = len(points) <= 0.6 * len(rows)
            axis.plot(*zip(*points, strict=True), label=label, marker="o" if sparse else None, markersize=4)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    with atomic_file(out) as part:
        figure.savefig(part, dpi=120, format="png")
