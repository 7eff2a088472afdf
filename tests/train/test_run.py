"""The whole loop, tiny, end to end: what it leaves behind, and that an interruption changes nothing."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from devices import IN_HASTE
from runs import assert_same_run, without_times

from mmrl.models.checkpoint import load
from mmrl.models.family import param_specs, read_config
from mmrl.run_folder import read_lengths, read_metrics
from mmrl.train import checkpoint, rl
from mmrl.train.stages import run
from mmrl.train.stop_signal import Interrupted

STEPS = 4
EXPERIMENT = Path(__file__).parents[2] / "experiments" / "quickstart.py"


def params_of(workdir, step=None):
    description = param_specs(read_config(workdir / "world" / "model"))
    return checkpoint.load_params(workdir / "checkpoints", description, step)


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_leaves_what_it_promises(smoke_run):
    summary = json.loads((smoke_run / "summary.json").read_text())
    names = {"accuracy", "perception_errors", "reasoning_errors"}
    assert set(summary) == {f"{n}_{when}" for n in names for when in ("before", "after")} | {"seconds"}
    assert all(0 <= summary[f"{n}_after"] <= 1 for n in names)
    assert (smoke_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [row["step"] for row in read_metrics(smoke_run)] == list(range(STEPS + 1))
    rows = [json.loads(line) for line in (smoke_run / "responses_after.jsonl").read_text().splitlines()]
    accuracy = np.mean([row["accuracy"] for row in rows])
    np.testing.assert_allclose(accuracy, summary["accuracy_after"], atol=1e-6)


def test_lengths_of_every_step_are_kept(smoke_run, smoke_config):
    """They are those of which the metrics have the means, and that rows were computed for."""
    rows, metrics = read_lengths(smoke_run), read_metrics(smoke_run)[1:]
    assert [row["step"] for row in rows] == [row["step"] for row in metrics]
    updates = smoke_config.rollout.prompts // smoke_config.train.update_prompts
    for row, logged in zip(rows, metrics, strict=True):
        assert np.shape(row["responses"]) == (smoke_config.rollout.prompts, smoke_config.rollout.group)
        assert np.mean(row["responses"]) == pytest.approx(logged["response/length"])
        tokens = sum(row["prompts"]) + np.sum(row["responses"])
        computed = logged["padding/text"] * tokens / smoke_config.train.row_tokens
        assert computed == pytest.approx(round(computed))
        assert computed >= updates
        assert logged["padding/patches"] >= 1
        assert logged["padding/decode"] >= 1
    assert all(row["padding/text"] >= 1 for row in read_metrics(smoke_run / "cold_start"))


def test_sampler_agrees_with_scorer(smoke_run):
    differences = [row["sampler/logprob_difference_max"] for row in read_metrics(smoke_run)[1:]]
    assert len(differences) == STEPS
    assert max(differences) < 1e-4


def test_nothing_compiles_after_two_steps(smoke_run):
    counts = [row["compiles"] for row in read_metrics(smoke_run)[1:]]
    assert counts[0] > 0
    assert counts[-1] == counts[1]


def test_phases_account_for_the_step(smoke_run):
    for row in read_metrics(smoke_run)[1:]:
        parts = sum(value for name, value in row.items() if name.startswith("time/") and name != "time/step")
        np.testing.assert_allclose(parts, row["time/step"], atol=1e-5)
        assert row["time/other"] < 0.05 * row["time/step"] + 0.1


def test_updates_move_the_policy(smoke_run):
    start = load(smoke_run / "cold_start" / "model", param_specs(read_config(smoke_run / "world" / "model")))
    _, end = params_of(smoke_run)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (start, end)), strict=True))


def test_resumes_to_the_same_end(smoke_config, smoke_run, tmp_path):
    """The run as if killed in step 3, after it had logged two rows that the checkpoint does not know of."""
    resumed = tmp_path / "run"
    shutil.copytree(smoke_run, resumed)
    shutil.rmtree(resumed / "checkpoints" / str(STEPS))
    for name in ("summary.json", "curves.png"):
        (resumed / name).unlink()
    run(smoke_config, resumed)
    (step, before), (again, after) = params_of(smoke_run), params_of(resumed)
    assert step == again == STEPS
    assert_same(before, after)
    assert without_times(read_metrics(resumed)) == without_times(read_metrics(smoke_run))
    assert read_lengths(resumed) == read_lengths(smoke_run)


@pytest.mark.exhaustive
def test_an_interrupted_evaluation_is_taken_again(smoke_config, smoke_run, tmp_path, monkeypatch):
    """The step before it is saved, and is logged once its evaluation is complete."""
    again = tmp_path / "run"
    shutil.copytree(smoke_run, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))

    def interrupted(*_, **__):
        raise Interrupted("SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(rl, "evaluate", interrupted)
        with pytest.raises(Interrupted):
            run(smoke_config, again)
    assert read_metrics(again)[-1]["step"] == STEPS - 1
    assert checkpoint.saved_steps(again / "checkpoints")[-1] == STEPS
    run(smoke_config, again)
    assert_same(params_of(smoke_run)[1], params_of(again)[1])
    assert without_times(read_metrics(again)) == without_times(read_metrics(smoke_run))


@pytest.mark.exhaustive
def test_begins_anew_without_a_checkpoint(smoke_config, smoke_run, tmp_path):
    """As if killed before its first checkpoint, when it had logged the first evaluation and a step."""
    again = tmp_path / "run"
    shutil.copytree(smoke_run, again)
    shutil.rmtree(again / "checkpoints")
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(lines[:2]))
    run(smoke_config, again)
    assert_same(params_of(smoke_run)[1], params_of(again)[1])
    assert without_times(read_metrics(again)) == without_times(read_metrics(smoke_run))


def test_cold_start_resumes_to_the_same_end(smoke_config, smoke_run, tmp_path):
    from mmrl.open import open_model
    from mmrl.train.stages import cold_start
    from mmrl.train.stop_signal import StopSignal

    resumed = tmp_path / "run"
    shutil.copytree(smoke_run / "world", resumed / "world")
    shutil.copytree(smoke_run / "cold_start" / "checkpoints", resumed / "cold_start" / "checkpoints")
    shutil.copy(smoke_run / "cold_start" / "metrics.jsonl", resumed / "cold_start")
    model = open_model(smoke_config, resumed / "world" / "model")
    made = cold_start(smoke_config, model, resumed, StopSignal())
    description = param_specs(read_config(smoke_run / "world" / "model"))
    assert_same(made.load(), load(smoke_run / "cold_start" / "model", description))
    steps = [row["step"] for row in read_metrics(resumed / "cold_start")]
    assert steps == list(range(1, smoke_config.cold_start.steps + 1))


@pytest.mark.exhaustive
def test_eight_devices_make_the_same_run(smoke_run, tmp_path):
    """The command, with data, weights and heads cut in two each: the same responses, losses within 1e-5."""
    command = [sys.executable, "-m", "mmrl.cli", "train", f"--config={EXPERIMENT}:smoke"]
    command += [f"--workdir={tmp_path}", *(f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor"))]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    child = subprocess.run(
        command,
        env={**os.environ, **IN_HASTE, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert_same_run(smoke_run, tmp_path)


def test_refuses_the_folder_of_another_run(smoke_config, smoke_run):
    other = dataclasses.replace(smoke_config, seed=7)
    with pytest.raises(ValueError, match=r"another config \(seed: 0 there, 7 now\)"):
        run(other, smoke_run)


def test_longer_training_may_go_on_in_the_folder(smoke_config, smoke_run):
    from mmrl.train.workdir import open_workdir

    longer = dataclasses.replace(
        smoke_config, train=dataclasses.replace(smoke_config.train, keep_checkpoints=5)
    )
    open_workdir(longer, smoke_run)
    open_workdir(smoke_config, smoke_run)
