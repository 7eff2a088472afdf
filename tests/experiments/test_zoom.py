"""The zoom experiment in small: demonstrations with tools, rollouts with tools, and what is told of them."""

import json
from pathlib import Path

import pytest

from mmrl.config import resolve
from mmrl.experiment import load
from mmrl.run_folder import read_metrics

ZOOM = Path(__file__).parents[2] / "experiments" / "zoom.py"


@pytest.mark.exhaustive
def test_smoke(tmp_path, haste):
    from mmrl.train.stages import run

    quick = ("model.unroll=1", "train.steps=2", "train.update_prompts=8")
    config = resolve(load(f"{ZOOM}:smoke", [f"--config.{item}" for item in quick]))
    run(config, tmp_path)
    demonstrated = read_metrics(tmp_path / "cold_start")
    assert len(demonstrated) == config.cold_start.steps
    calls = sum(row["episode/tool_calls"] for row in demonstrated) / len(demonstrated)
    assert 0 < calls < 1
    assert all(row["episode/tool_errors"] == 0 for row in demonstrated)
    assert demonstrated[-1]["loss/loss"] < demonstrated[0]["loss/loss"]
    before, *steps = read_metrics(tmp_path)
    assert len(steps) == 2
    for row in steps:
        assert row["sampler/logprob_difference_max"] < 1e-4
        assert 1 <= row["episode/turns"] <= config.episode.turns
        assert row["episode/images"] + row["episode/tool_errors"] == pytest.approx(row["episode/tool_calls"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tool_calls_before"] == before["heldout/tool_calls"]
    assert summary["tool_calls_after"] == steps[-1]["heldout/tool_calls"]
