"""The world on disk: parquet in the public schema, whole or not at all."""

import json

import pyarrow.parquet as pq
import pytest

from mmrl.data import shapes_files
from mmrl.data.shapes import SPLITS, example
from mmrl.data.shapes_files import SCHEMA, write_world

SIZES = {"cold_start": 20, "train": 12, "heldout": 8}


def test_rows_are_the_worlds_examples(tmp_path):
    paths = write_world(tmp_path / "world", 3, **SIZES)
    assert {split: path.name for split, path in paths.items()} == {s: f"{s}.parquet" for s in SPLITS}
    for split, path in paths.items():
        table = pq.read_table(path)
        assert table.schema.equals(SCHEMA)
        assert table.to_pylist() == [example(3, split, i) for i in range(SIZES[split])]


def test_public_schema(tmp_path):
    row = pq.read_table(write_world(tmp_path, 0, **SIZES)["train"]).slice(0, 1).to_pylist()[0]
    assert row["problem"].count("<image>") == len(row["images"]) == 1
    assert row["images"][0]["bytes"].startswith(b"\x89PNG")
    assert row["images"][0]["path"] == "train_0.png"
    assert row["verifier"] == "shapes"
    assert set(json.loads(row["facts"])) == {"kind", "seen", "grid", "objects"}


def test_choices_reach_the_examples(tmp_path):
    paths = write_world(tmp_path, 0, **SIZES, prior=1.0, kinds=("read",), levels=(1,))
    rows = pq.read_table(paths["cold_start"]).to_pylist()
    assert {(row["kind"], row["difficulty"]) for row in rows} == {("read", 1)}
    assert len({row["answer"] for row in rows}) == 1


def test_a_failure_leaves_the_old_files_and_no_rubbish(tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in write_world(tmp_path, 0, **SIZES).values()}

    def fails_late(seed, split, index, **choices):
        if split == "heldout":
            raise OSError("disk full")
        return example(seed, split, index, **choices)

    monkeypatch.setattr(shapes_files, "example", fails_late)
    with pytest.raises(OSError, match="disk full"):
        write_world(tmp_path, 1, **SIZES)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="heldout has 0 examples"):
        write_world(tmp_path, 0, cold_start=1, train=1, heldout=0)
    assert list(tmp_path.iterdir()) == []
