"""Findings of the ablation of the shapes world on the papers' claims: tables on stdout, and a figure.

    mmrl sweep experiments/sweeps/shapes.py --workdir=runs/shapes
    python -m experiments.sweeps.shapes_findings runs/shapes --figure=docs/ablation.png

A claim is "seen" if the 95 % interval of the paired differences over seeds lies wholly on its side of 0,
"opposite" if wholly on the other, and "not seen" otherwise.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.sweeps.shapes import STRONG
from mmrl.analysis import Run, load_params, perceive, samples_of, tokens_of
from mmrl.analysis.compare import compare_runs
from mmrl.analysis.perception import PerceptionProfile, lorenz, perception_profile
from mmrl.statistics import Interval, mean_interval
from mmrl.sweep.results import Results, load_runs, load_sweep

ACCURACY, PERCEPTION = "heldout/accuracy", "heldout/perception_error"
EARLY = 15  # the first evaluation after the start
MEASURED = ("grpo", "dapo", "papo_g,k3,no_entropy", "papo_g,exact,no_entropy", "vppo,k3,entropy")
START = "cold start"  # the policy before reinforcement learning
COLUMNS = 3


@dataclass(frozen=True)
class Claim:
    """A difference between two arms that a paper says has a sign."""

    text: str
    arm: str
    other: str
    found: Interval
    sign: int  # of the difference that is claimed

    @property
    def verdict(self) -> str:
        low, high = sorted((self.sign * self.found.low, self.sign * self.found.high))
        return "seen" if low > 0 else "opposite" if high < 0 else "not seen"


def main() -> None:
    """Read a finished sweep, measure token perception, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of the sweep experiments/sweeps/shapes.py")
    parser.add_argument("--figure", type=Path, required=True, help="PNG to be written")
    options = parser.parse_args()
    results = load_sweep(options.sweep)
    arms = {arm: load_runs(results, arm) for arm in results.arms if results.finished[arm]}
    print(claims_table(claims(arms)))
    measured = profiles(arms)
    print(perception_table(measured))
    draw(results, arms, measured).savefig(options.figure, dpi=110)


def claims(arms: dict[str, list[Run]]) -> Iterator[Claim]:
    """Metrics of every arm that looks at perception, against the method it is built on."""
    for arm in arms:
        base = "grpo" if arm.startswith("papo_g") else "dapo"
        if arm in ("grpo", "dapo") or "strong" in arm or base not in arms:
            continue
        yield Claim("fewer perception errors", arm, base, _gap(arms, PERCEPTION, arm, base), -1)
        yield Claim("faster early learning", arm, base, _gap(arms, ACCURACY, arm, base, EARLY), 1)
        yield Claim("more accurate at the end", arm, base, _gap(arms, ACCURACY, arm, base), 1)
    for estimator in ("k3", "exact"):
        bare, held = (f"papo_g,strong,{estimator},{entropy}" for entropy in ("no_entropy", "entropy"))
        if bare in arms and "grpo" in arms:
            found = _gap(arms, ACCURACY, bare, "grpo")
            yield Claim("collapse at a large coefficient", bare, "grpo", found, -1)
        if bare in arms and held in arms:
            found = _gap(arms, ACCURACY, held, bare)
            yield Claim("double entropy prevents it", held, bare, found, 1)


def _gap(arms: dict[str, list[Run]], metric: str, arm: str, other: str, step: int | None = None) -> Interval:
    """The difference between two arms, paired by seed, at a step (None: the last)."""
    curve = compare_runs({other: arms[other], arm: arms[arm]}, metric, baseline=other)[1]
    return curve.differences[-1 if step is None else curve.steps.tolist().index(step)]


def claims_table(found: Iterable[Claim]) -> str:
    """Markdown; differences in percentage points."""
    lines = ["| claim | arm | against | difference (points) | |", "|---|---|---|---|---|"]
    for one in found:
        points = f"{100 * one.found.mean:+.1f} ± {100 * one.found.half:.1f}"
        lines.append(f"| {one.text} | `{one.arm}` | `{one.other}` | {points} | {one.verdict} |")
    return "\n".join(lines) + "\n"


def profiles(arms: dict[str, list[Run]]) -> dict[str, list[PerceptionProfile]]:
    """Exact token perception of one held-out response to each question, of each seed."""
    wanted = [(START, 0, arms["grpo"]), *((arm, None, arms[arm]) for arm in MEASURED if arm in arms)]
    found: dict[str, list[PerceptionProfile]] = {}
    for name, step, runs in wanted:
        for run in runs:
            print(f"measuring {name}, seed {run.config.seed}", flush=True)
            rows = list({row["id"]: row for row in (run.before if step == 0 else run.after)}.values())
            model, params = load_params(run, step)
            tokens = tokens_of(run, rows)
            told = perceive(params, samples_of(run, rows), tokens, model=model, config=run.config)
            found.setdefault(name, []).append(perception_profile(told))
    return found


def perception_table(measured: dict[str, list[PerceptionProfile]]) -> str:
    """Markdown: how sparse token perception is, and how far responses differ; means over seeds."""
    lines = [
        "| policy | mean (nats) | the top 20 % of tokens have | Gini | responses: deviation / mean |",
        "|---|---|---|---|---|",
    ]
    for name, of_seeds in measured.items():
        cells = [
            _cell([one.mean for one in of_seeds], 1, 3),
            _cell([one.top[0.2] for one in of_seeds], 100, 1) + " %",
            _cell([one.gini for one in of_seeds], 1, 3),
            _cell([one.spread for one in of_seeds], 1, 2),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], scale: float, digits: int) -> str:
    found = mean_interval(scale * np.array(values))
    return f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"


def draw(
    results: Results, arms: dict[str, list[Run]], measured: dict[str, list[PerceptionProfile]]
) -> Figure:
    """Curves, differences to the baseline, and what token perception looks like."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots(2, COLUMNS)
    plain = {arm: arms[arm] for arm in MEASURED if arm in arms}
    _curves(axes[0, 0], plain, "held-out accuracy")
    strong = {arm: arms[arm] for arm in arms if "strong" in arm or arm == results.baseline}
    _curves(axes[0, 1], strong, f"held-out accuracy, perception KL of {STRONG:g}")
    _lorenz(axes[0, 2], measured)
    compared = {arm: runs for arm, runs in arms.items() if "strong" not in arm}
    _differences(axes[1, 0], compared, results.baseline, ACCURACY, "accuracy at the end (points)")
    _differences(axes[1, 1], compared, results.baseline, PERCEPTION, "perception errors at the end (points)")
    _responses(axes[1, 2], measured)
    return figure


def _curves(axis: Axes, arms: dict[str, list[Run]], title: str) -> None:
    for curve in compare_runs(arms, ACCURACY):
        low, mean, high = np.array([(one.low, one.mean, one.high) for one in curve.means]).T
        (line,) = axis.plot(curve.steps, mean, marker="o", markersize=3, label=curve.arm)
        axis.fill_between(curve.steps, low, high, alpha=0.12, color=line.get_color())
    axis.set(title=title, xlabel="step", ylim=(0, 1))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def _differences(axis: Axes, arms: dict[str, list[Run]], base: str, metric: str, title: str) -> None:
    """Of each arm the paired difference to the baseline, with its interval."""
    found = [curve for curve in compare_runs(arms, metric, base) if curve.differences]
    ends = 100 * np.array([curve.differences[-1][:3] for curve in found])
    places = np.arange(len(found))[::-1]
    axis.errorbar(ends[:, 0], places, xerr=(ends[:, 2] - ends[:, 1]) / 2, fmt="o", capsize=3)
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(places, [curve.arm for curve in found], fontsize=8)
    axis.set(title=f"difference to {base}: {title}")
    axis.grid(alpha=0.3, axis="x")


def _lorenz(axis: Axes, measured: dict[str, list[PerceptionProfile]]) -> None:
    for name, of_seeds in measured.items():
        tokens: Float[np.ndarray, "n"] = np.sort(np.concatenate([one.tokens for one in of_seeds]))
        places, held = lorenz(tokens)
        axis.plot(1 - places, 1 - held, label=name)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    axis.set(
        title="token perception in the highest tokens", ylabel="share of all", xlabel="share of the tokens"
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def _responses(axis: Axes, measured: dict[str, list[PerceptionProfile]]) -> None:
    for name, of_seeds in measured.items():
        means = np.concatenate([one.responses for one in of_seeds])
        axis.hist(means, bins=np.linspace(0, 1.5, 40), histtype="step", density=True, label=name)
    axis.set(title="mean token perception of a response (nats)", xlabel="nats", ylabel="density")
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
