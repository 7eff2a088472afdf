"""Results of a sweep, read from its folder: finished runs, their metrics, and the table of these."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrl.analysis.runs import Run, load_run
from mmrl.atomic import atomic_write
from mmrl.run_folder import read_metrics
from mmrl.statistics import Interval, mean_interval
from mmrl.sweep.definition import AREA, workdir_of

_COLUMNS = (
    *("arm", "metric", "finished", "planned", "seeds", "mean", "low", "high"),
    *("pairs", "difference", "difference_low", "difference_high"),
)
_NONE = Interval(np.nan, np.nan, np.nan, 0)


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

    def of_arm(self, arm: str, metric: str) -> dict[int, float]:
        """Values of a metric by seed. Raises ValueError if there is no such arm."""
        if arm not in self.arms:
            raise ValueError(f"{self.directory} has no arm {arm!r}; there are {', '.join(self.arms)}")
        found = {seed: self.values.get((arm, seed, metric)) for seed in self.finished[arm]}
        return {seed: value for seed, value in found.items() if value is not None}


class Row(NamedTuple):
    """One metric of one arm."""

    arm: str
    metric: str
    finished: int  # runs
    planned: int
    value: Interval  # mean over seeds
    difference: Interval | None  # from the baseline with the same seed; None of the baseline, and without one


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
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{directory} holds no sweep: {path} does not exist") from error
    except (ValueError, RecursionError):
        content = None
    if not _is_sweep(content):
        raise ValueError(f"{path} is damaged; the same mmrl sweep writes it anew")
    arms, seeds, names = content["arms"], tuple(content["seeds"]), tuple(metrics or content["metrics"])
    finished: dict[str, tuple[int, ...]] = {}
    values: dict[tuple[str, int, str], float] = {}
    for arm in arms:
        folders = {seed: workdir_of(directory, arm, seed) for seed in seeds}
        finished[arm] = tuple(seed for seed in seeds if (folders[seed] / "summary.json").is_file())
        for seed in finished[arm]:
            rows = read_metrics(folders[seed])
            found = {name: value_of(rows, name) for name in names}
            values |= {(arm, seed, name): value for name, value in found.items() if value is not None}
    return Results(
        directory, content["experiment"], arms, seeds, content["baseline"], names, finished, values
    )


def _is_sweep(value: Any) -> bool:
    """True of a JSON value that `mmrl.sweep.definition.write_sweep` writes."""
    if not isinstance(value, dict) or not isinstance(value.get("arms"), dict):
        return False
    lists = {"seeds": int, "metrics": str}
    return (
        isinstance(value.get("experiment"), str)
        and all(isinstance(changes, dict) for changes in value["arms"].values())
        and value.get("baseline") in ("", *value["arms"])
        and all(value.get(key) and isinstance(value[key], list) for key in lists)
        and all(type(item) is kind for key, kind in lists.items() for item in value[key])
    )


def load_runs(results: Results, arm: str) -> list[Run]:
    """The finished runs of an arm, in the order of seeds. Raises ValueError if there is no such arm."""
    results.of_arm(arm, "")
    return [load_run(workdir_of(results.directory, arm, seed)) for seed in results.finished[arm]]


def value_of(rows: Sequence[Mapping[str, float]], metric: str) -> float | None:
    """Value of a sweep's metric in rows of metrics.jsonl; None where no row has it."""
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
    rows = []
    for metric in results.metrics:
        other = results.of_arm(base, metric) if base else {}
        for arm in results.arms:
            own, difference = results.of_arm(arm, metric), None
            if base and arm != base:
                difference = _mean([own[seed] - other[seed] for seed in own if seed in other])
            counts = len(results.finished[arm]), len(results.seeds)
            rows.append(Row(arm, metric, *counts, _mean(own.values()), difference))
    order = list(results.arms)
    return sorted(rows, key=lambda row: order.index(row.arm))


def write_table(results: Results) -> str:
    """Write ``table.md``, ``table.csv`` and ``runs.csv`` into the sweep's folder; returns the first."""
    rows = table(results)
    text = as_markdown(results, rows)
    flat = [(*row[:4], *_cells(row.value), *_cells(row.difference or _NONE)) for row in rows]
    values = [(*key, value) for key, value in results.values.items()]
    atomic_write(results.directory / "table.md", text)
    atomic_write(results.directory / "table.csv", _csv(_COLUMNS, flat))
    atomic_write(results.directory / "runs.csv", _csv(("arm", "seed", "metric", "value"), values))
    return text


def as_markdown(results: Results, rows: Sequence[Row]) -> str:
    """The rows of `table` as a page of Markdown."""
    compared = any(row.difference is not None for row in rows)
    heads = ["arm", "runs"]
    for metric in results.metrics:
        heads += [f"`{_escape(metric)}`", *([f"difference to `{results.baseline}`"] if compared else [])]
    lines = [heads, ["---"] * len(heads)]
    for arm in results.arms:
        own = [row for row in rows if row.arm == arm]
        cells = [f"`{arm}`", f"{own[0].finished} of {own[0].planned}"]
        for row in own:
            digits = 3 if abs(row.value.mean) < 10 else 1
            cells += [_cell(row.value, digits), *([_difference(row.difference, digits)] if compared else [])]
        lines.append(cells)
    legend = "Mean over seeds ± half of its 95 % interval (Student's t)."
    if compared:
        count = sum(row.difference is not None and row.difference.n > 1 for row in rows)
        chance = f", which of {count} comparisons one in 20 has by chance." if count else "."
        legend += f" Differences are paired by seed; bold ones have an interval without 0{chance}"
    logged = {name for _, _, name in results.values}
    parts = [
        f"`{_escape(results.experiment)}`, seeds {', '.join(map(str, results.seeds))}.",
        "\n".join("| " + " | ".join(cells) + " |" for cells in lines),
        legend,
    ]
    if any(results.finished.values()):
        missing = [metric for metric in results.metrics if metric not in logged]
        parts += [f"No finished run has logged `{_escape(metric)}`." for metric in missing]
    return "\n\n".join(parts) + "\n"


def _mean(values: Iterable[float]) -> Interval:
    return mean_interval(np.array([*values], float))


def _cells(interval: Interval) -> tuple[float, ...]:
    return interval.n, interval.mean, interval.low, interval.high


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
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


def _difference(value: Interval | None, digits: int) -> str:
    if value is None:
        return ""
    text = _cell(value, digits, "+")
    return f"**{text}**" if value.low > 0 or value.high < 0 else text


def _escape(text: str) -> str:
    """Text that stays in its cell of a table, and in its backticks."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
