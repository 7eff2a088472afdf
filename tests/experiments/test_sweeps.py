"""Every sweep of the repository can be begun, in both forms; one is run in small."""

import dataclasses
import json
from pathlib import Path

import pytest

from mmrl.sweep import load_sweep, open_sweep
from mmrl.sweep.definition import early_stages, plan_runs

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for path in sorted((ROOT / "experiments" / "sweeps").glob("*.py"))
    if "def get_sweep" in path.read_text()
]


@pytest.mark.parametrize("form", ["", ":smoke"])
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_arm_resolves(file, form, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = open_sweep(f"{file}{form}")
    members = plan_runs(sweep, Path("runs"))
    assert len(members) == len(sweep.arms) * len(sweep.seeds)
    assert sweep.baseline
    if form:
        assert len(sweep.seeds) == 1
        assert all(early_stages(one.config) == ("world", "cold_start") for one in members)
    else:
        assert len(sweep.seeds) >= 3


def test_the_shapes_world_has_every_method_in_every_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = open_sweep("experiments/sweeps/shapes.py")
    members = {one.arm: one.config.algorithm for one in plan_runs(sweep, Path("runs"))}
    ways = [f"{kl},{entropy}" for kl in ("k3", "exact") for entropy in ("no_entropy", "entropy")]
    methods = ("papo_g", "papo_d", "vppo", "papo_g,strong")
    assert set(members) == {"grpo", "dapo", *(f"{method},{way}" for method in methods for way in ways)}
    assert sweep.seeds == (0, 1, 2, 3, 4)
    told = {"name": "papo_d", "perception_kl": 0.02, "perception_estimator": "exact"}
    told |= {"clean_entropy": 0.03, "corrupted_entropy": 0.03}
    assert told.items() <= members["papo_d,exact,entropy"].items()
    assert members["vppo,k3,entropy"]["entropy_penalty"] == 0.06
    assert members["papo_g,strong,k3,entropy"]["perception_kl"] > 0.1


@pytest.mark.exhaustive
def test_a_run_with_shared_stages_is_the_run_alone(tmp_path, monkeypatch, haste):
    """Two arms of one seed: the second has the first one's world and cold start, and is as if it had not."""
    from runs import assert_same_run

    from mmrl import cli
    from mmrl.config import resolve
    from mmrl.experiment import load
    from mmrl.train.stages import run

    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.chdir(ROOT)
    arms = ("grpo", "papo_g,exact,entropy")
    words = ["sweep", "experiments/sweeps/shapes.py:smoke", f"--workdir={tmp_path / 'sweep'}"]
    assert cli.main([*words, *(f"--arm={arm}" for arm in arms)]) == 0
    shared = tmp_path / "sweep" / arms[1] / "seed0"
    assert "are those of grpo/seed0" in (shared / "log.txt").read_text()
    model = Path("cold_start", "model", "model.safetensors")
    assert (shared / model).samefile(tmp_path / "sweep" / "grpo" / "seed0" / model)
    config = json.loads((shared / "config.json").read_text())
    told = ["name=papo_g", "perception_kl=0.02", "perception_estimator=exact", "clean_entropy=0.03"]
    told = [f"--config.algorithm.{word}" for word in (*told, "corrupted_entropy=0.03")]
    alone = resolve(load("experiments/quickstart.py:smoke", told))
    assert config == json.loads(json.dumps(dataclasses.asdict(alone)))
    run(alone, tmp_path / "alone")
    assert (tmp_path / "alone" / model).read_bytes() == (shared / model).read_bytes()
    assert_same_run(tmp_path / "alone", shared)
    results = load_sweep(tmp_path / "sweep")
    assert {arm: seeds for arm, seeds in results.finished.items() if seeds} == dict.fromkeys(arms, (0,))
