"""A run's folder: what is needed to reproduce the run, and the refusal to mix two runs in one folder."""

import dataclasses
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from mmrl.config import Config, from_dict

# Keys that change no step already taken.
_MAY_CHANGE = (
    "data.workers",
    "reward.workers",
    "train.checkpoint_every",
    "train.evaluate_every",
    "train.keep_checkpoints",
)
_LIBRARIES = ("mmrl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def open_workdir(config: Config, workdir: Path) -> None:
    """Make the folder and write ``config.json`` and ``environment.json``, or check that they agree.

    Raises:
      ValueError: the folder cannot be written, or belongs to a run with another config (the keys are named).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be made: {error}") from error
    if not os.access(workdir, os.W_OK):
        raise ValueError(f"--workdir={workdir} is not writable")
    path = workdir / "config.json"
    if path.is_file():
        _check_same(config, read_config(workdir), workdir)
    _write(path, dataclasses.asdict(config))
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }
    _write(workdir / "environment.json", environment)


def read_config(workdir: Path) -> Config:
    """The config a run was started with.

    Raises:
      ValueError: the folder holds no run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} holds no run: {path} does not exist")
    return from_dict(json.loads(path.read_text()))


def _check_same(config: Config, before: Config, workdir: Path) -> None:
    new, old = _flat(dataclasses.asdict(config)), _flat(dataclasses.asdict(before))
    differing = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key) and key not in _MAY_CHANGE
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with another config ({'; '.join(differing)}); name another --workdir, "
            "or delete this one"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            out[prefix + key] = value
    return out


def _write(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
