"""Reading parquet and JSONL in the public schema, and every way a file can be wrong."""

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mmrl.data.columnar as columnar
from mmrl.data.sources import read


def _png(value, size=(40, 30)):
    out = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(out, "PNG")
    return out.getvalue()


def _rows(n=5):
    return [
        {
            "problem": f"<image>How many? {k}",
            "answer": str(k),
            "images": [{"bytes": _png(k), "path": None}],
            "verifier": "number",
            "facts": json.dumps({"k": k}),
            "extra": [1.5, 2.5],
        }
        for k in range(n)
    ]


def _parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_parquet_rows_by_random_access(tmp_path):
    source = read(_parquet(tmp_path / "a.parquet", _rows(), row_group_size=2))
    assert len(source) == 5
    sample = source[3]
    assert (sample.id, sample.source) == ("a.parquet:3", "a.parquet")
    assert (sample.problem, sample.answer, sample.verifier) == ("<image>How many? 3", "3", "number")
    assert sample.images == (_png(3),)
    assert sample.facts == {"k": 3}
    assert sample.solution is None
    assert [s.answer for s in source] == list("01234")


def test_large_parquet_is_spilled_and_reads_the_same(tmp_path, monkeypatch):
    rows = _rows(7)
    _parquet(tmp_path / "a.parquet", rows[:4], row_group_size=2)
    _parquet(tmp_path / "b.parquet", [{k: v for k, v in r.items() if k != "facts"} for r in rows[4:]])
    whole = list(read(tmp_path))
    monkeypatch.setattr(columnar, "IN_MEMORY", 0)
    monkeypatch.setattr(columnar, "BATCH_ROWS", 3)
    spilled = read(tmp_path)
    assert list(spilled) == whole
    assert len(spilled) == 7
    assert spilled[5].facts == {}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ([{"bytes": None, "path": "x/1.png"}], ("ROOT/x/1.png",)),
        ({"bytes": b"abc", "path": "x"}, (b"abc",)),
        ([b"abc", b"de"], (b"abc", b"de")),
        (["1.png", "2.png"], ("ROOT/1.png", "ROOT/2.png")),
        ("1.png", ("ROOT/1.png",)),
        (b"abc", (b"abc",)),
        (["/abs/1.png"], ("/abs/1.png",)),
        (None, ()),
        ([], ()),
    ],
)
def test_forms_of_the_image_column(tmp_path, cell, expected):
    row = {"problem": "p", "answer": "a", "images": cell}
    source = read(_parquet(tmp_path / "a.parquet", [row]))
    want = tuple(x.replace("ROOT", str(tmp_path)) if isinstance(x, str) else x for x in expected)
    assert source[0].images == want


def test_image_root_and_renamed_columns(tmp_path):
    rows = [{"question": "q", "answer": "a", "image": "1.png"}]
    mapping = {"problem": "question", "images": "image"}
    source = read(_parquet(tmp_path / "a.parquet", rows), columns=mapping, image_root="/pictures")
    assert source[0].images == ("/pictures/1.png",)
    assert source[0].problem == "q"


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"problem": "text only", "answer": 7, "other": 1},
        {"problem": "<image>é", "answer": "b", "images": ["1.png"], "facts": {"x": 1}, "solution": "s"},
    ]
    path.write_text(json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1], ensure_ascii=False), encoding="utf-8")
    source = read(path)
    assert len(source) == 2
    assert source[0].images == ()
    assert source[0].answer == "7"
    assert source[1].images == (str(tmp_path / "1.png"),)
    assert (source[1].facts, source[1].solution, source[1].problem) == ({"x": 1}, "s", "<image>é")


def test_directory_of_jsonl(tmp_path):
    for name in "ba":
        _jsonl(tmp_path / f"{name}.jsonl", [{"problem": name, "answer": str(k)} for k in range(2)])
    assert [s.problem + s.answer for s in read(tmp_path)] == ["a0", "a1", "b0", "b1"]


def test_only_the_row_asked_for_is_parsed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "p", "answer": "a"}\n{broken\n{"problem": "q", "answer": "b"}\n')
    source = read(path)
    assert source[2].problem == "q"
    with pytest.raises(ValueError, match=r"a\.jsonl:1: not JSON"):
        source[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "none.parquet", "does not exist"),
        (lambda d: _parquet(d / "a.parquet", [{"question": "q", "answer": "a"}]), "no column 'problem'"),
        (lambda d: _jsonl(d / "a.jsonl", [{"problem": "q", "answers": "a"}]), "nearest is 'answers'"),
        (lambda d: _parquet(d / "a.parquet", _rows(1)).rename(d / "a.csv"), "not a parquet or JSONL file"),
        (lambda d: _jsonl(d / "a.parquet", [{"problem": "q"}]), "not a readable parquet file"),
        (lambda d: _jsonl(d / "a.jsonl", []), "has no rows"),
        (lambda d: d, "holds no file"),
        (lambda d: _jsonl(d / "a.jsonl", [[1]]), "line 1: a list, not a JSON object"),
    ],
)
def test_broken_files(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(tmp_path) in str(error.value)


def test_empty_parquet(tmp_path):
    schema = pa.schema([("problem", pa.string()), ("answer", pa.string())])
    pq.write_table(pa.Table.from_pylist([], schema=schema), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        read(tmp_path / "a.parquet")


def test_truncated_parquet(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _rows())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable parquet file"):
        read(path)


def test_mixed_directory(tmp_path):
    _parquet(tmp_path / "a.parquet", _rows(1))
    _jsonl(tmp_path / "b.jsonl", [{"problem": "p", "answer": "a"}])
    with pytest.raises(ValueError, match="name one file"):
        read(tmp_path)


def test_named_column_must_be_there(tmp_path):
    path = _parquet(tmp_path / "a.parquet", _rows(1))
    with pytest.raises(ValueError, match="nearest is 'images'"):
        read(path, columns={"images": "image"})
    with pytest.raises(ValueError, match="'picture' is not in the schema"):
        read(path, columns={"picture": "images"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": None, "answer": "a"}, "column 'problem' is absent or null"),
        ({"answer": "a"}, "column 'problem' is absent or null"),
        ({"problem": ["p"], "answer": "a"}, "problem is a list, not text"),
        ({"problem": "p", "answer": {"x": 1}}, "answer is a dict, not text"),
        ({"problem": "p", "answer": "a", "facts": "{"}, "facts is not JSON"),
        ({"problem": "p", "answer": "a", "facts": "[1]"}, "facts is a list"),
        ({"problem": "p", "answer": "a", "verifier": 3}, "verifier is a int"),
        ({"problem": "p", "answer": "a", "turns": "one"}, "turns is not a list of text"),
        ({"problem": "p", "answer": "a", "turns": ["one", None]}, "turns is not a list of text"),
        ({"problem": "p", "answer": "a", "images": [None]}, "image 0: neither bytes nor a path"),
        ({"problem": "p", "answer": "a", "images": [{"x": 1}]}, "image 0: neither bytes nor a path"),
    ],
)
def test_broken_rows_are_named(tmp_path, row, message):
    source = read(_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "answer": "a"}, row]))
    assert source[0].problem == "p"
    with pytest.raises(ValueError, match=rf"a\.jsonl:1.*{message}"):
        source[1]


@pytest.mark.parametrize("write", [_jsonl, _parquet])
def test_turns(tmp_path, write):
    rows = [{"problem": "p", "answer": "a", "turns": turns} for turns in (["one", "two"], [], None)]
    path = tmp_path / ("a.jsonl" if write is _jsonl else "a.parquet")
    source = read(write(path, rows))
    assert [source[k].turns for k in range(3)] == [("one", "two"), (), ()]


def test_index_out_of_range(tmp_path):
    source = read(_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "answer": "a"}]))
    for index in (1, -1, np.iinfo(np.int32).max):
        with pytest.raises(IndexError):
            source[index]


def _numbered(tmp_path, n=10):
    return read(_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "answer": str(k)} for k in range(n)]))


def test_a_view_keeps_the_ids_of_the_file(tmp_path):
    source = _numbered(tmp_path)
    view = source.choose([7, 2, 5])
    assert [(s.id, s.answer) for s in view] == [("a.jsonl:7", "7"), ("a.jsonl:2", "2"), ("a.jsonl:5", "5")]
    assert (len(view), len(source), list(view.chosen)) == (3, 10, [7, 2, 5])
    nested = view.choose(np.array([2, 0]))
    assert [s.answer for s in nested] == ["5", "7"]
    assert nested.id(1) == "a.jsonl:7"
    short = replace(view, length=2)
    assert [s.answer for s in short] == ["7", "2"]
    assert [s.answer for s in short.choose([1])] == ["2"]
    assert list(source.choose([])) == []


@pytest.mark.parametrize("rows", [[0, 3], [-1]])
def test_a_view_has_no_rows_of_its_own(tmp_path, rows):
    with pytest.raises(ValueError, match=r"a\.jsonl: no row (3|-1) among 3"):
        _numbered(tmp_path).choose([1, 2, 3]).choose(rows)


def test_a_broken_row_of_a_view_is_named_as_in_the_file(tmp_path):
    source = read(_jsonl(tmp_path / "a.jsonl", [{"problem": "p", "answer": "a"}] * 3 + [{"problem": "p"}]))
    with pytest.raises(ValueError, match=r"^a\.jsonl:3: column 'answer' is absent"):
        source.choose([3, 1])[0]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_pickled_source_is_small_and_reads_the_same(tmp_path, monkeypatch, kind):
    rows = [{"problem": "p" * 1000, "answer": str(k), "images": [f"{k}.png"]} for k in range(500)]
    write = _parquet if kind == "parquet" else _jsonl
    write(tmp_path / f"a.{kind}", rows)
    monkeypatch.chdir(tmp_path)
    source = read(f"a.{kind}", columns={"solution": "answer"}, image_root="pictures")
    view = replace(source.choose(range(100, 120)), name="mine", length=15)
    data = pickle.dumps(view)
    assert len(data) < 2000
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert list(again) == list(view)
    assert again[3].images == (str(tmp_path / "pictures" / "103.png"),)
    assert (again.name, len(again), again.id(3)) == ("mine", 15, "mine:103")


def test_a_file_that_changed_is_not_opened_anew(tmp_path):
    data = pickle.dumps(_numbered(tmp_path))
    _numbered(tmp_path, 9)
    with pytest.raises(ValueError, match="has 9 rows, but had 10"):
        pickle.loads(data)


def test_the_first_row_does_not_tell_for_all(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{broken\n{"problem": "p"}\n{"problem": "q", "answer": "b"}\n')
    source = read(path)
    assert source[2].answer == "b"
    for row, message in ((0, "not JSON"), (1, "'answer' is absent")):
        with pytest.raises(ValueError, match=rf"a\.jsonl:{row}: .*{message}"):
            source[row]


@pytest.mark.parametrize("spilled", [False, True])
def test_a_damaged_row_group_costs_its_rows_only(tmp_path, monkeypatch, spilled):
    rows = [{"problem": f"{k}" * 2000, "answer": str(k)} for k in range(6)]
    path = _parquet(tmp_path / "a.parquet", rows, row_group_size=2, use_dictionary=False, compression="gzip")
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    if spilled:
        monkeypatch.setattr(columnar, "IN_MEMORY", 0)
        monkeypatch.setattr(columnar, "BATCH_ROWS", 1)
    source = read(path)
    assert [source[k].answer for k in (0, 1, 4, 5)] == ["0", "1", "4", "5"]
    for k in (2, 3):
        with pytest.raises(ValueError, match=rf"^a\.parquet:{k}: its part of the file cannot be read"):
            source[k]


def test_a_line_without_an_end_is_a_broken_row(tmp_path, monkeypatch):
    monkeypatch.setattr("mmrl.data.files.LONGEST_LINE", 100)
    rows = [
        {"problem": "p", "answer": "a"},
        {"problem": "p" * 1000, "answer": "b"},
        {"problem": "q", "answer": "c"},
    ]
    source = read(_jsonl(tmp_path / "a.jsonl", rows))
    assert [source[k].answer for k in (0, 2)] == ["a", "c"]
    with pytest.raises(
        ValueError, match=rf"a\.jsonl:1: a line of {len(json.dumps(rows[1]))} bytes, over 100"
    ):
        source[1]


@pytest.mark.parametrize(
    ("limit", "images", "why"),
    [
        ("MOST_IMAGES", ["a.png"] * 4, "4 images, over 3"),
        ("LARGEST_IMAGE", [b"abcd"], "image 0: 4 bytes, over 3"),
    ],
)
def test_images_have_a_bound(tmp_path, monkeypatch, limit, images, why):
    monkeypatch.setattr(f"mmrl.data.rows.{limit}", 3)
    source = read(_parquet(tmp_path / "a.parquet", [{"problem": "p", "answer": "a", "images": images}]))
    with pytest.raises(ValueError, match=why):
        source[0]


def test_a_table_of_cells_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("mmrl.data.files.LARGEST_CSV", 10)
    (tmp_path / "metadata.csv").write_text("problem,answer,file_name\np,a,x.png\n")
    with pytest.raises(ValueError, match=r"metadata\.csv is over"):
        read(tmp_path)
