"""Panels of a run's metrics: which are drawn together and their labels, in ``curves.png`` and in reports."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from mmrl.atomic import atomic_file
from mmrl.run_folder import read_metrics

OUTCOME, POLICY, PERCEPTION, UPDATES, SPEED = "Outcome", "Policy", "Perception", "Updates", "Speed"
OTHER = "Other metrics"
SECTIONS = (OUTCOME, POLICY, PERCEPTION, UPDATES, SPEED, OTHER)


@dataclass(frozen=True)
class Panel:
    """Metrics that belong into one plot."""

    section: str
    title: str
    lines: Mapping[str, str]  # metric -> label within the panel
    percent: bool = False  # shares, read better as percentages
    note: str = ""  # what it is, in a sentence
    in_picture: bool = False  # whether curves.png has it too


_ACCURACY = Panel(
    OUTCOME,
    "Accuracy",
    {"heldout/accuracy": "held out", "reward/accuracy": "training batch"},
    percent=True,
    note="Share of sampled responses that are right.",
    in_picture=True,
)
_ERRORS = Panel(
    OUTCOME,
    "Held-out errors",
    {
        "heldout/perception_error": "perception",
        "heldout/reasoning_error": "reasoning",
        "heldout/format_error": "format",
        "heldout/unfaithful": "unfaithful",
    },
    percent=True,
    note="Perception: something is seen wrongly. Reasoning: all is seen, and the conclusion is wrong.",
    in_picture=True,
)
_REWARD = Panel(OUTCOME, "Reward", {"heldout/reward": "held out", "reward/mean": "training batch"})
_KNOWN = (
    Panel(
        OUTCOME,
        "Tools, calls in a response",
        {
            "heldout/tool_calls": "held out",
            "episode/tool_calls": "training batch",
            "heldout/tool_errors": "errors, held out",
            "episode/tool_errors": "errors, training batch",
        },
        in_picture=True,
    ),
    Panel(
        POLICY,
        "KL to the reference",
        {"policy/reference_kl": "sampled responses"},
        note="How far the policy has gone from where reinforcement learning began, in nats a token.",
        in_picture=True,
    ),
    Panel(
        POLICY,
        "Entropy",
        {
            "policy/sampled_entropy": "image as it is",
            "policy/entropy": "image as it is, exact",
            "loss/corrupted_sampled_entropy": "image corrupted",
            "loss/corrupted_entropy": "image corrupted, exact",
        },
        note="In nats a token.",
        in_picture=True,
    ),
    Panel(
        POLICY,
        "Length of responses",
        {
            "response/length": "training batch",
            "response/longest": "longest of the batch",
            "heldout/length": "held out",
        },
        note="In tokens.",
    ),
    Panel(
        POLICY,
        "Responses cut off",
        {"response/truncated": "training batch", "heldout/truncated": "held out"},
        percent=True,
        note="Share that ran out of tokens.",
    ),
    Panel(
        POLICY,
        "Groups",
        {"reward/equal_groups": "with equal rewards", "rollout/kept_groups": "kept"},
        percent=True,
        note="A group with equal rewards teaches nothing by itself.",
    ),
    Panel(POLICY, "Batches drawn for a step", {"rollout/batches": "batches"}),
    Panel(
        PERCEPTION,
        "Token perception",
        {"perception/mean": "mean", "perception/p50": "median", "perception/p90": "90th percentile"},
        note="KL between the next token's distribution with the image and with it corrupted, in nats.",
        in_picture=True,
    ),
    Panel(
        PERCEPTION,
        "Perception KL in the loss",
        {"loss/perception_kl": "perception KL"},
        note="What PAPO's loss asks for more of, in nats a token.",
    ),
    Panel(UPDATES, "Gradient norm", {"loss/gradient_norm": "before clipping"}),
    Panel(
        UPDATES,
        "Clipped tokens",
        {"loss/clip_low": "below", "loss/clip_high": "above", "loss/clip_dual": "dual"},
        percent=True,
        note="Share of tokens whose ratio is out of its range, so that they give no gradient.",
    ),
    Panel(UPDATES, "Ratio to the old policy", {"loss/ratio": "mean"}),
    Panel(UPDATES, "Approximate KL to the old policy", {"loss/approx_kl": "mean"}),
    Panel(UPDATES, "Loss", {"loss/loss": "whole", "loss/policy_loss": "of the policy"}),
    Panel(
        UPDATES,
        "Sampler against trainer",
        {"sampler/logprob_difference_mean": "mean", "sampler/logprob_difference_max": "largest"},
        note="Difference of the logprobs of the sampled tokens, both before top-k, top-p and min-p;"
        " rounding, if all is well.",
        in_picture=True,
    ),
    Panel(
        UPDATES,
        "Mass cut off",
        {"sampler/cut_mass_mean": "mean", "sampler/cut_mass_max": "largest"},
        percent=True,
        note="Probability that top-k, top-p and min-p took from the policy where a token was drawn.",
        in_picture=True,
    ),
    Panel(SPEED, "Seconds of a whole step", {"time/step": "seconds"}),
    Panel(
        SPEED,
        "Tokens a second",
        {
            "rollout/tokens_per_second": "rollout",
            "speed/decode_tokens_per_second": "decode",
            "speed/prefill_tokens_per_second": "prefill",
        },
    ),
    Panel(
        SPEED,
        "Slots computed for each real one",
        {
            "padding/text": "tokens of an update",
            "padding/patches": "patches of an update",
            "padding/decode": "tokens decoded",
        },
    ),
)
# Shown only where something is wrong.
_TROUBLE = Panel(
    UPDATES,
    "What went wrong",
    {"loss/skipped": "updates skipped", "reward/invalid": "gradings failed", "data/skipped": "broken rows"},
)
# Numbers of a row rather than metrics. Seconds of phases have a plot of another kind.
_LEFT_OUT = ("step", "rollout/digest")
# Metrics of a data set besides the components of its rewards.
_NO_COMPONENTS = ("accuracy", "format", "reward", "length", "truncated", "skipped", "invalid", "share")
_FAILURES = ("skipped", "invalid", "dropped")
_MOST_LINES = 6  # in a panel that shows several runs
_COLUMNS = 4  # most panels side by side in a picture


def panels(runs: Sequence[Sequence[Mapping[str, float]]]) -> list[Panel]:
    """The panels of the metrics of ``runs``: all of them, but trouble that there was not."""
    there = sorted({key for rows in runs for row in rows for key in row})
    known = {metric for panel in (_ACCURACY, _ERRORS, _REWARD, *_KNOWN, _TROUBLE) for metric in panel.lines}
    every = [_ACCURACY, _ERRORS, _REWARD, *_by_data_set(there)]
    for kind, title in (("reward", "training batch"), ("heldout", "held out")):
        names = [
            key.split("/")[1] for key in there if re.fullmatch(rf"{kind}/[^/]+", key) and key not in known
        ]
        lines = {f"{kind}/{name}": name.replace("_", " ") for name in names if name not in _FAILURES}
        every.append(Panel(OUTCOME, f"Components, {title}", lines, note="Means, before they are weighed."))
    every += _KNOWN
    if any(row.get(metric, 0) for rows in runs for row in rows for metric in _TROUBLE.lines):
        every.append(_TROUBLE)
    drawn = known.union(*(panel.lines for panel in every))
    # Others are each alone, as nothing is known of their size.
    left = [key for key in there if key not in drawn and key not in _LEFT_OUT and not key.startswith("time/")]
    every += [Panel(OTHER, key, {key: key.rpartition("/")[2].replace("_", " ")}) for key in left]
    shown = []
    for panel in every:
        lines = {metric: label for metric, label in panel.lines.items() if metric in there}
        if len(runs) == 1 or len(runs) * len(lines) <= _MOST_LINES:
            shown += [replace(panel, lines=lines)] if lines else []
        else:  # too many lines to tell apart
            shown += [
                replace(panel, title=f"{panel.title}: {label}", lines={metric: label})
                for metric, label in lines.items()
            ]
    return sorted(shown, key=lambda panel: SECTIONS.index(panel.section))


def _by_data_set(there: Iterable[str]) -> list[Panel]:
    """Panels of several data sets, each a line: metrics of evaluations and of training batches."""
    matches = [match for key in there if (match := re.fullmatch(r"(source|heldout)/(.+)/([^/]+)", key))]
    finer = {
        match[0]: f"{match[2]}: {match[3].replace('_', ' ')}"
        for match in matches
        if match[1] == "heldout" and match[3] not in _NO_COMPONENTS
    }
    found = []
    for kind, component, title in (
        ("heldout", "accuracy", "Accuracy by data set, held out"),
        ("source", "accuracy", "Accuracy by data set, training batch"),
        ("heldout", "format", "Format by data set, held out"),
        ("source", "reward", "Reward by data set, training batch"),
        ("source", "share", "Share of the batch by data set"),
    ):
        lines = {match[0]: match[2] for match in matches if (match[1], match[3]) == (kind, component)}
        found.append(
            Panel(
                OUTCOME,
                title,
                lines,
                percent=component != "reward",
                in_picture=component in ("accuracy", "format"),
            )
        )
    return [*found, Panel(OUTCOME, "Other components by data set, held out", finer, in_picture=True)]


def draw_curves(directory: Path, out: Path, title: str) -> None:
    """Plot ``metrics.jsonl`` of ``directory`` to the PNG ``out``; panels without data are left out."""
    rows = read_metrics(directory)
    shown = [panel for panel in panels([rows]) if panel.in_picture]
    down = math.ceil(len(shown) / _COLUMNS)
    across = math.ceil(len(shown) / down)
    figure = Figure(figsize=(4.2 * across, 3.6 * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis, panel in zip(axes, shown, strict=False):
        for metric, label in panel.lines.items():
            points = [(row["step"], row[metric]) for row in rows if metric in row]
            marker = "o" if len(points) <= 0.6 * len(rows) else None
            axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
        axis.set_title(panel.title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    with atomic_file(out) as part:
        figure.savefig(part, dpi=120, format="png")
