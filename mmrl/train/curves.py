"""The picture of a run: what its metrics say, on one page."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mmrl.train.metrics import read_metrics

_PANELS: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (
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
            ("sampler/logprob_difference_max", "sampler/scorer difference"),
        ),
    ),
)


def draw_curves(directory: Path, out: Path, title: str) -> None:
    """Plot ``metrics.jsonl`` of ``directory`` to the PNG ``out``; panels without data are left out."""
    rows = read_metrics(directory)
    panels = [
        (name, present)
        for name, lines in _PANELS
        if (present := [line for line in lines if any(line[0] in row for row in rows)])
    ]
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, lines) in zip(axes, panels, strict=True):
        for key, label in lines:
            points = [(row["step"], row[key]) for row in rows if key in row]
            sparse = len(points) <= 0.6 * len(rows)
            axis.plot(*zip(*points, strict=True), label=label, marker="o" if sparse else None, markersize=4)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(out, dpi=120)
