"""What messages tell people to do: every option and key in them exists, and commands run as they stand."""

import argparse
import ast
import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrl.cli import _parser, main
from mmrl.config import template
from mmrl.data.sources import mixture, read

SOURCES = sorted((Path(__file__).parents[1] / "mmrl").rglob("*.py"))
OTHERS = ("--xla", "--logdir", "--repo-type")  # of other programs


def texts(file):
    """The text constants of a module that are no docstrings."""
    tree = ast.parse(file.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def options(parser):
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from options(sub)


def keys(config, prefix=""):
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{name}.")


def test_every_option_in_a_message_exists():
    known = {*options(_parser())}
    found = {
        (file.name, flag)
        for file in SOURCES
        for text in texts(file)
        if "var(--" not in text and ":root" not in text  # a style sheet
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)
        if not flag.startswith("--config") and not flag.startswith(OTHERS)
    }
    assert len(found) > 40
    assert {(file, flag) for file, flag in found if flag not in known} == set()


def test_every_key_in_a_message_exists():
    known = {*keys(template())}
    found = {
        (file.name, key)
        for file in SOURCES
        for text in texts(file)
        for key in re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_0-9]+)+)", text)
        if not key.startswith(("reward.sources.", "reward.weights.", "reward.options."))
    }
    assert len(found) > 40
    assert {(file, key) for file, key in found if key not in known} == set()


def test_no_message_names_an_argument_of_python():
    """What a caller of a function would write, nobody can write on a command line."""
    wrong = re.compile(r"\b(columns|overlong|image_root|max_broken|prompt_buckets|patch_buckets)=[\"'{(]")
    assert [(file.name, text) for file in SOURCES for text in texts(file) if wrong.search(text)] == []


CHAT = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "red"}]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def csv(path, rows):
    path.write_text(",".join(rows[0]) + "\n" + "".join(",".join(map(str, r.values())) + "\n" for r in rows))


@pytest.mark.parametrize(
    ("name", "write", "row"),
    [
        ("a.parquet", parquet, {"question": "Which?", "answer": "red", "image": "a.png"}),
        ("my file.jsonl", jsonl, {"prompt": "Which?", "label": "red", "image": "a.png"}),
        ("a.jsonl", jsonl, {"instruction": "Which?", "gt_response": "red", "images": ["a.png"]}),
        ("a.jsonl", jsonl, {"problem": "Which?", "solution": "red", "image": "a.png"}),
        ("a.jsonl", jsonl, {"id": 1, "image": "a.png", "conversations": CHAT}),
        ("a.jsonl", jsonl, {"image": "a.png", "bbox": [0, 0, 2, 2], "sentence": "the dot"}),
        (
            "a.jsonl",
            jsonl,
            {"question": "Which?", "options": ["red", "blue"], "answer": "A", "image": "a.png"},
        ),
        ("a.csv", csv, {"question": "Which?", "answer": "red", "image": "a.png"}),
        ("metadata.csv", csv, {"file_name": "a.png", "question": "Which?", "answer": "red"}),
        ("train-00000-of-00001.parquet", parquet, {"query": "Which?", "answer": "red", "image": "a.png"}),
        ("a.json", lambda path, rows: path.write_text(json.dumps(rows)), {"problem": "?", "answer": "red"}),
    ],
)
def test_the_command_for_a_file_in_another_layout_runs(tmp_path, monkeypatch, capsys, name, write, row):
    folder = tmp_path / "some data"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    write(folder / name, [row, row])
    monkeypatch.chdir(tmp_path)
    spec = folder if name.startswith(("metadata", "train-")) else folder / name
    with pytest.raises(ValueError, match="mmrl data convert --from=") as error:
        read(spec)
    program, *words = shlex.split(re.search(r"mmrl data convert .*", str(error.value))[0])
    assert (program, main(words)) == ("mmrl", 0), capsys.readouterr().err
    out = next(word for word in words if word.startswith("--out=")).removeprefix("--out=")
    assert len(read(out)) == 2
    assert str(folder / name) in words


def test_a_file_is_not_converted_onto_itself(tmp_path, capsys):
    jsonl(tmp_path / "a.jsonl", [{"question": "Which?", "answer": "red"}])
    before = (tmp_path / "a.jsonl").read_bytes()
    words = [f"{tmp_path / 'a.jsonl'}", f"--images={tmp_path}", f"--out={tmp_path / '.' / 'a.jsonl'}"]
    assert main(["data", "convert", "--from=questions", *words]) == 2
    assert "is what is to be converted: write to another file" in capsys.readouterr().err
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_a_mixture_names_its_key():
    with pytest.raises(ValueError, match=r"^config\.data\.train='a,': a part is empty"):
        mixture("a,")
    with pytest.raises(ValueError, match=r"^config\.data\.stages='a@1,b': b has no weight"):
        mixture("a@1,b", "config.data.stages")
