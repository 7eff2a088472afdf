"""Rows of parquet and Arrow files: numbers as they were meant, in memory that no file can blow up."""

import datetime
import decimal
import json
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmrl.data.columnar as columnar
from mmrl.data.inspection import columns_of
from mmrl.data.sources import fingerprint, read
from mmrl.rewards.verifiers import VERIFIERS
from mmrl.tasks.entries import read_entries

CASES = Path(__file__).parents[1] / "cases"
SHORT = ("0.1", "12.3", "12345.67", "99.9", "3.14159", "0.001", "250000.5")


def written(path, **columns):
    columns = {"problem": pa.array(["p"] * len(next(iter(columns.values())))), **columns}
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("verifier", ["math", "number", "exact"])
def test_answers_in_32_bits_are_their_shortest_decimals(verifier):
    source = read(CASES / "04_float32_answers" / f"f32_{verifier}.parquet")
    assert [sample.answer for sample in source] == list(SHORT)
    for sample in source:
        assert VERIFIERS[verifier](sample, f"\\boxed{{{sample.answer}}}")["accuracy"] == 1.0


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("cells", "answers"),
    [
        (
            pa.array([0.1, 1e10, 1e-7, -0.3, 16777217.0], pa.float32()),
            "0.1 10000000000.0 1e-07 -0.3 16777216.0",
        ),
        (pa.array(np.array([0.1, 2.5, 1000.0], np.float16)), "0.1 2.5 1000.0"),
        (pa.array([0.1, 0.30000000000000004], pa.float64()), "0.1 0.30000000000000004"),
        (pa.array([0.1, 0.1, 0.7], pa.float32()).dictionary_encode(), "0.1 0.1 0.7"),
        (pa.array([7, 2**63], pa.uint64()), "7 9223372036854775808"),
        (pa.array([-128], pa.int8()), "-128"),
        (pa.array([decimal.Decimal("12.50"), decimal.Decimal("-0.01")]), "12.50 -0.01"),
        (pa.array([datetime.date(2024, 2, 29)]), "2024-02-29"),
        (pa.array(["a", "b"]).dictionary_encode(), "a b"),
        (pa.array(["a", "b"], pa.large_string()), "a b"),
    ],
)
def test_an_answer_of_any_type(tmp_path, suffix, cells, answers):
    source = read(written(tmp_path / f"a{suffix}", answer=cells))
    assert [sample.answer for sample in source] == answers.split()


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (pa.array([True]), "answer is a bool, not text: write the word"),
        (pa.array([[1.5]], pa.list_(pa.float32())), "answer is a list"),
        (pa.array([np.nan], pa.float32()), "the answer is nan"),
        (pa.array([datetime.datetime(2024, 1, 1)]), "answer is a datetime"),
        (pa.array([1], pa.timestamp("ns")), r"a\.parquet:0: "),
        (pa.array([2**60], pa.timestamp("us")), r"a\.parquet:0: "),
    ],
)
def test_an_answer_that_is_none(tmp_path, cells, why):
    source = read(written(tmp_path / "a.parquet", answer=cells))
    with pytest.raises(ValueError, match=why):
        source[0]


def test_numbers_within_facts_are_short_too(tmp_path):
    inner = {"box": [[0.1, 0.7], None], "one": 0.3, "exact": 0.1, "none": None}
    kind = pa.struct(
        {
            "box": pa.list_(pa.list_(pa.float32())),
            "one": pa.float16(),
            "exact": pa.float64(),
            "none": pa.float32(),
        }
    )
    facts = pa.array([inner | {"one": np.float16(0.3)}], kind)
    source = read(written(tmp_path / "a.parquet", answer=pa.array(["a"]), facts=facts))
    assert source[0].facts == inner


def peak(run):
    """What it gives, and by how many bytes it raised the most that this process ever held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return run(), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


def test_three_kilobytes_that_unpack_to_three_gigabytes():
    path = CASES / "parquet_bomb" / "bomb.parquet"
    assert path.stat().st_size < 3000
    source, grown = peak(lambda: read(path))
    assert len(source) == 60_000
    assert grown < 1 << 30
    assert source[59_999].problem == source[0].problem == "x" * 50_000


@pytest.mark.parametrize("spilled", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_values_that_repeat_are_held_once_and_read_the_same(tmp_path, monkeypatch, nested, spilled):
    monkeypatch.setattr(columnar, "IN_MEMORY", 0 if spilled else 1 << 30)
    image = b"\x89PNG" + bytes(20_000)
    cells = [image] * 150 + [None] * 5 + [b"other"] * 45
    images = [
        [{"bytes": cell, "path": f"{k}.png"}, {"bytes": b"x", "path": None}] if cell else cell
        for k, cell in enumerate(cells)
    ]
    columns = {
        "answer": pa.array([str(k) for k in range(200)]),
        "images": pa.array(images if nested else cells),
    }
    path = tmp_path / "a.parquet"
    written(path, **columns)
    parts = columnar._store(columnar._batches([path], [["images"]]), [path])
    assert sum(part.nbytes for part in parts) < 200_000
    source = read(path)
    assert [sample.answer for sample in source] == [str(k) for k in range(200)]
    for k in (0, 63, 64, 149, 150, 154, 155, 199):
        rest = (b"x",) if nested else ()
        assert source[k].images == (() if cells[k] is None else (cells[k], *rest)), k


@pytest.mark.parametrize("dictionary", [True, False])
def test_no_more_is_decoded_at_once_than_a_few_large_values(tmp_path, monkeypatch, dictionary):
    monkeypatch.setattr(columnar, "BATCH_BYTES", 1 << 20)
    cells = ["y" * 300_000, *map(str, range(19))]
    pq.write_table(
        pa.table(
            {
                "problem": cells * (1 if dictionary else 20),
                "answer": ["a"] * len(cells) * (1 if dictionary else 20),
            }
        ),
        tmp_path / "a.parquet",
        use_dictionary=dictionary,
    )
    sizes = [part.num_rows for part in columnar._batches([tmp_path / "a.parquet"], [["problem"]])]
    assert max(sizes) == (3 if dictionary else 69)


def test_what_is_spilled_leaves_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "IN_MEMORY", 0)
    monkeypatch.setattr(columnar, "DISK_LEFT", 1 << 60)
    with pytest.raises(ValueError, match=r"a\.parquet unpacks to over .* TMPDIR"):
        read(written(tmp_path / "a.parquet", answer=pa.array(["a"])))


def test_what_unpacks_to_far_more_than_is_stored_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "IN_MEMORY", 0)
    monkeypatch.setattr(columnar, "MOST_UNPACKED", 1 << 20)
    table = pa.table({"problem": [f"{k:05}" * 20_000 for k in range(100)], "answer": ["a"] * 100})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    with pytest.raises(ValueError, match=r"a\.parquet unpacks to over .* 100 times what is stored"):
        read(tmp_path / "a.parquet")


def test_a_file_may_not_state_any_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "MOST_ROWS", 99)
    with pytest.raises(ValueError, match=r"a\.parquet: a data set of 100 rows, over 99"):
        read(written(tmp_path / "a.parquet", answer=pa.array(["a"] * 100)))


@pytest.mark.parametrize("reader", [read, lambda path: list(read_entries(path))])
def test_a_column_that_stands_twice(tmp_path, reader):
    table = pa.Table.from_arrays(
        [pa.array(["p"]), pa.array(["1"]), pa.array(["2"])], ["problem", "answer", "answer"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: the column 'answer' stands twice"):
        reader(tmp_path / "a.parquet")


def saved_to_disk(folder, first, count, parts=2):
    """What ``Dataset.save_to_disk`` writes, and a cache that ``map`` leaves beside it."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05}-of-{parts:05}.arrow" for k in range(parts)]
    for k, name in enumerate(names):
        numbers = range(first + k * count, first + (k + 1) * count)
        written(folder / name, answer=pa.array([n + 0.1 for n in numbers], pa.float32()))
    written(folder / "cache-0123456789abcdef.arrow", answer=pa.array(["cached"]))
    told = {"_data_files": [{"filename": name} for name in names], "_split": "train", "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(told))
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def test_a_data_set_saved_to_disk(tmp_path):
    folder = saved_to_disk(tmp_path / "one", 0, 4)
    source = read(folder)
    assert [sample.answer for sample in source] == [f"{k}.1" for k in range(8)]
    assert [(column.name, column.type) for column in columns_of(source)] == [
        ("problem", "string"),
        ("answer", "float"),
    ]
    assert len(fingerprint(source)) == 64
    assert [entry["answer"] for _, entry in read_entries(folder)][:2] == [0.1, 1.1]
    both = tmp_path / "dict"
    saved_to_disk(both / "train", 0, 2)
    saved_to_disk(both / "test", 4, 1)
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [sample.answer for sample in read(f"{both}:test")] == ["4.1", "5.1"]
    with pytest.raises(ValueError, match=r"name one of them: .*dict:test, .*dict:train"):
        read(both)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("state.json", b"{}", r"state\.json is not what save_to_disk writes"),
        ("state.json", b'{"_data_files": [{"filename": "../x.arrow"}]}', "is missing"),
        (
            "state.json",
            b'{"_data_files": [{"filename": "gone.arrow"}]}',
            r"gone\.arrow, which .* names, is missing",
        ),
        ("data-00001-of-00002.arrow", b"", r"00002\.arrow is not a readable Arrow file"),
        ("data-00001-of-00002.arrow", b"\xff" * 100, r"00002\.arrow is not a readable Arrow file"),
        ("data-00001-of-00002.arrow", None, r"00002\.arrow is damaged"),
    ],
)
def test_a_damaged_data_set_saved_to_disk(tmp_path, name, content, why):
    folder = saved_to_disk(tmp_path / "one", 0, 4)
    file = folder / name
    file.write_bytes(file.read_bytes()[:-120] if content is None else content)
    with pytest.raises(ValueError, match=why):
        read(folder)


def test_a_selection_of_rows_saved_to_disk_is_not_taken_for_the_whole(tmp_path):
    folder = saved_to_disk(tmp_path / "one", 0, 4)
    told = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(
        json.dumps(told | {"_indices_data_files": [{"filename": "indices.arrow"}]})
    )
    with pytest.raises(ValueError, match="save it again after flatten_indices"):
        read(folder)
