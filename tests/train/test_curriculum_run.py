"""A run under a curriculum: interrupted and gone on with, it is the run left alone."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from runs import without_times

from mmrl.config import from_dict
from mmrl.models.family import param_specs, read_config
from mmrl.run_folder import read_metrics
from mmrl.train import checkpoint, step
from mmrl.train.stages import run
from mmrl.train.stop_signal import Interrupted

CURRICULUM = {"batches": 3, "rest": 2, "order": "difficulty", "window": 0.5}


def config_of(smoke_config):
    """Dynamic sampling draws two batches a step, so that steps reach from one round into the next."""
    values = dataclasses.asdict(smoke_config)
    values["algorithm"] = {"name": "dapo"}
    values["data"]["curriculum"] = CURRICULUM
    values["data"]["stages"] = ((0.6, "{workdir}/world/train.parquet,{workdir}/world/cold_start.parquet"),)
    values["train"] |= {"checkpoint_every": 10, "evaluate_every": 10}
    values["evaluation"]["limit"] = 8
    return from_dict(values)


def params_of(workdir):
    description = param_specs(read_config(workdir / "world" / "model"))
    return checkpoint.load_params(workdir / "checkpoints", description)


@pytest.mark.exhaustive
def test_an_interruption_changes_nothing(smoke_config, smoke_run, tmp_path, monkeypatch):
    """It comes in a step that has drawn into the next round, having learned from what it drew."""
    config, whole, again = config_of(smoke_config), tmp_path / "whole", tmp_path / "again"
    for workdir in (whole, again):
        for part in ("world", "cold_start"):
            shutil.copytree(smoke_run / part, workdir / part)
    run(config, whole)
    rows = read_metrics(whole)
    assert [row["rollout/batches"] for row in rows[1:]] == [2.0] * 4
    assert [row["curriculum/stage"] for row in rows[1:]] == [0.0, 0.0, 0.0, 1.0]
    seen = [row["curriculum/seen"] for row in rows[1:]]
    assert seen[0] < seen[-1]

    score = step._score
    scored = []

    def interrupted(*args):
        scored.append(args)
        if len(scored) == 2:
            raise Interrupted("SIGTERM")
        return score(*args)

    with monkeypatch.context() as patch:
        patch.setattr(step, "_score", interrupted)
        with pytest.raises(Interrupted):
            run(config, again)
    assert checkpoint.saved_steps(again / "checkpoints") == [1]
    saved = json.loads((again / "checkpoints" / "1" / "run" / "metadata").read_text())["run"]["facts"]
    assert (saved["batches"], saved["curriculum"]["number"]) == (2, 0)
    run(config, again)
    assert without_times(read_metrics(again)) == without_times(rows)
    for left, right in zip(
        *(jax.tree.leaves(params_of(folder)[1]) for folder in (whole, again)), strict=True
    ):
        np.testing.assert_array_equal(left, right)
