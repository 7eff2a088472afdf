"""``mmrl generate`` and ``mmrl eval``: prompts by the reader of data, outputs that stay, keys, progress."""

import io
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrl.atomic import as_json
from mmrl.cli import main
from mmrl.commands.generate import read_prompts as rows_of_prompts
from mmrl.commands.weights import show_progress
from mmrl.data.sources import read

CASES = Path(__file__).parent / "cases"
PROMPTS = CASES / "08_generate_prompts"


@pytest.fixture(scope="module")
def model(fixtures_dir) -> str:
    return f"--model={fixtures_dir / 'qwen2_5_vl'}"


def read_prompts(path):
    return list(rows_of_prompts(read(path, answered=False)))


@pytest.mark.parametrize(
    ("name", "problems", "images"),
    [
        ("ok", ["<image>How many?"], 1),
        ("bom", ["<image>How many?"], 1),
        ("u2028", ["How\u2028many?", "<image>How many?"], 1),
        ("nel", ["a\x85b", "<image>How many?"], 1),
        ("imgstr", ["<image>How many?"], 1),
        ("imgdict", ["<image>How many?"], 1),
        ("imgdict2", ["<image>How many?"], 1),
    ],
)
def test_prompts_are_read_like_data(name, problems, images):
    rows = read_prompts(PROMPTS / f"{name}.jsonl")
    assert [row.problem for row in rows] == problems
    assert rows[-1].images == (str(PROMPTS / "img" / "plain.png"),)
    assert [row.id for row in rows] == [f"{PROMPTS / name}.jsonl, line {k + 1}" for k in range(len(rows))]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dup", "not JSON: the key 'problem' stands twice"),
        ("emptyprob", "problem is empty"),
        ("imgint", "image 0: neither bytes nor a path"),
        ("latin1", "not UTF-8: invalid continuation byte|not UTF-8: invalid start byte"),
        ("surr", "problem is not valid Unicode"),
    ],
)
def test_a_bad_prompt_names_file_and_line(name, why):
    with pytest.raises(ValueError, match=rf"{name}\.jsonl, line 1: ({why})"):
        read_prompts(PROMPTS / f"{name}.jsonl")


def test_a_bad_prompt_after_blank_lines(tmp_path):
    (tmp_path / "p.jsonl").write_text('\n{"problem": "a"}\n\n{"problem": 7}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 4: problem is a int, not text"):
        read_prompts(tmp_path / "p.jsonl")


def test_prompts_may_be_any_data_set(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (30, 30)).save(out, "PNG")
    rows = [{"problem": "<image>a", "images": [{"bytes": out.getvalue(), "path": None}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (one,) = read_prompts(tmp_path / "p.parquet")
    assert (one.images, one.answer) == ((out.getvalue(),), "")
    assert one.id == f"{tmp_path / 'p.parquet'}, row 0"
    # What is no part of a prompt cannot break it.
    (tmp_path / "q.jsonl").write_text('{"problem": "a", "answer": {"x": 1}, "facts": [1], "turns": 7}\n')
    assert read_prompts(tmp_path / "q.jsonl")[0].problem == "a"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "metadata.csv").write_text("file_name,problem\nx.png,<image>b\n")
    assert read_prompts(folder)[0].images == (str(folder / "x.png"),)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(CASES / "09_generate_out", tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def refused(capsys, *words):
    assert main(list(words)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("mmrl: ")
    return said


def test_earlier_responses_stay_when_a_prompt_is_bad(folder, model, capsys):
    before = (folder / "keep.jsonl").read_bytes()
    said = refused(capsys, "generate", model, "--prompts=miss.jsonl", "--out=keep.jsonl", "--max-tokens=3")
    assert f"{folder / 'miss.jsonl'}, line 2, image 0: cannot read the image" in said
    assert (folder / "keep.jsonl").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["img", "keep.jsonl", "miss.jsonl", "ok.jsonl"]


@pytest.mark.parametrize("make", [None, os.symlink, os.link])
@pytest.mark.parametrize("command", ["generate", "eval"])
def test_what_is_read_is_not_written(folder, model, capsys, command, make):
    (folder / "ok.jsonl").write_text('{"problem": "How many?", "answer": "3"}\n')
    before = (folder / "ok.jsonl").read_bytes()
    if make:
        make(folder / "ok.jsonl", folder / "other.jsonl")
    out = "other.jsonl" if make else "./img/../ok.jsonl"
    flag = "--prompts" if command == "generate" else "--data"
    said = refused(capsys, command, model, f"{flag}=ok.jsonl", f"--out={out}")
    assert said == f"mmrl: --out={Path(out)} is a file that {flag} reads: name another"
    assert (folder / "ok.jsonl").read_bytes() == before


@pytest.mark.parametrize("command", ["generate", "eval"])
@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("img", "--out=img is a folder: name a file"),
        ("ok.jsonl/x.jsonl", "its folder cannot be made"),
        ("/proc/x.jsonl", "/proc cannot be written to"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_computing(
    folder, model, capsys, monkeypatch, command, out, why
):
    (folder / "ok.jsonl").write_text('{"problem": "How many?", "answer": "3"}\n')
    monkeypatch.setattr("mmrl.train.completions.complete", lambda *_, **__: pytest.fail("it computes"))
    monkeypatch.setattr("mmrl.train.evaluate.evaluate", lambda *_, **__: pytest.fail("it computes"))
    flag = "--prompts" if command == "generate" else "--data"
    assert why in refused(capsys, command, model, f"{flag}=ok.jsonl", f"--out={out}")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--seed=1", "--config.seed=2"], "--seed and --config.seed say the same: leave out one of them"),
        (
            ["--temperature=1", "--config.rollout.temperature=1"],
            "--temperature and --config.rollout.temperature say the same",
        ),
        (["--config.model.path=x"], "config.model.path says nothing here: use --model or --workdir"),
        (["--config.data.train=x"], "config.data.train says nothing here: use --data or --prompts"),
        (["--config.rollout.group=4"], "config.rollout.group says nothing here: use --n"),
        (["--config.rollout.max_token=4"], "did you mean config.rollout.max_tokens?"),
        (["--config.rollout.max_tokens=x"], "config.rollout.max_tokens=x should be a whole number"),
    ],
)
def test_keys_that_say_nothing_or_twice(folder, model, capsys, words, why):
    assert why in refused(capsys, "generate", model, "--prompts=ok.jsonl", "--out=o.jsonl", *words)


@pytest.mark.exhaustive
def test_generate_takes_keys_and_shows_progress(folder, model, capsys):
    """The keys of a config do what the options do; each part of many prompts is what it is alone."""
    (folder / "many.jsonl").write_text('{"problem": "How many?"}\n' * 9 + (folder / "ok.jsonl").read_text())
    words = ["generate", model, "--prompts=many.jsonl", "--n=2"]
    keys = [
        f"--config.{key}"
        for key in ("rollout.max_tokens=3", "seed=5", "rollout.top_k=4", "rollout.prompt_slots=1")
    ]
    assert main([*words, "--out=a.jsonl", *keys]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "20 responses to 10 prompts in a.jsonl"
    assert "20 of 20 responses" in said.err
    assert "tokens/s, 0:00 left" in said.err
    assert main([*words, "--out=b.jsonl", "--max-tokens=3", "--seed=5", "--config.rollout.top_k=4"]) == 0
    ours, theirs = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("a.jsonl", "b.jsonl")
    )
    assert [(row["prompt"], row["sample"]) for row in ours] == [(p, n) for p in range(10) for n in range(2)]
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert {len(row["tokens"]) for row in ours} == {3}
    assert main([*words, "--out=b.jsonl", "--max-tokens=3", "--seed=6", "--config.rollout.top_k=4"]) == 0
    other = [json.loads(line)["tokens"] for line in Path("b.jsonl").read_text().splitlines()]
    assert other != [row["tokens"] for row in ours]


@pytest.mark.exhaustive
def test_eval_takes_keys_and_shows_progress(folder, model, capsys):
    rows = '{"problem": "How many?", "answer": "3"}\n' * 2
    (folder / "rows.jsonl").write_text(rows)
    keys = [
        "rollout.max_tokens=3",
        "evaluation.samples=2",
        "evaluation.temperature=0",
        "reward.verifier=exact",
    ]
    words = [f"--config.{key}" for key in keys]
    assert main(["eval", model, "--data=rows.jsonl", "--out=o.jsonl", *words]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["rows"], told["samples"], told["length"]) == (2, 2, 3.0)
    assert "4 of 4 responses" in said.err
    assert len((folder / "o.jsonl").read_text().splitlines()) == 4
    said = refused(capsys, "eval", model, "--data=rows.jsonl", "--config.rollout.temperature=0")
    assert "config.rollout.temperature says nothing here: use --temperature" in said
    said = refused(capsys, "eval", model, "--suite=x.py", "--config.seed=0")
    assert "a suite says by itself how it is measured" in said


def test_progress_counts_and_estimates(capsys, monkeypatch):
    times = iter([0.0, 10.0, 10.5, 20.0])
    monkeypatch.setattr("mmrl.commands.weights.time.monotonic", lambda: next(times))
    with show_progress(9) as heard:
        for tokens in (50, 0, 150):
            heard(tokens)
    assert capsys.readouterr().err == (
        "\r1 of 9 responses, 5.0 tokens/s, 1:20 left\r3 of 9 responses, 10.0 tokens/s, 0:40 left\n"
    )


def test_numbers_that_are_not_finite_are_null():
    odd = {"a": [float("nan"), 1.5], "b": (float("inf"), {"c": -float("inf")}), "d": "NaN"}
    assert json.loads(as_json(odd)) == {"a": [None, 1.5], "b": [None, {"c": None}], "d": "NaN"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed=-1"], "argument --seed: '-1' should be a whole number, 0 to 4294967295"),
        (["--seed=99999999999999999999"], "should be a whole number, 0 to 4294967295"),
        (["--config.seed=4294967296"], "config.seed=4294967296 should be from 0 to 4294967295"),
        (["--batch=0"], "argument --batch: '0' should be a whole number, 1 or more"),
        (["--n=0"], "argument --n: '0' should be a whole number, 1 or more"),
        (["--max-tokens=0"], "argument --max-tokens: '0' should be"),
        (["--step=3"], "--step is of a run: name that by --workdir"),
        (["--out="], "argument --out: it is empty: name a file or a folder"),
        (["--prompts=https://host/rows.jsonl"], "https://host/rows.jsonl: no address can be read"),
        (["--prompts=gs://bucket/rows.jsonl"], "gs://bucket/rows.jsonl: no address can be read"),
        (["--config.train.steps=5"], "config.train.steps says nothing to mmrl generate: leave it out"),
        (["--config.reward.verifier=exact"], "config.reward.verifier says nothing to mmrl generate"),
        (["--config.nothing=1"], "config.nothing is not a key of the config"),
    ],
)
def test_options_that_cannot_be_meant(folder, model, capsys, words, message):
    (folder / "rows.jsonl").write_text('{"problem": "How many?"}\n')
    given = [word.partition("=")[0] for word in words]
    usual = [w for w in ("--prompts=rows.jsonl", "--out=o.jsonl") if w.partition("=")[0] not in given]
    assert message in refused(capsys, "generate", model, *usual, *words)


def test_eval_refuses_no_samples_and_keys_of_training(folder, model, capsys):
    (folder / "rows.jsonl").write_text('{"problem": "How many?", "answer": "3"}\n')
    for word, message in (
        ("--samples=0", "argument --samples: '0' should be a whole number, 1 or more"),
        ("--config.evaluation.samples=0", "config.evaluation.samples=0 should be 1 or more"),
        ("--config.optimizer.b1=0.5", "config.optimizer.b1 says nothing to mmrl eval: leave it out"),
    ):
        assert message in refused(capsys, "eval", model, "--data=rows.jsonl", word)
