"""What a path may name beside one file: repositories with splits, image folders, mixtures."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrl.data.sources import fingerprint, mixture, read


def _parquet(path, first, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"problem": f"p{k}", "answer": str(k)} for k in range(first, first + count)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _answers(source):
    return [sample.answer for sample in source]


@pytest.mark.parametrize("inner", ["", "data"])
def test_splits_of_a_repository(tmp_path, inner):
    folder = tmp_path / inner
    _parquet(folder / "train-00001-of-00002.parquet", 3, 2)
    _parquet(folder / "train-00000-of-00002.parquet", 0, 3)
    _parquet(folder / "test-00000-of-00001.parquet", 9, 1)
    (tmp_path / "README.md").write_text("a card")
    train = read(f"{tmp_path}:train")
    assert _answers(train) == list("01234")
    assert train[4].id == f"{tmp_path.name}:train:4"
    assert _answers(read(f"{tmp_path}:test")) == ["9"]
    assert _answers(pickle.loads(pickle.dumps(train.choose([3])))) == ["3"]
    for spec, message in (("", "several splits; name one: .*:test, .*:train"), (":dev", "no split 'dev'")):
        with pytest.raises(ValueError, match=message):
            read(f"{tmp_path}{spec}")
    (folder / "test-00000-of-00001.parquet").unlink()
    assert _answers(read(tmp_path)) == list("01234")
    (folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="part 0 of 2 of the split 'train' is missing"):
        read(tmp_path)


def test_a_split_by_the_name_of_its_file(tmp_path):
    _parquet(tmp_path / "train.parquet", 0, 2)
    _parquet(tmp_path / "heldout.parquet", 2, 2)
    assert _answers(read(f"{tmp_path}:heldout")) == ["2", "3"]
    assert _answers(read(tmp_path)) == ["2", "3", "0", "1"]


def _image_folder(folder, kind, rows):
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    else:
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


ROWS = [
    {"file_name": f"{k}.png", "problem": f'<image>What,\n"{k}"?', "answer": str(k), "facts": '{"x": 1}'}
    for k in range(3)
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_image_folder(tmp_path, kind):
    _image_folder(tmp_path, kind, ROWS)
    (tmp_path / "0.png").write_bytes(b"a picture")
    source = read(tmp_path)
    assert [s.problem for s in source] == [row["problem"] for row in ROWS]
    assert source[2].images == (str(tmp_path / "2.png"),)
    assert source[2].facts == {"x": 1}
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_image_folder_of_splits(tmp_path):
    for split in ("train", "test"):
        _image_folder(tmp_path / split, "jsonl", [ROWS[0] | {"answer": split}])
    source = read(f"{tmp_path}:test")
    assert source[0].answer == "test"
    assert source[0].images == (str(tmp_path / "test" / "0.png"),)
    with pytest.raises(ValueError, match=r"several splits or parts; name one of them: .*:test, .*:train"):
        read(tmp_path)


def test_a_list_of_images_goes_before_the_file_name(tmp_path):
    _image_folder(tmp_path, "jsonl", [ROWS[0] | {"images": ["x.png", "y.png"]}])
    assert read(tmp_path)[0].images == (str(tmp_path / "x.png"), str(tmp_path / "y.png"))
    assert read(tmp_path, columns={"images": "file_name"})[0].images == (str(tmp_path / "0.png"),)


def test_two_descriptions(tmp_path):
    for kind in ("csv", "jsonl"):
        _image_folder(tmp_path, kind, ROWS)
    with pytest.raises(ValueError, match=r"metadata\.jsonl, metadata\.csv: leave one"):
        read(tmp_path)


def test_broken_rows_of_csv(tmp_path):
    good = "1.png,<image>q,a"
    lines = [
        "file_name,problem,answer",
        good,
        "2.png,<image>q",
        '3.png,"<ima"ge>q,a',
        good,
        "4.png,\udc80,a",
        good,
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines), errors="surrogateescape")
    source = read(tmp_path)
    for row, message in (
        (1, "2 cells under a header of 3"),
        (2, "not CSV"),
        (4, "problem is not valid Unicode"),
    ):
        with pytest.raises(ValueError, match=rf"{tmp_path.name}:{row}: {message}"):
            source[row]
    assert [source[k].answer for k in (0, 3, 5)] == ["a"] * 3
    (tmp_path / "metadata.csv").write_text("problem,problem\nq,a\n")
    with pytest.raises(ValueError, match="names a column twice"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.parquet", [("a.parquet", None)]),
        ("a.parquet, b:train", [("a.parquet", None), ("b:train", None)]),
        ("a.parquet@0.3,tfds:x:train[:10%]@0.7", [("a.parquet", 0.3), ("tfds:x:train[:10%]", 0.7)]),
        ("a@b/c.parquet@2", [("a@b/c.parquet", 2.0)]),
    ],
)
def test_mixture(text, parts):
    assert mixture(text) == parts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a part is empty"),
        ("a,", "a part is empty"),
        ("@1", "a part is empty"),
        ("a@0,b@1", "'0' is not a positive number"),
        ("a@-1", "'-1' is not a positive number"),
        ("a@inf", "'inf' is not a positive number"),
        ("a@nan", "'nan' is not a positive number"),
        ("a@", "'' is not a positive number"),
        ("a@b.parquet", "'b.parquet' is not a positive number"),
        ("a@1,b", "b has no weight; give all parts one, or none"),
        ("a@1,a@2", "a stands twice"),
    ],
)
def test_no_mixture(text, message):
    with pytest.raises(ValueError, match=message):
        mixture(text)


def test_fingerprint_is_of_the_content(tmp_path):
    folder = tmp_path / "one"
    _image_folder(folder, "jsonl", ROWS)
    (folder / "0.png").write_bytes(b"a picture")
    first = fingerprint(read(folder))
    assert len(first) == 64
    assert fingerprint(read(folder).choose([1])) == first
    shutil.copytree(folder, tmp_path / "two")
    assert fingerprint(read(tmp_path / "two")) == first
    (tmp_path / "two" / "0.png").write_bytes(b"another picture")
    seen = {first, fingerprint(read(tmp_path / "two"))}
    (tmp_path / "two" / "1.png").write_bytes(b"")
    seen.add(fingerprint(read(tmp_path / "two")))
    _image_folder(folder, "jsonl", [*ROWS[:2], ROWS[2] | {"answer": "3"}])
    seen.add(fingerprint(read(folder)))
    seen.add(fingerprint(read(folder, columns={"solution": "answer"})))
    assert len(seen) == 5


def test_fingerprint_counts_the_order_of_files(tmp_path):
    for name, first in (("a", 0), ("b", 1)):
        _parquet(tmp_path / "one" / f"{name}.parquet", first, 1)
        _parquet(tmp_path / "two" / f"{name}.parquet", 1 - first, 1)
    assert fingerprint(read(tmp_path / "one")) != fingerprint(read(tmp_path / "two"))


CASES = Path(__file__).parents[1] / "cases"
# What hubs, git, downloads and systems leave beside the data.
CLUTTER = (
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "README.md",
    ".gitattributes",
    ".DS_Store",
    "Thumbs.db",
    "._train.parquet",
    "._train.jsonl",
    ".train.jsonl.swp",
    ".cache/huggingface/download/x.json",
    ".git/HEAD.json",
    ".ipynb_checkpoints/train.jsonl",
)


@pytest.mark.parametrize(
    ("spec", "answers"), [("clone", 2), ("clone:train", 2), ("flat", 4), ("flat:train", 2), ("flat:test", 2)]
)
def test_a_cloned_repository(spec, answers):
    assert len(_answers(read(CASES / "06_hub_clone" / spec))) == answers


@pytest.mark.parametrize("where", ["", "data"])
@pytest.mark.parametrize("name", ["train.parquet", "train-00000-of-00001.parquet", "rows.jsonl"])
def test_what_lies_beside_data_is_none(tmp_path, name, where):
    for clutter in CLUTTER:
        for folder in {tmp_path, tmp_path / where}:
            (folder / clutter).parent.mkdir(parents=True, exist_ok=True)
            (folder / clutter).write_bytes(b'\0\5\x16\7{"default": {}}')
    if name.endswith(".jsonl"):
        (tmp_path / where / name).write_text('{"problem": "p", "answer": "0"}\n')
    else:
        _parquet(tmp_path / where / name, 0, 1)
    assert _answers(read(tmp_path)) == ["0"]


def test_clutter_alone_is_no_data(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="holds no file ending in"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"dataset_info\.json tells about a data set, and is none"):
        read(tmp_path / "dataset_info.json")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.arrow", "metadata.csv"])
def test_a_clone_without_its_large_files(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(
        ValueError, match=f"{name} is a pointer of git-lfs, not the file itself: run git lfs pull"
    ):
        read(tmp_path)


def test_files_of_several_kinds_are_named(tmp_path):
    _parquet(tmp_path / "a.parquet", 0, 1)
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"several kinds, b\.jsonl and a\.parquet; name one file"):
        read(tmp_path)
