"""A step of a run as a Hugging Face directory: with ordinary modes, over none that is there."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmrl.cli import main
from mmrl.config import resolve, template
from mmrl.models.checkpoint import load
from mmrl.models.family import param_specs, read_config
from mmrl.train import checkpoint
from mmrl.train.state import TrainState, initial_state


def write_run(workdir, policy, params):
    """A run's folder that has come to step 3."""
    config = template()
    config.model.path = str(policy.directory)
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(resolve(config))))
    with checkpoint.open_manager(workdir / "checkpoints", 2) as manager:
        state = initial_state(params, optax.sgd(1.0))
        assert isinstance(state, TrainState)
        checkpoint.save(manager, 3, state, {"step": 3}, {})


@pytest.fixture(scope="module")
def workdir(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    write_run(folder, policy, policy.params)
    return folder


def test_exports(workdir, policy, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    out = tmp_path / "policy"
    words = ["export", f"--workdir={workdir}", f"--out={out}"]
    before = os.umask(0o022)
    try:
        assert main([*words, "--step=99"]) == 2
        assert main([*words, "--push=org/name"]) == 2
        assert not out.exists()
        assert main(words) == 0
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o644}
    assert out.stat().st_mode & 0o777 == 0o755
    exported = load(out, param_specs(read_config(out)))
    jax.tree.map(np.testing.assert_array_equal, exported, policy.params)
    assert main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmrl: ")]
    assert len(said) == 3
    assert "no checkpoint of step 99; there are 3" in said[0]
    assert "--push=org/name needs a token" in said[1]
    assert f"--out={out} exists already: name another folder, or delete it first" in said[2]


def test_weights_that_are_no_numbers(policy, tmp_path, capsys):
    write_run(
        tmp_path / "run", policy, {**policy.params, "final_norm": policy.params["final_norm"] * jnp.nan}
    )
    assert main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 2
    assert "final_norm holds values that are no finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
