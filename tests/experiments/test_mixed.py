"""The mixed experiment in small: four tasks and verifiers in one batch, each told of apart."""

import json
from pathlib import Path

import pytest

from mmrl.config import resolve
from mmrl.experiment import load
from mmrl.run_folder import read_metrics
from mmrl.tasks.mixed_world import TASKS

MIXED = Path(__file__).parents[2] / "experiments" / "mixed.py"
FINER = {"count": "near_count", "box": "iou", "jigsaw": "positions"}


@pytest.mark.exhaustive
def test_smoke(tmp_path, haste):
    from mmrl.train.stages import run

    quick = ("model.unroll=1", "train.update_prompts=8")
    quick += ("cold_start.steps=0", "train.steps=1", "world.heldout=4")
    config = resolve(load(f"{MIXED}:smoke", [f"--config.{item}" for item in quick]))
    run(config, tmp_path)
    before, after = read_metrics(tmp_path)
    assert after["sampler/logprob_difference_max"] < 1e-4
    assert after["reward/invalid"] == 0.0
    assert [after[f"source/{task}/share"] for task in TASKS] == [0.25] * 4
    for row in (before, after):
        assert row["heldout/skipped"] == row["heldout/invalid"] == 0.0
        # As many rows of each: the whole is the mean of the parts.
        for name in ("accuracy", "format", "reward", "length"):
            parts = [row[f"heldout/{task}/{name}"] for task in TASKS]
            assert row[f"heldout/{name}"] == pytest.approx(sum(parts) / 4)
        for name in FINER.values():
            told = {task for task in TASKS if f"heldout/{task}/{name}" in row}
            assert told == {task for task in TASKS if FINER.get(task) == name}
    written = [json.loads(line) for line in (tmp_path / "responses_after.jsonl").read_text().splitlines()]
    assert {row["source"] for row in written} == set(TASKS)
    assert all(("iou" in row) == (row["source"] == "box") for row in written)


def test_held_out_data_sets_have_names_of_their_own(tmp_path):
    from mmrl.open import open_heldout, open_model
    from mmrl.tasks.mixed_world import write_data, write_model

    config = resolve(load(f"{MIXED}:smoke"))
    write_data(tmp_path / "world", 0, cold_start=1, train=1, heldout=2)
    small = {"num_hidden_layers": 1, "vision_config": {"depth": 1, "fullatt_block_indexes": [0]}}
    write_model(tmp_path / "model", 0, **small)
    model = open_model(config, tmp_path / "model")
    found = open_heldout(config, config.data.heldout, tmp_path, model)
    assert [(source.name, len(source)) for source in found] == [(task, 2) for task in TASKS]
    twice = config.data.heldout + ",{workdir}/world/train/box"
    with pytest.raises(ValueError, match=r"config\.data\.heldout=.*several data sets are called 'box'"):
        open_heldout(config, twice, tmp_path, model)
    with pytest.raises(ValueError, match=r"config\.data\.heldout is empty"):
        open_heldout(config, f"{config.data.heldout},", tmp_path, model)
