"""A sweep's folder, read: which runs are finished, what came of them, and the table of it."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrl.analysis.runs import Run, load_run
from mmrl.atomic import atomic_write
from mmrl.run_folder import read_metrics
from mmrl.statistics import Interval, mean_interval
from mmrl.sweep.definition import AREA


@dataclass(frozen=True)
class Results:
    """A sweep as far as it has come."""

    directory: Path
    experiment: str
    arms: dict[str, dict[str, Any]]  # label -> key of the config -> value
    seeds: tuple[int, ...]
    baseline: str  # label, or "" for none
    metrics: tuple[str, ...]
    finished: dict[str, tuple[int, ...]]  # label -> seeds whose runs are finished
    values: dict[tuple[str, int, str], float]  # (label, seed, metric), of finished runs that have it


class Row(NamedTuple):
    """One metric of one arm."""

    arm: str
    metric: str
    finished: int  # runs
    planned: int
    value: Interval  # mean over seeds
    difference: Interval | None  # from the baseline with the same seed; None of the baseline, and without one


def workdir_of(directory: Path, arm: str, seed: int) -> Path:
    """The folder of one run of the sweep in ``directory``."""
    return directory / arm / f"seed{seed}"


def load_sweep(directory: str | Path, metrics: Sequence[str] = ()) -> Results:
    """Read the folder of a sweep, which may still be going on.

    Args:
      directory: what ``mmrl sweep --workdir`` named.
      metrics: other ones than the sweep file asks for: names in metrics.jsonl, of which the last value is
        taken, or "area:NAME", the mean height of the curve.

    Raises ValueError if it holds no sweep.
    """
    directory = Path(directory)
    path = directory / "sweep.json"
    try:
        asked = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{directory} holds no sweep: {path} does not exist") from error
    except (ValueError, RecursionError):
        asked = None
    if not _is_asked(asked):
        raise ValueError(f"{path} is damaged; the same mmrl sweep writes it anew")
    wanted = tuple(metrics) or tuple(asked["metrics"])
    finished: dict[str, tuple[int, ...]] = {}
    values: dict[tuple[str, int, str], float] = {}
    for arm in asked["arms"]:
        done = [seed for seed in asked["seeds"] if _summary(directory, arm, seed).is_file()]
        finished[arm] = tuple(done)
        for seed in done:
            rows = read_metrics(workdir_of(directory, arm, seed))
            found = {metric: value_of(rows, metric) for metric in wanted}
            values |= {(arm, seed, name): value for name, value in found.items() if value is not None}
    return Results(
        directory=directory,
        experiment=asked["experiment"],
        arms=asked["arms"],
        seeds=tuple(asked["seeds"]),
        baseline=asked["baseline"],
        metrics=wanted,
        finished=finished,
        values=values,
    )


def _is_asked(value: Any) -> bool:
    """Whether a JSON value is what `mmrl.sweep.plan.write_sweep` writes."""
    if not isinstance(value, dict) or not isinstance(value.get("arms"), dict):
        return False
    lists = {"seeds": int, "metrics": str}
    return (
        isinstance(value.get("experiment"), str)
        and all(isinstance(changes, dict) for changes in value["arms"].values())
        and value.get("baseline") in ("", *value["arms"])
        and all(value.get(key) and isinstance(value[key], list) for key in lists)
        and all(type(one) is kind for key, kind in lists.items() for one in value[key])
    )


def load_runs(results: Results, arm: str) -> list[Run]:
    """The finished runs of an arm, in the order of seeds. Raises ValueError if there is no such arm."""
    if arm not in results.arms:
        raise ValueError(f"{results.directory} has no arm {arm!r}; there are {', '.join(results.arms)}")
    return [load_run(workdir_of(results.directory, arm, seed)) for seed in results.finished[arm]]


def value_of(rows: Sequence[Mapping[str, float]], metric: str) -> float | None:
    """What a metric of a sweep is in rows of metrics.jsonl; None where no row has it."""
    name = metric.removeprefix(AREA)
    points = [(row["step"], row[name]) for row in rows if name in row]
    if not points:
        return None
    steps, heights = np.array(points, float).T
    if name == metric or len(points) == 1:
        return float(heights[-1])
    return float(np.trapezoid(heights, steps) / (steps[-1] - steps[0]))


def table(results: Results, baseline: str | None = None) -> list[Row]:
    """A row for each arm and metric: arms in the order of the sweep, metrics within.

    ``baseline`` is the label of the arm to compare with, by default the sweep's. Raises ValueError if there
    is no such arm.
    """
    base = results.baseline if baseline is None else baseline
    if base and base not in results.arms:
        raise ValueError(f"{results.directory} has no arm {base!r}; there are {', '.join(results.arms)}")
    return [_row(results, arm, metric, base) for arm in results.arms for metric in results.metrics]


def write_table(results: Results) -> str:
    """Write ``table.md``, ``table.csv`` and ``runs.csv`` into the sweep's folder; returns the first."""
    rows = table(results)
    text = as_markdown(results, rows)
    atomic_write(results.directory / "table.md", text)
    atomic_write(results.directory / "table.csv", _csv(_COLUMNS, map(_flat, rows)))
    atomic_write(
        results.directory / "runs.csv",
        _csv(("arm", "seed", "metric", "value"), [(*key, value) for key, value in results.values.items()]),
    )
    return text


def as_markdown(results: Results, rows: Sequence[Row]) -> str:
    """The rows of `table` as a page of Markdown."""
    compared = any(row.difference is not None for row in rows)
    heads = ["arm", "runs"]
    for metric in results.metrics:
        heads += [f"`{_escaped(metric)}`", *([f"difference to `{results.baseline}`"] if compared else [])]
    lines = [heads, ["---"] * len(heads)]
    for arm in results.arms:
        own = [row for row in rows if row.arm == arm]
        cells = [f"`{arm}`", f"{own[0].finished} of {own[0].planned}"]
        for row in own:
            digits = 3 if abs(row.value.mean) < 10 else 1
            cells += [_cell(row.value, digits), *([_difference(row, digits)] if compared else [])]
        lines.append(cells)
    missing = [
        metric
        for metric in results.metrics
        if any(results.finished.values()) and not any(name == metric for _, _, name in results.values)
    ]
    seeds = ", ".join(map(str, results.seeds))
    parts = [
        f"`{_escaped(results.experiment)}`, seeds {seeds}.",
        "\n".join("| " + " | ".join(cells) + " |" for cells in lines),
        _legend(sum(row.difference is not None and row.difference.n > 1 for row in rows), compared),
        *(f"No finished run has logged `{_escaped(metric)}`." for metric in missing),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(directory: Path, arm: str, seed: int) -> Path:
    return workdir_of(directory, arm, seed) / "summary.json"


def _row(results: Results, arm: str, metric: str, base: str) -> Row:
    def values(label: str) -> dict[int, float]:
        return {
            seed: results.values[label, seed, metric]
            for seed in results.finished[label]
            if (label, seed, metric) in results.values
        }

    own = values(arm)
    difference = None
    if base and arm != base:
        other = values(base)
        difference = mean_interval(
            np.array([own[seed] - other[seed] for seed in own if seed in other], float)
        )
    value = mean_interval(np.array(list(own.values()), float))
    return Row(arm, metric, len(results.finished[arm]), len(results.seeds), value, difference)


_COLUMNS = (
    *("arm", "metric", "finished", "planned", "seeds", "mean", "low", "high"),
    *("pairs", "difference", "difference_low", "difference_high"),
)


def _flat(row: Row) -> tuple[Any, ...]:
    own, other = row.value, row.difference or Interval(np.nan, np.nan, np.nan, 0)
    return (
        *(row.arm, row.metric, row.finished, row.planned),
        *(own.n, own.mean, own.low, own.high),
        *(other.n, other.mean, other.low, other.high),
    )


def _csv(columns: Sequence[str], rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if isinstance(cell, float) and np.isnan(cell) else cell for cell in row])
    return text.getvalue()


def _cell(value: Interval, digits: int, sign: str = "") -> str:
    if not value.n:
        return "-"
    mean = f"{value.mean:{sign}.{digits}f}"
    return mean if value.n == 1 else f"{mean} ± {value.half:.{digits}f}"


def _difference(row: Row, digits: int) -> str:
    if row.difference is None:
        return ""
    text = _cell(row.difference, digits, "+")
    tells = row.difference.low > 0 or row.difference.high < 0
    return f"**{text}**" if tells else text


def _legend(compared: int, differences: bool) -> str:
    text = "Mean over seeds ± half of its 95 % interval (Student's t)."
    if not differences:
        return text
    text += " Differences are paired by seed; bold ones have an interval without 0"
    return text + (f", which of {compared} comparisons one in 20 has by chance." if compared else ".")


def _escaped(text: str) -> str:
    """Text that stays in its cell of a table, and in its backticks."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
