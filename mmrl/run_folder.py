"""Files of a run's folder, read back: its config, its starts and its metrics."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmrl.atomic import DamagedLine, is_number, read_jsonl, warn_of
from mmrl.config import Config, from_dict

# Keys that change no step: how work is cut up, when what is saved or measured, and what stops the run.
CHANGEABLE = (
    "data.max_broken",
    "data.workers",
    "data.processes",
    "episode.workers",
    "reward.workers",
    "reward.judge.concurrency",
    "reward.judge.max_requests",
    "reward.judge.key_variable",
    "reward.judge.endpoint",
    "rollout.prompt_slots",
    "rollout.slots_per_prompt",
    "rollout.chunk",
    "train.row_tokens",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.evaluate_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.max_skipped",
    "cold_start.checkpoint_every",
    "log.",
    "mesh.",
)


def read_config(workdir: Path) -> Config:
    """The config a run was started with.

    Raises:
      ValueError: the folder holds no run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} holds no run: {path} does not exist")
    config = config_of(workdir)
    if config is None:
        raise ValueError(f"{path} is damaged; starting the run again with the same command writes it anew")
    return config


def config_of(workdir: Path) -> Config | None:
    """The config in ``config.json``; None if it is not there, or damaged by a crash of the machine."""
    path = workdir / "config.json"
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    try:
        return from_dict(values) if isinstance(values, dict) else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differing(config: Config, before: Config) -> list[str]:
    """Keys of ``config`` that may not change within a run, and did, as "key: value there, value now"."""
    new, old = flat(dataclasses.asdict(config)), flat(dataclasses.asdict(before))
    return [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key) and not names_key(CHANGEABLE, key)
    ]


def names_key(names: Iterable[str], key: str) -> bool:
    """True if ``key`` is one of ``names``, or under one that ends in a dot."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts that are not None, by their path with dots."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            out[prefix + key] = value
    return out


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """The rows of ``starts.jsonl``; one cut short is left out, as are damaged ones, with a warning."""
    rows, damaged = starts_of(workdir)
    warn_of(damaged)
    return rows


def starts_of(workdir: Path) -> tuple[list[dict[str, Any]], list[DamagedLine]]:
    """The rows of ``starts.jsonl``, and its damaged lines."""
    return read_jsonl(workdir / "starts.jsonl", _damage_of_start, appended=True)


def _damage_of_start(row: dict[str, Any]) -> str | None:
    """Why an object is no row of starts."""
    commit, devices = row.get("commit") or {"hash": ""}, row.get("devices") or {"kind": "", "count": 1}
    known = {
        "time": isinstance(row.get("time"), str),
        "command": _texts(row.get("command", [])),
        "data": isinstance(row.get("data"), dict) and _texts([*row["data"].values()]),
        "libraries": isinstance(row.get("libraries"), dict) and _texts([*row["libraries"].values()]),
        "commit": isinstance(commit, dict) and isinstance(commit.get("hash"), str),
        "devices": isinstance(devices, dict) and {"kind", "count"} <= devices.keys(),
        "processes": isinstance(row.get("processes", 1), int),
    }
    return next((f"its {key} is none" for key, right in known.items() if not right), None)


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def read_lengths(workdir: Path) -> list[dict[str, Any]]:
    """The rows of ``lengths.jsonl``, one a step, in order: sizes of the groups that it trained on.

    "prompts" and "patches" have a number a group, "responses" those of each group: tokens and patches that
    were computed. Of a step that was taken twice, the second time counts; damaged lines are left out.
    """
    rows, damaged = read_jsonl(workdir / "lengths.jsonl", _damage_of_lengths, appended=True)
    warn_of(damaged)
    of_steps = {row["step"]: row for row in rows}
    return [of_steps[step] for step in sorted(of_steps)]


def _damage_of_lengths(row: dict[str, Any]) -> str | None:
    """Why an object is no row of lengths."""
    if type(row.get("step")) is not int or row["step"] < 0:
        return "it has no step"
    of_groups: list[Any] = [row.get("prompts"), row.get("patches")]
    responses = row.get("responses")
    if not isinstance(responses, list) or not all(map(_sizes, (*of_groups, *responses))):
        return "its sizes are none"
    if {*map(len, of_groups)} != {len(responses)} or len({*map(len, responses)}) != 1:
        return "its groups do not agree"
    return None


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(size) is int and 0 <= size < 1 << 31 for size in values)


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """The rows of a stage's ``metrics.jsonl``; a last line cut short by a crash is left out.

    So are lines that are damaged, with a warning for each.
    """
    rows, damaged = metrics_of(directory)
    warn_of(damaged)
    return rows


def metrics_of(directory: Path) -> tuple[list[dict[str, Any]], list[DamagedLine]]:
    """The rows of a stage's ``metrics.jsonl``, and its damaged lines."""
    return read_jsonl(directory / "metrics.jsonl", _damage_of_metrics, appended=True)


def _damage_of_metrics(row: dict[str, Any]) -> str | None:
    """Why an object is no row of metrics."""
    if type(row.get("step")) is not int or row["step"] < 0:
        return "it has no step"
    other = next((name for name, value in row.items() if not is_number(value)), None)
    return None if other is None else f"{other!r} is no number"
