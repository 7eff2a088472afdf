"""Overview of a report: names of runs, figures before and after, differences of config, notes."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from mmrl.analysis.runs import Row, Run, by_question
from mmrl.run_folder import flat, read_starts
from mmrl.statistics import Interval, bootstrap_interval

# Held-out figures of the first table: metric, label, whether it is a share.
_FIGURES = (
    ("accuracy", "accuracy", True),
    ("perception_error", "perception errors", True),
    ("reasoning_error", "reasoning errors", True),
    ("format_error", "format errors", True),
    ("reward", "reward", False),
    ("length", "tokens a response", False),
)
_LABELS = ("seed",)  # keys that runs of one kind differ in


@dataclasses.dataclass(frozen=True)
class HeldoutChange:
    """A held-out figure before the first step and at the last evaluation."""

    label: str
    share: bool
    before: float
    after: float
    difference: Interval  # over questions, each with itself; NaN where responses are not there


@dataclasses.dataclass(frozen=True)
class Facts:
    """A row of the table of runs."""

    workdir: str
    method: str
    seed: int
    steps: int  # done
    asked: int
    finished: bool
    seconds: float
    started: str  # "" if not known
    starts: int
    commit: str  # "" outside a repository
    devices: str
    libraries: Mapping[str, str]
    changes: tuple[HeldoutChange, ...]


def names(workdirs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths by which they differ: "papo", or "papo/seed0" beside "papo/seed1"."""
    paths = [Path(os.path.abspath(path)).parts for path in workdirs]
    for count in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(parts[-count:]) for parts in paths]
        if len(set(ends)) == len(ends):
            break
    return ends


def facts(run: Run) -> Facts:
    """Facts about a run, finished or not."""
    starts = read_starts(run.workdir)
    last = starts[-1] if starts else {}
    commit, devices, hosts = last.get("commit"), last.get("devices"), last.get("processes", 1)
    changed = " (changed)" if commit and commit.get("changed") else ""
    processes = f", {hosts} processes" if hosts > 1 else ""
    return Facts(
        workdir=str(run.workdir),
        method=run.config.algorithm["name"],
        seed=run.config.seed,
        steps=max((int(row["step"]) for row in run.metrics), default=0),
        asked=run.config.train.steps,
        finished=run.finished,
        seconds=float(run.summary.get("seconds") or sum(row.get("time/step", 0.0) for row in run.metrics)),
        started=_time(starts[0].get("time", "")) if starts else "",
        starts=len(starts),
        commit=commit["hash"][:10] + changed if commit else "",
        devices=f"{devices['kind']}, {devices['count']} in all{processes}" if devices else "",
        libraries=last.get("libraries", {}),
        changes=tuple(_changes(run)),
    )


def _changes(run: Run) -> list[HeldoutChange]:
    """Held-out figures before and after, of those that the run has."""
    found = []
    for name, label, share in _FIGURES:
        steps, values = run.curve(f"heldout/{name}")
        if len(values) and steps[0] == 0:  # else its row was damaged
            ends = float(values[0]), float(values[-1])
            found.append(HeldoutChange(label, share, *ends, difference(run.before, run.after, name)))
    return found


def difference(before: Sequence[Row], after: Sequence[Row], name: str) -> Interval:
    """Change of component ``name``, with an interval over the questions that both have."""
    old, new = (
        {
            question: float(np.mean([row[name] for row in members]))
            for question, members in by_question(
                row for row in rows if isinstance(row.get(name), int | float)
            ).items()
        }
        for rows in (before, after)
    )
    changed = np.array([new[question] - old[question] for question in sorted(old.keys() & new.keys())])
    return bootstrap_interval(changed, np.random.default_rng(0), draws=1000)


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Keys of the config in which the runs differ, and the value of each run; "" where a default holds."""
    configs = [
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in flat(dataclasses.asdict(run.config)).items()
        }
        for run in runs
    ]
    keys = sorted({key for config in configs for key in config})
    table = [(key, [config.get(key, "") for config in configs]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def kinds(runs: Sequence[Run]) -> list[int]:
    """A number for each run, equal for those that differ in their seed alone, unless all do."""
    rows = [values for key, values in differences(runs) if key not in _LABELS]
    columns = [tuple(values[k] for values in rows) for k in range(len(runs))]
    order = list(dict.fromkeys(columns))
    return list(range(len(runs))) if len(order) == 1 else [order.index(column) for column in columns]


def notes(runs: Sequence[Run], titles: Sequence[str], facts: Sequence[Facts]) -> list[str]:
    """Notes for a reader who compares the runs."""
    found = []
    for run, title, row in zip(runs, titles, facts, strict=True):
        if not row.finished:
            found.append(f"{title} is not finished: {row.steps} of {row.asked} steps so far.")
        if not run.config.data.heldout:
            found.append(f"{title} has no held-out data.")
        skipped = sum(values.get("loss/skipped", 0.0) for values in run.metrics)
        if skipped:
            found.append(
                f"{title} skipped updates whose loss or gradient was not finite ({skipped:g} steps)."
            )
    heldout = {json.dumps(_heldout(run), sort_keys=True) for run in runs if run.config.data.heldout}
    if len(heldout) > 1:
        found.append("The runs have different held-out data: their accuracies are not of the same questions.")
    if len({row.commit for row in facts}) > 1:
        found.append("The runs are of different commits of mmrl.")
    if len({tuple(sorted(row.libraries.items())) for row in facts}) > 1:
        found.append("The runs were computed with different versions of libraries.")
    return found


def _heldout(run: Run) -> dict[str, str]:
    """Fingerprints of the held-out data; its name where no start tells them."""
    starts = read_starts(run.workdir)
    prints = {k: v for start in starts for k, v in start["data"].items() if k.startswith("data.heldout")}
    return prints or {"name": run.config.data.heldout}


def _time(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return ""
