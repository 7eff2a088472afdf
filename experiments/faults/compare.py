"""Comparison of two runs to the last bit: weights, optimizer, metrics and responses."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# Metrics that measure the machine and not the run.
TIMES = ("time/", "speed/", "rollout/tokens_per_second", "compiles")
# Files that are the same to the last byte.
FILES = (
    "responses_*.jsonl",
    "world/*.parquet",
    "world/model/*",
    "cold_start/model/*",
)
ITEMS = ("params", "optimizer")  # of a checkpoint


def differences(left: Path, right: Path) -> list[str]:
    """Differences between two finished runs, a line each; none: they are the same."""
    found = []
    for stage in (".", "cold_start"):
        found += _metrics(left / stage, right / stage, stage)
    # Not the cold start's, whose end is a model, among the files.
    found += _checkpoints(left / "checkpoints", right / "checkpoints")
    for pattern in FILES:
        found += _files(left, right, pattern)
    return found


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """Every line of ``metrics.jsonl``. ValueError: one is not a row."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def steps_saved(folder: Path) -> list[int]:
    """Steps whose checkpoint is finished, ascending."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def saved_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of the checkpoint of one step, by its path in the tree."""
    leaves: dict[str, np.ndarray] = {}
    for item in ITEMS:
        # To the host: it may have been written by more processes than there are here.
        with ocp.PyTreeCheckpointer() as reader:
            like = reader.metadata((path / item).absolute()).item_metadata.tree
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
            tree = reader.restore((path / item).absolute(), restore_args=how)
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
            leaves[item + jax.tree_util.keystr(place)] = np.asarray(leaf)
    return leaves


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Of one type and shape, and the same bits: not the same numbers, as 0 and -0 are, or no number."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def _metrics(left: Path, right: Path, stage: str) -> list[str]:
    try:
        ours, theirs = metric_rows(left), metric_rows(right)
    except ValueError as error:
        return [f"{stage}/metrics.jsonl: {error}"]
    steps, others = ([row["step"] for row in rows] for rows in (ours, theirs))
    if steps != others:
        return [f"{stage}/metrics.jsonl: steps {steps} and {others}"]
    return [
        f"{stage}/metrics.jsonl, step {row['step']}: {name} {row.get(name)} and {other.get(name)}"
        for row, other in zip(ours, theirs, strict=True)
        for name in sorted(row.keys() | other.keys())
        if not name.startswith(TIMES) and row.get(name) != other.get(name)
    ]


def _checkpoints(left: Path, right: Path) -> list[str]:
    """The newest alone: which older ones are kept is a matter of when the run was interrupted."""
    ours, theirs = steps_saved(left.parent), steps_saved(right.parent)
    if not ours or ours[-1:] != theirs[-1:]:
        return [f"checkpoints {ours} and {theirs}"]
    first, second = (saved_arrays(folder / str(ours[-1])) for folder in (left, right))
    if first.keys() != second.keys():
        return [f"checkpoint {ours[-1]}: other arrays, {sorted(first.keys() ^ second.keys())[:3]}"]
    return [f"checkpoint {ours[-1]}: {name}" for name in first if not same_bits(first[name], second[name])]


def _files(left: Path, right: Path, pattern: str) -> list[str]:
    names = {path.relative_to(root) for root in (left, right) for path in root.glob(pattern)}
    found = [] if names else [f"{pattern}: none"]
    for name in sorted(names):
        if not all((root / name).is_file() for root in (left, right)):
            found.append(f"{name}: not in both")
        elif (left / name).read_bytes() != (right / name).read_bytes():
            found.append(f"{name}: differs")
    return found
