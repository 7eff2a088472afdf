"""Folders of runs of which one file is damaged: reports, notebooks, sweeps and what goes on from a run."""

import dataclasses
import json
from pathlib import Path

import pytest
from damage import json_files, jsonl_files
from fuzzing import command

from mmrl.analysis import load_run
from mmrl.config import Config, DataConfig, TrainConfig
from mmrl.run_folder import read_lengths, read_metrics, read_starts
from mmrl.suite.run import changed, read_results, read_rows
from mmrl.sweep.results import load_sweep, write_table
from mmrl.train.guards import open_guards
from mmrl.train.metrics import Metrics
from mmrl.train.workdir import record_start

MODEL = Path(__file__).parents[1] / "data" / "fixtures" / "qwen2_5_vl"
LIBRARIES = {"jax": "0.10", "numpy": "2.0"}
METRICS = [
    {
        "step": step,
        "heldout/accuracy": 0.5 + step / 10,
        "reward/mean": 0.1,
        "time/step": 1.5,
        "time/rollout": 1.0,
    }
    for step in range(4)
]
STARTS = [
    {
        "time": "2026-01-01T00:00:00+00:00",
        "command": ["mmrl", "train"],
        "step": 0,
        "data": {"data.train": "a" * 64},
        "libraries": LIBRARIES,
        "commit": {"hash": "abcdef0123", "changed": False},
        "devices": {"kind": "cpu", "count": 1},
        "processes": 1,
    }
] * 2
RESPONSES = [
    {
        "id": f"a.parquet:{k}",
        "source": "a",
        "problem": "<image>Why?",
        "answer": "so",
        "response": "\\boxed{so}",
        "tokens": [1, 2],
        "reward": 0.5,
        "accuracy": float(k % 2),
    }
    for k in range(3)
]
LENGTHS = [{"step": k, "prompts": [5, 7], "patches": [4, 0], "responses": [[3, 1], [0, 9]]} for k in range(3)]
SUMMARY = {"seconds": 75.0, "heldout/accuracy": 0.5, "before/accuracy": None}
CONFIG = dataclasses.replace(
    Config(), data=DataConfig(train="train.parquet", heldout="a.parquet"), train=TrainConfig(steps=3)
)
FILES = {
    "config.json": json.dumps(dataclasses.asdict(CONFIG)),
    "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in METRICS),
    "starts.jsonl": "".join(json.dumps(row) + "\n" for row in STARTS),
    "responses_before.jsonl": "".join(json.dumps(row) + "\n" for row in RESPONSES),
    "responses_after.jsonl": "".join(json.dumps(row) + "\n" for row in RESPONSES),
    "summary.json": json.dumps(SUMMARY),
}
DAMAGED = {
    "config.json": json_files(dataclasses.asdict(CONFIG)),
    "metrics.jsonl": jsonl_files(METRICS),
    "starts.jsonl": jsonl_files(STARTS),
    "responses_before.jsonl": jsonl_files(RESPONSES),
    "responses_after.jsonl": jsonl_files(RESPONSES),
    "summary.json": json_files(SUMMARY),
}


def write_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def run(fuzz):
    (fuzz.folder / "report.html").touch()
    return write_run(fuzz.folder / "run")


@pytest.mark.parametrize("name", FILES)
def test_report(fuzz, run, name):
    def go(data):
        (run / name).write_bytes(data)
        command("report", "run", "--rollouts=2", "--out=report.html")

    fuzz(DAMAGED[name], go, names=name, share=0.4)


@pytest.mark.parametrize("name", FILES)
def test_load_run(fuzz, run, name):
    def go(data):
        (run / name).write_bytes(data)
        found = load_run(run)
        for metric in ("heldout/accuracy", "reward/mean", "time/step"):
            steps, values = found.curve(metric)
            assert len(steps) == len(values)

    fuzz(DAMAGED[name], go, names=name, share=0.6)


def test_lengths(fuzz, run):
    def go(data):
        (run / "lengths.jsonl").write_bytes(data)
        for row in read_lengths(run):
            assert len(row["prompts"]) == len(row["patches"]) == len(row["responses"])

    fuzz.outputs.add("lengths.jsonl")
    fuzz(jsonl_files(LENGTHS), go, names="lengths.jsonl", share=0.6)


def test_run_to_export(fuzz, run):
    """A run whose config is read, but that has no checkpoint: that is said, if nothing else is wrong."""
    config = dataclasses.asdict(CONFIG)
    config["model"]["path"] = str(MODEL)
    fuzz.outputs.add("checkpoints")

    def go(data):
        (run / "config.json").write_bytes(data)
        command("export", "--workdir=run", "--out=policy")

    fuzz(json_files(config), go, share=0.5)


def test_metrics_that_go_on(fuzz, run):
    fuzz.outputs.add("run")

    def go(data):
        (run / "metrics.jsonl").write_bytes(data)
        for file in run.glob("metrics.*"):
            if file.name != "metrics.jsonl":
                file.unlink()
        metrics = Metrics(run, 2)
        metrics.write(3, {"reward/mean": 0.5})
        metrics.close()
        assert read_metrics(run)[-1]["step"] == 3

    fuzz(DAMAGED["metrics.jsonl"], go, names="metrics.jsonl", share=0.6)


def test_starts_that_go_on(fuzz, run):
    fuzz.outputs.add("starts.jsonl.damaged")

    def go(data):
        (run / "starts.jsonl").write_bytes(data)
        record_start(run, {"data.train": "a" * 64}, print)
        assert read_starts(run)[-1]["data"] == {"data.train": "a" * 64}

    fuzz(DAMAGED["starts.jsonl"], go, share=0.6)


SWEEP = {
    "experiment": "quickstart.py",
    "arms": {"a": {"train.steps": 3}, "b": {"train.steps": 4}},
    "seeds": [0, 1],
    "baseline": "a",
    "metrics": ["heldout/accuracy", "area:reward/mean"],
}


@pytest.fixture
def sweep(fuzz):
    folder = fuzz.folder / "sweep"
    folder.mkdir()
    for arm in "ab":
        for seed in (0, 1):
            write_run(folder / arm / f"seed{seed}")
    (folder / "sweep.json").write_text(json.dumps(SWEEP))
    tables(folder)  # what it writes is there already
    return folder


def tables(folder):
    write_table(load_sweep(folder))


def test_sweep(fuzz, sweep):
    def go(data):
        (sweep / "sweep.json").write_bytes(data)
        tables(sweep)

    fuzz(json_files(SWEEP), go, names="sweep.json")


def test_metrics_of_a_sweep(fuzz, sweep):
    def go(data):
        (sweep / "a" / "seed1" / "metrics.jsonl").write_bytes(data)
        tables(sweep)

    fuzz(DAMAGED["metrics.jsonl"], go, names="metrics.jsonl")


def test_rows_that_a_run_could_not_use(fuzz):
    path = fuzz.folder / "skipped.jsonl"
    path.touch()
    fuzz.outputs.add("skipped.jsonl.damaged")
    rows = [{"id": f"a:{k}", "reason": "no image"} for k in range(3)]

    def go(data):
        path.write_bytes(data)
        open_guards(path, 100, 1.0, 1)

    fuzz(jsonl_files(rows), go, names="skipped.jsonl")


def test_results_of_a_suite(fuzz):
    path = fuzz.folder / "results.json"
    path.touch()
    row = {"benchmark": "a", "accuracy": 0.5, "hashes": {"data": "0"}, "samples": 1}
    results = {
        "suite": "s",
        "origin": {"name": "m"},
        "rows": [row],
        "seed": 0,
        "data_root": "",
        "started": "2026",
    }

    def go(data):
        path.write_bytes(data)
        found = read_results(fuzz.folder)
        changed(found, found)

    fuzz(json_files(results), go, names="results.json")


def test_responses_of_a_suite(fuzz):
    path = fuzz.folder / "a.jsonl"
    path.touch()

    def go(data):
        path.write_bytes(data)
        read_rows(path)

    fuzz(jsonl_files(RESPONSES), go, names="a.jsonl")
