"""What a report draws: panels of curves, out of the metrics of one run or of several."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

Row = Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """A metric, and what to call it within its panel."""

    metric: str
    label: str


@dataclass(frozen=True)
class Panel:
    """Metrics that belong into one picture."""

    section: str
    title: str
    lines: tuple[Line, ...]
    percent: bool = False  # shares, read better as percentages
    note: str = ""  # what it is, in a sentence


def _panel(section: str, title: str, *lines: tuple[str, str], percent: bool = False, note: str = "") -> Panel:
    return Panel(section, title, tuple(Line(*line) for line in lines), percent, note)


OUTCOME, POLICY, PERCEPTION, UPDATES, SPEED = "Outcome", "Policy", "Perception", "Updates", "Speed"
OTHER = "Other metrics"
SECTIONS = (OUTCOME, POLICY, PERCEPTION, UPDATES, SPEED, OTHER)

_ACCURACY = _panel(
    OUTCOME,
    "Accuracy",
    ("heldout/accuracy", "held out"),
    ("reward/accuracy", "training batch"),
    percent=True,
    note="Share of sampled responses that are right.",
)
_ERRORS = _panel(
    OUTCOME,
    "Held-out errors",
    ("heldout/perception_error", "perception"),
    ("heldout/reasoning_error", "reasoning"),
    ("heldout/format_error", "format"),
    ("heldout/unfaithful", "unfaithful"),
    percent=True,
    note="Perception: something is seen wrongly. Reasoning: all is seen, and the conclusion is wrong.",
)
_REWARD = _panel(OUTCOME, "Reward", ("heldout/reward", "held out"), ("reward/mean", "training batch"))
_KNOWN = (
    _panel(
        OUTCOME,
        "Tools, calls in a response",
        ("heldout/tool_calls", "held out"),
        ("episode/tool_calls", "training batch"),
        ("heldout/tool_errors", "errors, held out"),
        ("episode/tool_errors", "errors, training batch"),
    ),
    _panel(
        POLICY,
        "KL to the reference",
        ("policy/reference_kl", "sampled responses"),
        note="How far the policy has gone from where reinforcement learning began, in nats a token.",
    ),
    _panel(
        POLICY,
        "Entropy",
        ("policy/sampled_entropy", "image as it is"),
        ("policy/entropy", "image as it is, exact"),
        ("loss/corrupted_sampled_entropy", "image corrupted"),
        ("loss/corrupted_entropy", "image corrupted, exact"),
        note="In nats a token.",
    ),
    _panel(
        POLICY,
        "Length of responses",
        ("response/length", "training batch"),
        ("response/longest", "longest of the batch"),
        ("heldout/length", "held out"),
        note="In tokens.",
    ),
    _panel(
        POLICY,
        "Responses cut off",
        ("response/truncated", "training batch"),
        ("heldout/truncated", "held out"),
        percent=True,
        note="Share that ran out of tokens.",
    ),
    _panel(
        POLICY,
        "Groups",
        ("reward/equal_groups", "with equal rewards"),
        ("rollout/kept_groups", "kept"),
        percent=True,
        note="A group with equal rewards teaches nothing by itself.",
    ),
    _panel(POLICY, "Batches drawn for a step", ("rollout/batches", "batches")),
    _panel(
        PERCEPTION,
        "Token perception",
        ("perception/mean", "mean"),
        ("perception/p50", "median"),
        ("perception/p90", "90th percentile"),
        note="KL between the next token's distribution with the image and with it corrupted, in nats.",
    ),
    _panel(
        PERCEPTION,
        "Perception KL in the loss",
        ("loss/perception_kl", "perception KL"),
        note="What PAPO's loss asks for more of, in nats a token.",
    ),
    _panel(UPDATES, "Gradient norm", ("loss/gradient_norm", "before clipping")),
    _panel(
        UPDATES,
        "Clipped tokens",
        ("loss/clip_low", "below"),
        ("loss/clip_high", "above"),
        ("loss/clip_dual", "dual"),
        percent=True,
        note="Share of tokens whose ratio is out of its range, so that they give no gradient.",
    ),
    _panel(UPDATES, "Ratio to the old policy", ("loss/ratio", "mean")),
    _panel(UPDATES, "Approximate KL to the old policy", ("loss/approx_kl", "mean")),
    _panel(UPDATES, "Loss", ("loss/loss", "whole"), ("loss/policy_loss", "of the policy")),
    _panel(
        UPDATES,
        "Sampler against trainer",
        ("sampler/logprob_difference_mean", "mean"),
        ("sampler/logprob_difference_max", "largest"),
        note="Difference of the logprobs of the sampled tokens, both before top-k, top-p and min-p;"
        " rounding, if all is well.",
    ),
    _panel(
        UPDATES,
        "Mass cut off",
        ("sampler/cut_mass_mean", "mean"),
        ("sampler/cut_mass_max", "largest"),
        percent=True,
        note="Probability that top-k, top-p and min-p took from the policy where a token was drawn.",
    ),
    _panel(SPEED, "Seconds of a whole step", ("time/step", "seconds")),
    _panel(
        SPEED,
        "Tokens a second",
        ("rollout/tokens_per_second", "rollout"),
        ("speed/decode_tokens_per_second", "decode"),
        ("speed/prefill_tokens_per_second", "prefill"),
    ),
    _panel(
        SPEED,
        "Padding and idle lanes",
        ("padding/prompt", "padding of prompts"),
        ("padding/patches", "padding of images"),
        ("padding/response", "padding of responses"),
        ("rollout/occupancy", "lanes at work"),
        percent=True,
    ),
)
# Worth a picture only where something is wrong.
_TROUBLE = _panel(
    UPDATES,
    "What went wrong",
    ("loss/skipped", "updates skipped"),
    ("reward/invalid", "gradings failed"),
    ("data/skipped", "broken rows"),
)
# Numbers of a row rather than metrics. Seconds of phases have a picture of another kind.
_LEFT_OUT = ("step", "rollout/digest")
# What an evaluation or a batch tells of a data set besides the components of its rewards.
_FIGURES = ("accuracy", "format", "reward", "length", "truncated", "skipped", "invalid", "share")
_FAILURES = ("skipped", "invalid", "dropped")
_MOST_LINES = 6  # in a picture that shows several runs
MOST_POINTS = 500  # of a line


def panels(runs: Sequence[Sequence[Row]]) -> list[Panel]:
    """What there is to plot of the metrics of ``runs``: all of them, but trouble that there was not."""
    there = sorted({key for rows in runs for row in rows for key in row})
    every = [_ACCURACY, _ERRORS, _REWARD, *_by_data_set(there), *_components(there), *_KNOWN]
    if any(row.get(line.metric, 0) for rows in runs for row in rows for line in _TROUBLE.lines):
        every.append(_TROUBLE)
    drawn = {line.metric for panel in (*every, _TROUBLE) for line in panel.lines}
    every += _others(
        [key for key in there if not (key in drawn or key in _LEFT_OUT or key.startswith("time/"))]
    )
    present = [
        replace(panel, lines=tuple(line for line in panel.lines if line.metric in there)) for panel in every
    ]
    shown = [part for panel in present if panel.lines for part in _apart(panel, len(runs))]
    return sorted(shown, key=lambda panel: SECTIONS.index(panel.section))


def _by_data_set(there: Iterable[str]) -> list[Panel]:
    """Of several data sets, each apart: what an evaluation and what the batches tell of them."""
    apart = [match for key in there if (match := re.fullmatch(r"(source|heldout)/(.+)/([^/]+)", key))]

    def of(kind: str, component: str, title: str, *, percent: bool = True) -> Panel:
        lines = tuple(Line(m[0], m[2]) for m in apart if m[1] == kind and m[3] == component)
        return Panel(OUTCOME, title, lines, percent)

    finer = tuple(
        Line(m[0], f"{m[2]}: {m[3].replace('_', ' ')}")
        for m in apart
        if m[1] == "heldout" and m[3] not in _FIGURES
    )
    return [
        of("heldout", "accuracy", "Accuracy by data set, held out"),
        of("source", "accuracy", "Accuracy by data set, training batch"),
        of("heldout", "format", "Format by data set, held out"),
        of("source", "reward", "Reward by data set, training batch", percent=False),
        of("source", "share", "Share of the batch by data set"),
        Panel(OUTCOME, "Other components by data set, held out", finer),
    ]


def _components(there: Iterable[str]) -> list[Panel]:
    """Means of reward components, and of facts about episodes, of all data sets together."""
    known = {
        line.metric for panel in (_ACCURACY, _ERRORS, _REWARD, *_KNOWN, _TROUBLE) for line in panel.lines
    }
    found = []
    for kind, title in (("reward", "training batch"), ("heldout", "held out")):
        names = [
            key.split("/")[1] for key in there if re.fullmatch(rf"{kind}/[^/]+", key) and key not in known
        ]
        lines = tuple(Line(f"{kind}/{n}", n.replace("_", " ")) for n in names if n not in _FAILURES)
        found.append(Panel(OUTCOME, f"Components, {title}", lines, note="Means, before they are weighed."))
    return found


def _others(left: Iterable[str]) -> list[Panel]:
    """What no panel knows, each alone, as nothing is known of its size."""
    return [Panel(OTHER, key, (Line(key, key.rpartition("/")[2].replace("_", " ")),)) for key in left]


def _apart(panel: Panel, runs: int) -> list[Panel]:
    """The panel, or one for each of its lines where several runs have too many to tell apart."""
    if runs == 1 or runs * len(panel.lines) <= _MOST_LINES:
        return [panel]
    return [replace(panel, title=f"{panel.title}: {line.label}", lines=(line,)) for line in panel.lines]


def thinned(
    steps: Int[np.ndarray, "n"], values: Float[np.ndarray, "n"], most: int = MOST_POINTS
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """At most ``most`` points of a curve: the lowest and the highest of each stretch, so that peaks stay.

    First and last stay too. Values that are no finite numbers stay as one gap a stretch, where it holds
    nothing else.
    """
    if len(steps) <= most:
        return steps, values
    kept = {0, len(steps) - 1}
    for part in np.array_split(np.arange(1, len(steps) - 1), (most - 2) // 2):
        finite = part[np.isfinite(values[part])]
        ends = (finite[values[finite].argmin()], finite[values[finite].argmax()]) if len(finite) else part[:1]
        kept.update(map(int, ends))
    chosen = sorted(kept)
    return steps[chosen], values[chosen]
