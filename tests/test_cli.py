"""The commands as a user calls them, and what they say when something is wrong with the input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mmrl.cli import main
from mmrl.train.metrics import CompileCounter

PAPO = Path(__file__).parents[1] / "experiments" / "papo_qwen2_5_vl_3b.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The shapes world, as ``mmrl data shapes`` writes it."""
    out = tmp_path_factory.mktemp("world") / "shapes"
    sizes = ["--cold-start=8", "--train=16", "--heldout=8"]
    assert main(["data", "shapes", f"--out={out}", *sizes, f"--sheet={out.parent / 'sheet.png'}"]) == 0
    assert Image.open(out.parent / "sheet.png").width > 100
    return out


def prompts_file(folder: Path) -> Path:
    Image.new("RGB", (56, 56), (200, 30, 30)).save(folder / "red.png")
    rows = [
        {"problem": "<image>How many red shapes?", "images": ["red.png"]},
        {"problem": "How many?"},
        {"problem": "<image><image>More red or blue?", "images": ["red.png", "red.png"]},
    ]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generated(world, folder, *options):
    out = folder / "out.jsonl"
    arguments = ["--model", str(world / "model"), "--prompts", str(prompts_file(folder)), "--out", str(out)]
    assert main(["generate", *arguments, "--max-tokens=6", *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.exhaustive
def test_generate(world, tmp_path):
    rows = generated(world, tmp_path, "--n=2", "--seed=3", "--temperature=0.9", "--top-p=0.8")
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, n) for p in range(3) for n in range(2)]
    for row in rows:
        assert len(row["tokens"]) == len(row["logprobs"]) <= 6
        assert row["stop"] in ("stop", "length")
        assert max(row["logprobs"]) <= 0
    assert rows == generated(world, tmp_path, "--n=2", "--seed=3", "--temperature=0.9", "--top-p=0.8")
    assert rows != generated(world, tmp_path, "--n=2", "--seed=4", "--temperature=0.9", "--top-p=0.8")
    greedy = generated(world, tmp_path, "--n=2", "--temperature=0")
    assert greedy[0]["tokens"] == greedy[1]["tokens"]


def test_eval(world, tmp_path, capsys):
    out = tmp_path / "responses.jsonl"
    data = world / "heldout.parquet"
    options = ["--max-tokens=6", "--samples=2", "--batch=3", f"--out={out}"]
    assert main(["eval", f"--model={world / 'model'}", f"--data={data}", *options]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["rows"] == 8
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 16
    assert values["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in rows]))
    assert values["format_error"] + values["perception_error"] + values["reasoning_error"] + values[
        "accuracy"
    ] == pytest.approx(1)


def test_unknown_arguments(capsys):
    assert main(["export", "--workdir=x", "--out=y", "--config.seed=1"]) == 2
    assert "unknown argument '--config.seed=1'" in capsys.readouterr().err


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def image_row(path: str = "red.png", problem: str = "<image>How many red shapes?") -> dict:
    return {"problem": problem, "answer": "1", "images": [path]}


def model_copy(world: Path, folder: Path) -> Path:
    return Path(shutil.copytree(world / "model", folder / "model"))


def without_model(world, folder):
    return f"--config.model.path={folder / 'nowhere'}", "nowhere does not exist"


def without_weight(world, folder):
    model = model_copy(world, folder)
    weights = load_file(model / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, model / "model.safetensors")
    return f"--config.model.path={model}", "1 weights are missing, the first is model.norm.weight"


def truncated(world, folder):
    model = model_copy(world, folder)
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return f"--config.model.path={model}", "model.safetensors: damaged or truncated safetensors file"


def vocabulary_mismatch(world, folder):
    model = model_copy(world, folder)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    return f"--config.model.path={model}", "vocabulary mismatch"


def unreadable_image(world, folder):
    (folder / "red.png").write_bytes(b"not a picture")
    return f"--config.data.train={write_rows(folder / 'd.jsonl', [image_row()])}", "d.jsonl:0: image 0"


def missing_image(world, folder):
    path = write_rows(folder / "d.jsonl", [image_row("gone.png")])
    return f"--config.data.train={path}", "gone.png"


def image_count(world, folder):
    Image.new("RGB", (56, 56)).save(folder / "red.png")
    rows = [image_row(problem="<image><image>Two?")]
    return f"--config.data.train={write_rows(folder / 'd.jsonl', rows)}", "1 images but 2 placeholders"


def missing_column(world, folder):
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), folder / "d.parquet")
    return f"--config.data.train={folder / 'd.parquet'}", "no column 'problem'"


def empty_data(world, folder):
    return f"--config.data.train={write_rows(folder / 'd.jsonl', [])}", "d.jsonl"


def no_data(world, folder):
    return f"--config.data.train={folder / 'd.jsonl'}", "d.jsonl does not exist"


def data_unnamed(world, folder):
    return "--config.data.train=", "config.data.train is empty: name a data set"


def over_budget(world, folder):
    rows = [{"problem": "How many? " * 200, "answer": "1"}]
    options = f"--config.data.train={write_rows(folder / 'd.jsonl', rows)}"
    return options, "all 1 prompts looked at are over budget"


def group_of_one(world, folder):
    return "--config.rollout.group=1", "a group of one has no advantage; use 2 or more"


def unknown_key(world, folder):
    return (
        "--config.rollout.gruop=4",
        "config.rollout.gruop is not a key of the config; did you mean config.rollout.group",
    )


def impossible_sampling(world, folder):
    return "--config.rollout.top_p=0.0", "rollout.top_p=0.0 is out of range"


def unknown_corruption(world, folder):
    return "--config.corruption.method=blurr", "config.corruption.method='blurr' is unknown"


@pytest.mark.parametrize(
    "broken",
    [
        without_model,
        without_weight,
        truncated,
        vocabulary_mismatch,
        unreadable_image,
        missing_image,
        image_count,
        missing_column,
        empty_data,
        no_data,
        data_unnamed,
        over_budget,
        group_of_one,
        unknown_key,
        impossible_sampling,
        unknown_corruption,
    ],
    ids=lambda broken: broken.__name__,
)
def test_bad_input_is_one_clear_error_before_any_compute(broken, world, tmp_path, capsys):
    override, message = broken(world, tmp_path)
    arguments = [
        "train",
        f"--config={PAPO}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.path={world / 'model'}",
        f"--config.data.train={world / 'train.parquet'}",
        "--config.data.overlong=drop",
        "--config.data.prompt_buckets=(256,)",
        "--config.data.min_pixels=3136",
        override,
    ]
    with CompileCounter() as compiles:
        assert main(arguments) == 2
    said = capsys.readouterr().err
    assert sum(line.startswith("mmrl: ") for line in said.splitlines()) == 1
    assert message in said[said.index("mmrl: ") :]
    assert compiles.count == 0


def test_no_run(tmp_path, capsys):
    assert main(["export", f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_bad_prompts(world, tmp_path, capsys):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"problem": "a"}\n{"prompt": "b"}\n')
    arguments = [f"--model={world / 'model'}", f"--prompts={path}", f"--out={tmp_path / 'out'}"]
    assert main(["generate", *arguments]) == 2
    assert "line 2" in capsys.readouterr().err
