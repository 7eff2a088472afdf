"""A run's folder, read: config, metrics, held-out responses, weights."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmrl.atomic import is_number, read_jsonl, warn_of
from mmrl.config import Config, MeshConfig
from mmrl.open import OpenModel, model_directory, open_model
from mmrl.run_folder import read_config, read_metrics
from mmrl.train import checkpoint
from mmrl.train.evaluate import wrong_response
from mmrl.types import Params


@dataclass(frozen=True)
class Run:
    """What a run has left so far. Weights are read by `load_params`."""

    workdir: Path
    config: Config
    metrics: list[dict[str, float]]  # a row a step
    before: list[dict[str, Any]]  # held-out responses before the first step; none where nothing is held out
    after: list[dict[str, Any]]  # and at the last evaluation
    summary: dict[str, float | None]  # empty until the run is finished

    @property
    def name(self) -> str:
        """What to call it beside others."""
        return f"{self.config.algorithm['name']}, seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    def curve(self, metric: str) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
        """Steps that have ``metric``, and its values there; empty where nothing wrote it."""
        rows = [(row["step"], row[metric]) for row in self.metrics if metric in row]
        return np.array([step for step, _ in rows], int), np.array([value for _, value in rows], float)


def load_run(workdir: str | Path) -> Run:
    """Read the folder of a run, which may still be going on. Raises ValueError if it holds none.

    Damaged lines of its files are left out, with a warning for each.
    """
    workdir = Path(workdir)
    return Run(
        workdir=workdir,
        config=read_config(workdir),
        metrics=read_metrics(workdir),
        before=_responses(workdir / "responses_before.jsonl"),
        after=_responses(workdir / "responses_after.jsonl"),
        summary=_summary(workdir / "summary.json"),
    )


def load_params(run: Run, step: int | None = None) -> tuple[OpenModel, Params]:
    """The model of a run and its weights at ``step``, laid out over the devices that are here.

    Args:
      run: of `load_run`.
      step: of a checkpoint; None means the newest, 0 the weights that reinforcement learning began with.

    Raises ValueError if that step was not kept (those that were are named), or the model is not there.
    """
    started = run.workdir / "cold_start" / "model" if run.config.cold_start.steps else None
    # A run's mesh is that of its slice, and it is looked at elsewhere.
    config = replace(run.config, mesh=MeshConfig())
    model = open_model(config, started or model_directory(config, run.workdir))
    if step == 0:
        return model, model.load()
    _, params = checkpoint.load_params(run.workdir / "checkpoints", model.description, step, model.shardings)
    return model, params


def _responses(path: Path) -> list[dict[str, Any]]:
    rows, damaged = read_jsonl(path, wrong_response)
    warn_of(damaged)
    return rows


def _summary(path: Path) -> dict[str, float | None]:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(one is None or is_number(one) for one in found.values()):
        raise ValueError(f"{path} is damaged; the same mmrl train writes it anew")
    return found
