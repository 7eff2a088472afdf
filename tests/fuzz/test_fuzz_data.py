"""Data sets of every kind: each row is read or named as broken, and whoever looks through them agrees."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from damage import altered, as_json, damaged, json_files, jsonl_files, words
from fuzzing import command, examine
from hypothesis import strategies as st
from PIL import Image

from mmrl.data.inspection import as_text, inspect_rows
from mmrl.data.pipeline import PromptFormat
from mmrl.data.sources import fingerprint, mixture, read
from mmrl.data.validation import inspect, keep_usable
from mmrl.models.processor import load_processor
from mmrl.open import OpenModel
from mmrl.train import completions

MODEL = Path(__file__).parents[1] / "data" / "fixtures" / "qwen2_5_vl"
FORM = PromptFormat(prompt_buckets=(128,), patch_buckets=(256,))
ROWS = [
    {
        "problem": "<image>How many?",
        "answer": "3",
        "images": ["good.png"],
        "verifier": "number",
        "difficulty": 0.5,
    },
    {"problem": "Which?", "answer": "B", "verifier": "choice", "facts": {"options": ["a", "b"]}},
    {
        "problem": "<image><image>Where?",
        "answer": "left",
        "images": [{"path": "good.png"}, {"path": "good.png"}],
    },
    {"problem": "2 + 2?", "answer": 4, "solution": "It is \\boxed{4}.", "turns": ["One.", "\\boxed{4}"]},
]
FACTS = {"verifier": "json", "facts": {"schema": {"type": "object", "required": ["a"]}, "gold": {"a": 1}}}


@pytest.fixture(scope="session")
def processor():
    return load_processor(MODEL)


@pytest.fixture
def here(fuzz):
    """A fuzzer whose folder holds the picture that rows name."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(
        fuzz.folder / "good.png"
    )
    return fuzz


def go_through(source, processor, folder):
    """Every row is a sample or is named; the look-through and the inspection find the same."""
    fingerprint(source)
    good = 0
    for row in range(len(source)):
        good += examine(lambda row=row: source[row], folder, source.id(row)) == "accepted"
    report = inspect(source, processor, FORM)
    found = inspect_rows(source, (processor, FORM))
    assert report.rows == found.rows == len(source)
    assert [one.id for one in report.broken] == [one.id for one in found.broken]
    assert len(report.broken) >= len(source) - good
    inspect(source, processor, FORM, longest=100)
    as_text(found)
    examine(
        lambda: keep_usable(source, report, max_broken=0.0, overlong="error"), folder, source.name, lines=9
    )


def reader_of(here, processor, name):
    """Writes bytes to a file of this name and reads it as a data set."""
    path = here.folder / name
    path.touch()

    def go(data):
        path.write_bytes(data)
        go_through(read(path), processor, here.folder)

    return go


def test_jsonl(here, processor):
    here(jsonl_files(ROWS), reader_of(here, processor, "a.jsonl"), names="a.jsonl")


def test_facts_of_rows(here, processor):
    here(
        jsonl_files([FACTS | {"problem": "?", "answer": "{}"}]),
        reader_of(here, processor, "a.jsonl"),
        names="a.jsonl",
    )


def test_json_lines_under_other_names(here, processor):
    go = {
        name: reader_of(here, processor, name)
        for name in ("a.json", "a.ndjson", "a.parquet", "a.csv", "a.JSONL", "a")
    }
    here(
        st.tuples(st.sampled_from(sorted(go)), jsonl_files(ROWS)),
        lambda pair: go[pair[0]](pair[1]),
        names="a",
    )


def table_of(rows):
    """A parquet file of rows, whatever types their cells have; None where no file can hold them."""
    names = sorted({key for row in rows for key in row if isinstance(row, dict)})
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        for kind in (None, pa.string()):
            try:
                columns[name] = pa.array(cells, kind)
                break
            except Exception:
                cells = [None if cell is None else json.dumps(cell, default=str)[:9999] for cell in cells]
    out = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), out, row_group_size=2, compression="zstd", write_page_checksum=True)
    except Exception:
        return None
    return out.getvalue()


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TYPES = (
    *(pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(30, 3), pa.bool_(), pa.null()),
    *(pa.date32(), pa.timestamp("ns"), pa.duration("s"), pa.time64("ns")),
    *(pa.binary(), pa.large_string(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())),
    *(pa.list_(pa.string()), pa.large_list(pa.binary()), pa.list_(pa.string(), 2)),
    *(IMAGE, pa.list_(IMAGE), pa.map_(pa.string(), pa.int32()), pa.struct({"bytes": pa.list_(pa.uint8())})),
)


@st.composite
def typed_tables(draw):
    """A parquet file in which some columns have another type, with cells of that type and nulls."""
    arrays = {
        name: pa.array([row.get(name) if name != "facts" else None for row in ROWS[:2]])
        for name in ("problem", "answer", "verifier")
    }
    for name in draw(
        st.lists(
            st.sampled_from(("problem", "answer", "images", "facts", "difficulty", "turns")),
            min_size=1,
            max_size=2,
        )
    ):
        kind = draw(st.sampled_from(TYPES))
        arrays[name] = draw(st.sampled_from([cells_of(kind), pa.nulls(2, kind)]))
    out = io.BytesIO()
    try:
        names = [*arrays, *(draw(st.sampled_from([[], ["problem"], ["images"]])))]
        pq.write_table(
            pa.Table.from_arrays([arrays.get(n, pa.nulls(2, pa.string())) for n in names], names=names), out
        )
    except (pa.ArrowException, NotImplementedError):
        return table_of(ROWS)
    return out.getvalue()


def cells_of(kind):
    for cells in ([1, None], ["7", None], [b"7", b""], [["a", "b"], ["c", None]], [[b"a"], [None]],
                  [{"bytes": b"x", "path": None}, None], [[{"bytes": None, "path": "good.png"}], [None]],
                  [[("a", 1)], []], [{"bytes": [1, 2]}, None]):  # fmt: skip
        try:
            return pa.array(cells, kind)
        except Exception:
            continue
    return pa.nulls(2, kind)


def test_parquet(here, processor):
    pictures = [
        {**row, "images": [{"bytes": (here.folder / "good.png").read_bytes(), "path": None}]}
        for row in ROWS[:1] * 5
    ]
    files = st.one_of(
        damaged(table_of(pictures)),
        damaged(table_of([{k: v for k, v in row.items() if k in ("problem", "answer")} for row in ROWS])),
        altered([{k: str(v) for k, v in row.items()} for row in ROWS])
        .filter(lambda rows: all(isinstance(r, dict) for r in rows))
        .map(table_of)
        .filter(bool),
        typed_tables(),
    )
    here(files, reader_of(here, processor, "a.parquet"), names="a.parquet")


def test_arrow(here, processor):
    """What `save_to_disk` of the library datasets writes, one of its files damaged."""
    folder = here.folder / "saved"
    folder.mkdir()
    table, out = pa.table({"problem": ["?", "Why?"], "answer": ["1", "2"]}), io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    whole = {"data-00000-of-00001.arrow": out.getvalue(), "state.json": as_json(state)}
    whole["dataset_info.json"] = as_json({"features": {}})
    here.outputs.update(whole)

    def go(pair):
        name, data = pair
        for file, content in (whole | {name: data}).items():
            (folder / file).write_bytes(content)
        go_through(read(folder), processor, here.folder)

    damages = {"data-00000-of-00001.arrow": damaged(out.getvalue()), "state.json": json_files(state)}
    files = st.one_of(st.tuples(st.just(name), data) for name, data in damages.items())
    here(files, go, names="saved", share=0.8)


def csv_of(rows, delimiter=","):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    names = sorted({key for row in rows if isinstance(row, dict) for key in row})
    writer.writerow(names)
    for row in rows:
        writer.writerow([row.get(name, "") for name in names] if isinstance(row, dict) else [row])
    return out.getvalue().encode("utf-8", "surrogatepass")


def test_prompts_to_generate_from(here, monkeypatch):
    monkeypatch.setattr(completions, "complete", lambda *_, **__: iter(()))  # nothing is sampled
    monkeypatch.setattr(OpenModel, "load", lambda _: {})
    path, out = here.folder / "a.jsonl", here.folder / "out.jsonl"
    for file in (path, out):
        file.touch()

    def go(data):
        path.write_bytes(data)
        command("generate", f"--model={MODEL}", f"--prompts={path}", f"--out={out}")

    prompts = [{"problem": "<image>?", "images": ["good.png"]}, {"problem": "Why?"}]
    here(jsonl_files(prompts), go, names="a.jsonl", share=0.5)


def test_image_folders(here, processor):
    folder = here.folder / "pictures"
    folder.mkdir()
    (here.folder / "good.png").rename(folder / "good.png")
    names = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
    rows = [{"file_name": "good.png", "problem": "<image>?", "answer": str(k)} for k in range(3)]
    here.outputs.update(names)  # of which one is there at a time

    def go(pair):
        name, data = pair
        for other in names:
            (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        go_through(read(folder), processor, here.folder)

    files = st.one_of(
        st.tuples(st.just(names[0]), damaged(csv_of(rows)) | altered(rows).map(csv_of)),
        st.tuples(st.just(names[1]), jsonl_files(rows)),
        st.tuples(st.sampled_from(names), damaged(table_of(rows))),
    )
    here(files, go, names="pictures")


def test_names_of_data_sets(here, processor):
    (here.folder / "d" / "data").mkdir(parents=True)
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "data/test.jsonl"):
        (here.folder / "d" / name).write_bytes(as_json(ROWS[1]))
    (here.folder / "d" / "train").symlink_to("train")
    specs = st.one_of(
        words(),
        words().map(lambda text: f"d:{text}"),
        st.sampled_from(
            (
                "d",
                "d:train",
                "d:test",
                "d/",
                "d:train[:1]",
                "good.png",
                ".",
                "..",
                "pipe",
                "/dev/null",
                "d/train",
            )
        ),
    )

    def go(spec):
        for path, weight in mixture(spec):
            assert weight is None or weight > 0
            go_through(read(path), processor, here.folder)

    here(specs, go)


def test_columns_named_by_the_caller(here, processor):
    path = here.folder / "a.jsonl"
    path.write_bytes(b"\n".join(map(as_json, ROWS)))
    columns = st.dictionaries(
        st.sampled_from(("problem", "answer", "images", "facts")) | words(),
        st.sampled_from(sorted(ROWS[0])) | words(),
        max_size=3,
    )
    roots = st.none() | words()
    here(
        st.tuples(columns, roots),
        lambda pair: go_through(read(path, pair[0], pair[1]), processor, here.folder),
    )


def test_inspect_command(here):
    path = here.folder / "a.jsonl"
    path.touch()
    (here.folder / "out.html").touch()

    def go(data):
        path.write_bytes(data)
        command("data", "inspect", path, f"--model={MODEL}", "--out=out.html", "--examples=2")

    here(jsonl_files(ROWS), go, names="a.jsonl", lines=9, share=0.5)
