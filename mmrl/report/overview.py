"""What a report says of its runs before it draws anything: names, figures, differences, where they ran."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.analysis.runs import Run
from mmrl.run_folder import flat, read_starts
from mmrl.statistics import Interval, bootstrap_interval

# Held-out figures of the first table: metric, what to call it, whether it is a share.
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
class Change:
    """A held-out figure before the first step and at the last evaluation."""

    label: str
    share: bool
    before: float
    after: float
    difference: Interval  # over questions, each with itself; NaN where responses are not there


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is told of a run beside its name."""

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
    changes: tuple[Change, ...]


def names(workdirs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths by which they differ: "papo", or "papo/seed0" beside "papo/seed1"."""
    paths = [Path(os.path.abspath(path)).parts for path in workdirs]
    longest = max(map(len, paths))
    for count in range(1, longest + 1):
        ends = ["/".join(parts[-count:]) for parts in paths]
        if len(set(ends)) == len(ends):
            break
    return ends


def facts(run: Run) -> Facts:
    """What is known of a run, finished or not."""
    starts = read_starts(run.workdir)
    last = starts[-1] if starts else {}
    done = max((int(row["step"]) for row in run.metrics), default=0)
    spent = sum(row.get("time/step", 0.0) for row in run.metrics)
    return Facts(
        workdir=str(run.workdir),
        method=run.config.algorithm["name"],
        seed=run.config.seed,
        steps=done,
        asked=run.config.train.steps,
        finished=run.finished,
        seconds=float(run.summary.get("seconds") or spent),
        started=_time(starts[0].get("time", "")) if starts else "",
        starts=len(starts),
        commit=_commit(last.get("commit")),
        devices=_devices(last),
        libraries=last.get("libraries", {}),
        changes=tuple(changes(run)),
    )


def changes(run: Run) -> list[Change]:
    """Held-out figures before and after, of those that the run has."""
    found = []
    for name, label, share in _FIGURES:
        steps, values = run.curve(f"heldout/{name}")
        if len(values) and steps[0] == 0:  # else its row was damaged
            found.append(
                Change(
                    label, share, float(values[0]), float(values[-1]), difference(run.before, run.after, name)
                )
            )
    return found


def difference(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], name: str
) -> Interval:
    """How much component ``name`` has changed, with an interval over the questions that both have."""
    old, new = _by_question(before, name), _by_question(after, name)
    both = sorted(old.keys() & new.keys())
    changed = np.array([new[question] - old[question] for question in both])
    return bootstrap_interval(changed, np.random.default_rng(0), draws=1000)


def _by_question(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if isinstance(row.get(name), int | float):
            found.setdefault(row["id"], []).append(row[name])
    return {question: float(np.mean(values)) for question, values in found.items()}


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Keys of the config in which the runs differ, and the value of each run; "" where a default holds."""
    configs = [_leaves(run) for run in runs]
    keys = sorted({key for config in configs for key in config})
    table = [(key, [config.get(key, "") for config in configs]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def kinds(runs: Sequence[Run]) -> list[int]:
    """A number for each run, equal for those that differ in their seed alone, unless all do."""
    differing = [(key, values) for key, values in differences(runs) if key not in _LABELS]
    columns = [tuple(values[k] for _, values in differing) for k in range(len(runs))]
    first = {column: k for k, column in reversed(list(enumerate(columns)))}
    order = sorted(first.values())
    return list(range(len(runs))) if len(order) == 1 else [order.index(first[column]) for column in columns]


def notes(runs: Sequence[Run], titles: Sequence[str], told: Sequence[Facts]) -> list[str]:
    """What a reader must know before comparing."""
    found = []
    for run, title, one in zip(runs, titles, told, strict=True):
        if not one.finished:
            found.append(f"{title} is not finished: {one.steps} of {one.asked} steps so far.")
        if not run.config.data.heldout:
            found.append(f"{title} has no held-out data.")
        skipped = sum(row.get("loss/skipped", 0.0) for row in run.metrics)
        if skipped:
            found.append(
                f"{title} skipped updates whose loss or gradient was not finite ({skipped:g} steps)."
            )
    heldout = {json.dumps(_heldout(run), sort_keys=True) for run in runs if run.config.data.heldout}
    if len(heldout) > 1:
        found.append("The runs have different held-out data: their accuracies are not of the same questions.")
    if len({one.commit for one in told}) > 1:
        found.append("The runs are of different commits of mmrl.")
    if len({tuple(sorted(one.libraries.items())) for one in told}) > 1:
        found.append("The runs were computed with different versions of libraries.")
    return found


def _heldout(run: Run) -> dict[str, str]:
    """Fingerprints of the held-out data; its name where no start tells them."""
    starts = read_starts(run.workdir)
    prints = {k: v for start in starts for k, v in start["data"].items() if k.startswith("data.heldout")}
    return prints or {"name": run.config.data.heldout}


def _leaves(run: Run) -> dict[str, str]:
    tree = flat(dataclasses.asdict(run.config))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in tree.items()}


def _commit(commit: Mapping[str, Any] | None) -> str:
    return commit["hash"][:10] + (" (changed)" if commit.get("changed") else "") if commit else ""


def _devices(start: Mapping[str, Any]) -> str:
    there = start.get("devices")
    if not there:
        return ""
    hosts = start.get("processes", 1)
    return f"{there['kind']}, {there['count']} in all" + (f", {hosts} processes" if hosts > 1 else "")


def _time(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return ""
