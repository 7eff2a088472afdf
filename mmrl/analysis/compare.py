"""Curves of several runs beside each other, with confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mmrl.analysis.runs import Run
from mmrl.statistics import Interval, mean_interval
from mmrl.suggest import suggest

Arms = Mapping[str, Sequence[Run]]  # runs that differ in their seeds alone, by what to call them


@dataclass(frozen=True)
class Curve:
    """A metric of one arm, at every step at which any of the arms has it."""

    arm: str
    metric: str
    seeds: tuple[int, ...]
    steps: Int[np.ndarray, "n"]
    values: Float[np.ndarray, "seeds n"]  # NaN where a run has nothing
    means: tuple[Interval, ...]  # over seeds, at each step
    differences: tuple[Interval, ...]  # from the baseline's run of the same seed; none without a baseline


def compare_runs(runs: Sequence[Run] | Arms, metric: str, baseline: str = "") -> list[Curve]:
    """The curves of a metric over the same steps.

    Args:
      runs: by arm; runs without arms are one each, called by their names.
      metric: a name in metrics.jsonl, such as "heldout/accuracy".
      baseline: the arm that the others are compared with, seed by seed.

    Raises ValueError if no run has the metric, an arm has no run or two of one seed, or there is no such
    baseline.
    """
    arms = runs if isinstance(runs, Mapping) else named(runs)
    _check(arms, metric, baseline)
    found = {
        arm: {
            run.config.seed: dict(zip(*map(np.ndarray.tolist, run.curve(metric)), strict=True))
            for run in members
        }
        for arm, members in arms.items()
    }
    steps = sorted({step for seeds in found.values() for curve in seeds.values() for step in curve})
    tables = {
        arm: {seed: np.array([curve.get(step, np.nan) for step in steps]) for seed, curve in seeds.items()}
        for arm, seeds in found.items()
    }
    return [_curve(arm, metric, np.array(steps, int), tables, baseline) for arm in arms]


def named(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Each run as an arm, called by its name; by its folder where several are called alike."""
    names = [run.name for run in runs]
    return {(run.name if names.count(run.name) == 1 else f"{run.name}, {run.workdir}"): [run] for run in runs}


def _check(arms: Arms, metric: str, baseline: str) -> None:
    if baseline and baseline not in arms:
        raise ValueError(f"baseline={baseline!r} is none of the arms{suggest(baseline, arms)}")
    for arm, members in arms.items():
        seeds = [run.config.seed for run in members]
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"arm {arm!r} has the seeds {seeds}: give it one run of each of its seeds")
    there = {key for members in arms.values() for run in members for row in run.metrics for key in row}
    if metric not in there:
        raise ValueError(f"no run has logged {metric!r}{suggest(metric, there)}")


def _curve(
    arm: str,
    metric: str,
    steps: Int[np.ndarray, "n"],
    tables: Mapping[str, Mapping[int, Float[np.ndarray, "n"]]],
    baseline: str,
) -> Curve:
    own, other = tables[arm], tables.get(baseline, {})
    pairs = [own[seed] - other[seed] for seed in own if seed in other]
    values = np.stack(list(own.values()))
    differences = () if not baseline or arm == baseline else _intervals(pairs, len(steps))
    return Curve(arm, metric, tuple(own), steps, values, _intervals(list(values), len(steps)), differences)


def _intervals(rows: Sequence[Float[np.ndarray, "n"]], count: int) -> tuple[Interval, ...]:
    """At each of ``count`` places, over the rows that have a number there."""
    table = np.stack(rows) if rows else np.zeros((0, count))
    return tuple(mean_interval(column[~np.isnan(column)]) for column in table.T)
