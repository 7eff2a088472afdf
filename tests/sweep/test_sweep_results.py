"""The table of a sweep against computation by hand."""

import csv
import json
import re

import numpy as np
import pytest

from mmrl.sweep import load_runs, load_sweep, table
from mmrl.sweep.results import value_of, write_table

# Held-out accuracy of two arms in the steps 0 and 10, by seed; the last of `papo` is not finished.
HEIGHTS = {
    "grpo": [(0.2, 0.5), (0.2, 0.6), (0.4, 0.7)],
    "papo": [(0.2, 0.6), (0.3, 0.9), (0.1, 0.2)],
    "vppo": [],
}


@pytest.fixture
def folder(tmp_path):
    asked = {"experiment": "a|b.py", "arms": {arm: {"k": 1} for arm in HEIGHTS}, "seeds": [0, 1, 2]}
    metrics = ["heldout/accuracy", "area:heldout/accuracy", "un|known"]
    (tmp_path / "sweep.json").write_text(json.dumps({**asked, "baseline": "grpo", "metrics": metrics}))
    for arm, heights in HEIGHTS.items():
        for seed, pair in enumerate(heights):
            workdir = tmp_path / arm / f"seed{seed}"
            workdir.mkdir(parents=True)
            rows = [{"step": step, "heldout/accuracy": y} for step, y in zip((0, 10), pair, strict=True)]
            rows.insert(1, {"step": 5, "loss/loss": 1.0})
            (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if (arm, seed) != ("papo", 2):
                (workdir / "summary.json").write_text("{}")
    return tmp_path


def test_numbers_are_those_of_hand_computation(folder):
    rows = {(row.arm, row.metric): row for row in table(load_sweep(folder))}
    grpo, papo = (rows[arm, "heldout/accuracy"] for arm in ("grpo", "papo"))
    # 0.5, 0.6, 0.7: deviation 0.1; t of 2 degrees of freedom at 97.5 % is 4.302653.
    assert grpo.value.mean == pytest.approx(0.6)
    assert grpo.value.half == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-6)
    assert grpo.difference is None
    # Pairs 0.6 - 0.5 and 0.9 - 0.6: mean 0.2, deviation sqrt(0.02); t of 1 degree is 12.706205.
    assert papo.difference.mean == pytest.approx(0.2)
    assert papo.difference.half == pytest.approx(12.706205 * np.sqrt(0.02) / np.sqrt(2), rel=1e-6)
    assert (papo.finished, papo.planned, papo.value.n, papo.difference.n) == (2, 3, 2, 2)
    assert rows["grpo", "area:heldout/accuracy"].value.mean == pytest.approx((0.35 + 0.4 + 0.55) / 3)
    nothing = rows["vppo", "heldout/accuracy"]
    assert (nothing.finished, nothing.value.n, nothing.difference.n) == (0, 0, 0)
    other = {row.arm: row for row in table(load_sweep(folder, ["heldout/accuracy"]), baseline="papo")}
    assert other["grpo"].difference.mean == pytest.approx(-0.2)
    assert other["papo"].difference is None


def test_value_of_a_metric():
    rows = [{"step": 0, "a": 1.0}, {"step": 1, "b": 5.0}, {"step": 2, "a": 3.0}, {"step": 6, "a": 3.0}]
    assert value_of(rows, "a") == 3.0
    assert value_of(rows, "area:a") == pytest.approx((2 * 2 + 4 * 3) / 6)
    assert value_of(rows, "area:b") == 5.0
    assert value_of(rows, "c") is None


def test_files(folder):
    text = write_table(load_sweep(folder))
    assert text == (folder / "table.md").read_text()
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in cells] for cells in lines]
    assert {len(cells) for cells in lines} == {8}
    head, _, grpo, papo, vppo = lines
    assert head[2:4] == ["`heldout/accuracy`", "difference to `grpo`"]
    assert head[6] == r"`un\|known`"
    assert grpo[:4] == ["`grpo`", "3 of 3", "0.600 ± 0.248", ""]
    assert papo[:4] == ["`papo`", "2 of 3", "0.750 ± 1.906", "+0.200 ± 1.271"]
    assert vppo == ["`vppo`", "0 of 3", "-", "-", "-", "-", "-", "-"]
    assert r"No finished run has logged `un\|known`." in text
    assert "of 2 comparisons" in text
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert rows[0]["difference"] == ""
    assert float(rows[3]["difference"]) == pytest.approx(0.2)
    with (folder / "runs.csv").open() as file:
        values = {(r["arm"], r["seed"], r["metric"]): float(r["value"]) for r in csv.DictReader(file)}
    assert values["papo", "1", "heldout/accuracy"] == 0.9
    assert ("papo", "2", "heldout/accuracy") not in values


def test_a_difference_that_is_clear_is_bold(folder):
    for seed, height in enumerate((0.8, 0.9, 1.0)):
        path = folder / "papo" / f"seed{seed}"
        (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "heldout/accuracy": height + seed / 1e4}))
        (path / "summary.json").write_text("{}")
    assert "**+0.300 ± 0.000**" in write_table(load_sweep(folder))


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(ValueError, match="has no arm 'dapo'; there are grpo, papo, vppo"):
        table(load_sweep(folder), baseline="dapo")
    with pytest.raises(ValueError, match="has no arm 'dapo'"):
        load_runs(load_sweep(folder), "dapo")
    assert load_runs(load_sweep(folder), "vppo") == []
    with pytest.raises(ValueError, match="holds no sweep"):
        load_sweep(tmp_path / "none")
    (folder / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_sweep(folder)
