"""Reports: one page about runs, with their curves and rollouts, that needs no other file and no network."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup
from PIL import Image

from mmrl.analysis import Run, error_kind, load_run, rollout_sample
from mmrl.analysis.runs import Row, choose_evenly
from mmrl.curves import OTHER, SECTIONS, SPEED, Panel, panels
from mmrl.data.examples import encode_picture
from mmrl.report import overview

MOST_POINTS = 500  # of a line
_COLUMNS = 40  # of a plot of phases
_COLOURS = 8
_SMALL = 0.01  # share of the time below which a phase is not drawn apart
_SIDE = 512  # pixels of the longer side of a picture
_TEXTS = ("id", "source", "problem", "answer", "response", "tokens", "reward")  # of a row; the rest are parts


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The folders of runs: those given, and of a folder of runs, such as a sweep, those in it.

    Raises ValueError naming a folder that is no run and holds none.
    """
    found: list[Path] = []
    for path in paths:
        # In itself, in its folders, or in theirs.
        depths = (sorted(path.glob(f"{depth}config.json")) for depth in ("", "*/", "*/*/"))
        inside = next((configs for configs in depths if configs), [])
        if not inside:
            what = "holds no run: it has no config.json" if path.is_dir() else "does not exist"
            raise ValueError(f"{path} {what}; name the --workdir of a run")
        found += [config.parent for config in inside if config.parent not in found]
    return found


def report(workdirs: Sequence[Path], rollouts: int, say: Callable[[str], None]) -> str:
    """The page about runs, with so many rollouts in all (0: no weights are read).

    Raises ValueError if a folder holds no run.
    """
    runs = [load_run(workdir) for workdir in workdirs]
    names, facts = overview.names(workdirs), [overview.facts(run) for run in runs]
    notes, kinds = overview.notes(runs, names, facts), overview.kinds(runs)
    shown: list[dict[str, Any]] = []
    for k, (run, name) in enumerate(zip(runs, names, strict=True)):
        count = rollouts // len(runs) + (k < rollouts % len(runs))
        if count:
            say(f"rollouts of {name}")
            more, why = _rollouts(run, k, count, say)
            shown += more
            if why:
                lack = "without token perception" if more else "left out"
                notes.append(f"Rollouts of {name} are {lack}: {why}")
    columns = [{"name": name, "colour": kind % _COLOURS} for name, kind in zip(names, kinds, strict=True)]
    sections = _sections(runs, columns)
    values = {
        "title": names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}",
        "subtitle": f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "runs": [
            {**column, "facts": row, "changes": {change.label: change for change in row.changes}}
            for column, row in zip(columns, facts, strict=True)
        ],
        "labels": list(dict.fromkeys(change.label for row in facts for change in row.changes)),
        "intervals": any(np.isfinite(change.difference.mean) for row in facts for change in row.changes),
        "notes": notes,
        "differences": overview.differences(runs),
        "sections": sections,
        "has_rollouts": bool(shown),
    }
    return page(values, {"runs": columns, "sections": sections, "rollouts": shown})


def page(values: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The whole page; ``values`` go into the markup, ``data`` to the script.

    The policy of the page names its own script and style by their hashes, so no other script runs in it,
    whatever text comes to stand there.
    """
    style, charts, rollouts = map(_file, ("page.css", "charts.js", "rollouts.js"))
    script = (
        '(() => {\n"use strict";\n'
        'const report = JSON.parse(document.getElementById("data").textContent);\n'
        f"{charts}\n{rollouts}\nstartCharts();\nstartRollouts();\n}})();\n"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"figure": figure, "delta": delta, "duration": duration}
    text = environment.from_string(_file("page.html")).render(
        **values,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(as_script_data(data)),
    )
    # A name of a run or a value of its config may hold what no file can, such as half a character.
    return text.encode("utf-8", "replace").decode("utf-8")


def as_script_data(data: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element: no text in it can end that or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # everything beyond ASCII is escaped
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def figure(value: float, share: bool) -> str:
    """A number as text; a share in percent."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.1%}".replace("%", " %") if share else f"{value:.3g}"


def delta(change: overview.HeldoutChange) -> str:
    """Change of a figure, with its interval over questions; "" where that is not known."""
    found = change.difference
    if not math.isfinite(found.mean):
        return ""
    scale, form = (100, "+.1f") if change.share else (1, "+.2g")
    mean, low, high = (f"{scale * value:{form}}" for value in found[:3])
    return f"{mean} ({low} to {high})"


def duration(seconds: float) -> str:
    """Seconds as text."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def round_values(values: Float[np.ndarray, "n"]) -> list[float | None]:
    """Numbers as JSON has them, to five digits: more cannot be told apart in a plot."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def _hash(text: str) -> Markup:
    return Markup("sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())


def _file(name: str) -> str:
    return resources.files("mmrl.report").joinpath(name).read_text(encoding="utf-8")


def _sections(runs: Sequence[Run], columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plots under their headings, in order, as template and script take them."""
    every = panels([run.metrics for run in runs])
    return [
        {
            "name": name,
            "panels": [_plot(panel, runs, columns) for panel in every if panel.section == name],
            "phases": _phases(runs, columns) if name == SPEED else [],
            "folded": name == OTHER,
        }
        for name in SECTIONS
    ]


def _plot(panel: Panel, runs: Sequence[Run], columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    lines = []
    alone = len(runs) == 1
    for k, (run, column) in enumerate(zip(runs, columns, strict=True)):
        for place, (metric, label) in enumerate(panel.lines.items()):
            steps, values = run.curve(metric)
            if not len(steps):
                continue
            if not alone:
                label = column["name"] if len(panel.lines) == 1 else f"{column['name']}: {label}"
            few, drawn = thin(steps, values)
            lines.append(
                {
                    "run": k,
                    "label": label,
                    "colour": place % _COLOURS if alone else column["colour"],
                    "dash": place // _COLOURS % 4 if alone else place,
                    "steps": few.tolist(),
                    "values": round_values(drawn),
                    # Each point is marked where a line alone would hide where it was measured.
                    "sparse": len(steps) == 1 or len(steps) <= min(0.6 * len(run.metrics), 60),
                    "gaps": int((~np.isfinite(values)).sum()),
                }
            )
    return {"title": panel.title, "note": panel.note, "percent": panel.percent, "lines": lines}


def thin(
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


def _phases(runs: Sequence[Run], columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean seconds of each phase in stretches of the run, phases that take next to nothing put together."""
    found: list[dict[str, Any]] = []
    for k, (run, column) in enumerate(zip(runs, columns, strict=True)):
        rows = [row for row in run.metrics if "time/step" in row]
        names = sorted({key for row in rows for key in row if key.startswith("time/")} - {"time/step"})
        if not rows or not names:
            continue
        seconds = {name: np.array([row.get(name, 0.0) for row in rows]) for name in names}
        total = {name: values.sum() for name, values in seconds.items()}
        least = _SMALL * sum(total.values())
        order = sorted(names, key=lambda name: -total[name])
        large = [name for name in order if total[name] >= least and name != "time/other"]
        rest = sum((seconds[name] for name in names if name not in large), np.zeros(len(rows)))
        stacked = np.stack([*(seconds[name] for name in large), rest])
        parts = np.array_split(np.arange(len(rows)), min(_COLUMNS, len(rows)))
        means = np.stack([stacked[:, part].mean(1) for part in parts], axis=1)
        found.append(
            {
                "run": k,
                "title": "Seconds of a step" if len(runs) == 1 else f"Seconds of a step: {column['name']}",
                "note": "By phase; each column is the mean over some steps, the legend over all of them.",
                "names": [*(name.removeprefix("time/") for name in large), "other"],
                "steps": [int(np.mean([rows[i]["step"] for i in part])) for part in parts],
                "values": [round_values(line) for line in means],
                "top": float(means.sum(0).max()),
            }
        )
    most = max((phases["top"] for phases in found), default=0.0)
    return [{**phases, "top": most} for phases in found]  # one scale, so that runs can be compared


def _rollouts(
    run: Run, number: int, count: int, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """``count`` rollouts of the run, the page's ``number``-th, and why something is missing of them ("").

    Where tokens cannot be measured, responses are shown without; where there is none, nothing is.
    """
    if not run.after and not run.before:
        return [], "no held-out responses yet" if run.config.data.heldout else "no held-out data"
    when = "after" if run.after else "before"
    try:
        shown = rollout_sample(run, count, when=when, progress=lambda k, n: say(f"measured {k} of {n}"))
    except ValueError as error:
        rows = choose_evenly(run.after or run.before, count)
        return [_entry(run, number, row, why=str(error)) for row in rows], str(error)
    found = []
    for rollout in shown:
        perception = rollout.perception
        values = {
            name: round_values(getattr(perception, name)) for name in ("exact", "k3", "entropy", "logprob")
        }
        pictures = {"images": rollout.images, "corrupted": rollout.corrupted}
        addresses = {name: list(map(_data_url, files)) for name, files in pictures.items()}
        entry = _entry(run, number, rollout.row)
        found.append({**entry, "pieces": list(perception.pieces), **values, **addresses})
    return found, ""


def _entry(run: Run, number: int, row: Row, why: str = "") -> dict[str, Any]:
    earlier = [other for other in run.before if other["id"] == row["id"]] if run.after else []
    group = [other for other in run.after or run.before if other["id"] == row["id"]]
    before = None
    if earlier:
        kind, response = error_kind(earlier[0]), earlier[0]["response"]
        before = {"response": response, "kind": kind, "group": _right_of(earlier)}
    return {
        "run": number,
        "id": row["id"],
        "source": row.get("source", ""),
        "kind": error_kind(row),
        "problem": row["problem"],
        "answer": row["answer"],
        "pieces": [row["response"]],
        "reward": row.get("reward"),
        "parts": {key: value for key, value in row.items() if key not in _TEXTS},
        "group": _right_of(group),
        "before": before,
        "images": [],
        "corrupted": [],
        "why": why,
    }


def _right_of(rows: Sequence[Row]) -> list[int]:
    """Number of right responses, and number of all."""
    return [sum(error_kind(row) == "right" for row in rows), len(rows)]


def _data_url(image: bytes) -> str:
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    kind, data = encode_picture(picture)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
