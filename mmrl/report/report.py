"""A report on one run or several, from their folders to the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.analysis import Run, load_run
from mmrl.report import overview
from mmrl.report.page import page, rounded
from mmrl.report.panels import OTHER, SECTIONS, SPEED, Line, Panel, panels, thinned
from mmrl.report.rollouts import entries

_COLUMNS = 40  # of a picture of phases
_COLOURS = 8
_SMALL = 0.01  # share of the time below which a phase is not drawn apart


@dataclass(frozen=True)
class Section:
    """Pictures under one heading, as the page's script takes them."""

    name: str
    panels: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    folded: bool


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The folders of runs: those given, and of a folder of runs, such as a sweep, those in it.

    Raises ValueError naming a folder that is no run and holds none.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path] if (path / "config.json").is_file() else _inside(path)
        if not inside:
            what = "holds no run: it has no config.json" if path.is_dir() else "does not exist"
            raise ValueError(f"{path} {what}; name the --workdir of a run")
        found += [one for one in inside if one not in found]
    return found


def _inside(folder: Path) -> list[Path]:
    """Runs that lie in a folder, or in its folders."""
    for depth in ("*", "*/*"):
        found = sorted(path.parent for path in folder.glob(f"{depth}/config.json"))
        if found:
            return found
    return []


def report(workdirs: Sequence[Path], rollouts: int, say: Callable[[str], None]) -> str:
    """The page about runs, with so many rollouts in all (0: no weights are read).

    Raises ValueError if a folder holds no run.
    """
    runs = [load_run(workdir) for workdir in workdirs]
    names, told = overview.names(workdirs), [overview.facts(run) for run in runs]
    notes, kinds = overview.notes(runs, names, told), overview.kinds(runs)
    shown: list[dict[str, Any]] = []
    for k, (run, name) in enumerate(zip(runs, names, strict=True)):
        count = rollouts // len(runs) + (k < rollouts % len(runs))
        if count:
            say(f"rollouts of {name}")
            more, why = entries(run, k, count, say)
            shown += more
            if why:
                notes.append(
                    f"Rollouts of {name} are {'without token perception' if more else 'left out'}: {why}"
                )
    columns = [{"name": name, "colour": kind % _COLOURS} for name, kind in zip(names, kinds, strict=True)]
    drawn = sections(runs, columns)
    values = {
        "title": names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}",
        "subtitle": f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "runs": [
            {**column, "facts": one, "changes": {change.label: change for change in one.changes}}
            for column, one in zip(columns, told, strict=True)
        ],
        "labels": list(dict.fromkeys(change.label for one in told for change in one.changes)),
        "intervals": any(np.isfinite(change.difference.mean) for one in told for change in one.changes),
        "notes": notes,
        "differences": overview.differences(runs),
        "sections": drawn,
        "has_rollouts": bool(shown),
    }
    pictures = [{"name": one.name, "panels": one.panels, "phases": one.phases} for one in drawn]
    return page(values, {"runs": columns, "sections": pictures, "rollouts": shown})


def sections(runs: Sequence[Run], columns: Sequence[dict[str, Any]]) -> list[Section]:
    """What there is to draw, in order."""
    every = panels([run.metrics for run in runs])
    return [
        Section(
            name=name,
            panels=[_panel(panel, runs, columns) for panel in every if panel.section == name],
            phases=_phases(runs, columns) if name == SPEED else [],
            folded=name == OTHER,
        )
        for name in SECTIONS
    ]


def _panel(panel: Panel, runs: Sequence[Run], columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    lines = []
    for k, (run, column) in enumerate(zip(runs, columns, strict=True)):
        for place, line in enumerate(panel.lines):
            steps, values = run.curve(line.metric)
            if not len(steps):
                continue
            alone = len(runs) == 1
            few, drawn = thinned(steps, values)
            lines.append(
                {
                    "run": k,
                    "label": _label(line, panel, None if alone else column["name"]),
                    "colour": place % _COLOURS if alone else column["colour"],
                    "dash": place // _COLOURS % 4 if alone else place,
                    "steps": few.tolist(),
                    "values": rounded(drawn),
                    "sparse": _sparse(len(steps), len(run.metrics)),
                    "gaps": int((~np.isfinite(values)).sum()),
                }
            )
    return {"title": panel.title, "note": panel.note, "percent": panel.percent, "lines": lines}


def _sparse(points: int, rows: int) -> bool:
    """Whether each point of a curve is marked, as a line alone would hide where it was measured."""
    return points == 1 or (points <= 0.6 * rows and points <= 60)


def _label(line: Line, panel: Panel, run: str | None) -> str:
    if run is None:
        return line.label
    return run if len(panel.lines) == 1 else f"{run}: {line.label}"


def _phases(runs: Sequence[Run], columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean seconds of each phase in stretches of the run, phases that take next to nothing put together."""
    found: list[dict[str, Any]] = []
    for k, (run, column) in enumerate(zip(runs, columns, strict=True)):
        rows = [row for row in run.metrics if "time/step" in row]
        names = sorted({key for row in rows for key in row if key.startswith("time/")} - {"time/step"})
        if not rows or not names:
            continue
        seconds = np.array([[row.get(name, 0.0) for row in rows] for name in names])
        total = seconds.sum(1)
        large = [
            i for i in np.argsort(-total) if total[i] >= _SMALL * total.sum() and names[i] != "time/other"
        ]
        rest = seconds[[i for i in range(len(names)) if i not in large]].sum(0)
        stacked = np.stack([*seconds[large], rest])
        parts = np.array_split(np.arange(len(rows)), min(_COLUMNS, len(rows)))
        means = np.stack([stacked[:, part].mean(1) for part in parts], axis=1)
        found.append(
            {
                "run": k,
                "title": "Seconds of a step" if len(runs) == 1 else f"Seconds of a step: {column['name']}",
                "note": "By phase; each column is the mean over some steps, the legend over all of them.",
                "names": [*(names[i].removeprefix("time/") for i in large), "other"],
                "steps": [int(np.mean([rows[i]["step"] for i in part])) for part in parts],
                "values": [rounded(line) for line in means],
                "top": float(means.sum(0).max()),
            }
        )
    most = max((one["top"] for one in found), default=0.0)
    return [{**one, "top": most} for one in found]  # one scale, so that runs can be compared
