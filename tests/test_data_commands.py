"""``mmrl data`` as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.cli import main
from mmrl.data.sources import read
from mmrl.tasks.shapes_world import write_data, write_model

PAPO = Path(__file__).parents[1] / "experiments" / "papo_qwen2_5_vl_3b.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_data(folder, 0, cold_start=4, train=40, heldout=4)
    write_model(folder / "model", 0)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(4):
        noise = np.random.default_rng(k).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(noise).resize((200, 150), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def test_inspect_with_a_model(world, tmp_path, capsys):
    said = run(capsys, "data", "inspect", world / "train.parquet", f"--model={world / 'model'}")
    assert "Tokens of a prompt" in said
    assert "usable       40 (100.0%)" in said
    said = run(capsys, "data", "inspect", world / "train.parquet", f"--out={tmp_path / 'r.html'}", "--rows=9")
    assert "Tokens are not counted: name a model, by --model or --config." in said
    assert "9 of 40" in said
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    run(capsys, "data", "inspect", world / "train.parquet", f"--out={tmp_path / 'both'}", "--examples=3")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["report.html", "sheet.png"]
    assert Image.open(tmp_path / "both" / "sheet.png").width == 960


def test_inspect_as_a_run_would_see_it(world, capsys):
    words = ["data", "inspect", world / "train.parquet", f"--config={PAPO}"]
    model = f"--config.model.path={world / 'model'}"
    said = run(capsys, *words, model, "--config.data.suffix=", "--config.data.min_pixels=784")
    assert "usable       40 (100.0%)" in said
    small = run(capsys, *words, model, "--config.data.prompt_buckets=(8,)", "--config.data.min_pixels=784")
    assert "over budget  40 (100.0%)" in small
    graded = run(capsys, *words, model, "--config.reward.verifier=number", "--config.data.min_pixels=784")
    assert "Broken rows" in graded
    assert main([str(word) for word in [*words, "--config.model.path=nowhere"]]) == 0
    said = capsys.readouterr()
    assert "config.model.path='nowhere' is no directory: name one with --model=DIR" in said.err
    assert "Tokens are not counted" in said.out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["inspect", "none.parquet"], "none.parquet does not exist"),
        (["inspect", "d.parquet", "--model=nowhere"], "does not exist"),
        (["inspect", "d.parquet", "--rows=0"], "--rows: '0' should be a whole number, 1 or more"),
        (["inspect", "d.parquet", "--config.seed=1"], "name one with --config=FILE"),
        (["inspect", "d.parquet", "--what=1"], "unknown argument '--what=1'; see mmrl data inspect --help"),
        (["shapes", "--out=o", "--config.seed=1"], "unknown argument '--config.seed=1'"),
        (
            ["convert", "--from=llava", "i.json", "--images=photos", "--out=o.jsonl", "--task=detect"],
            "--task says",
        ),
        (
            ["convert", "--from=llava", "i.json", "--images=photos", "--out=o.jsonl", "--verifier=ma"],
            "'ma' is",
        ),
        (["convert", "--from=llava", "i.json", "--images=photos", "--out=o.jsonl"], "i.json does not exist"),
        (["pretext", "--images=photos", "--rows=4", "--out=o.jsonl"], "a .parquet file"),
        (["pretext", "--images=photos", "--rows=0", "--out=o.parquet"], "--rows: '0' should be"),
        (["pretext", "--images=photos", "--rows=4", "--out=o.parquet", "--grid=2"], "--grid=2"),
        (["pretext", "--images=photos", "--rows=4", "--out=o.parquet", "--tasks=maze"], "choose from"),
        (
            ["pretext", "--images=photos", "--rows=4", "--out=o.parquet", "--tasks=caption_error"],
            "--captions",
        ),
        (["pretext", "--images=nowhere", "--rows=4", "--out=o.parquet"], "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line(words, why, world, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    Path("d.parquet").symlink_to(world / "train.parquet")
    assert main(["data", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mmrl: ")
    assert why in said
    assert not list(Path().glob("o*"))


def test_convert(photos, tmp_path, capsys):
    entries = [{"image": f"{k}.png", "conversations": [{"from": "human", "value": "?"}]} for k in range(4)]
    for entry in entries[1:]:
        entry["conversations"].append({"from": "gpt", "value": "2"})
    (tmp_path / "in.json").write_text(json.dumps(entries))
    out = tmp_path / "made" / "o.jsonl"
    words = ["data", "convert", "--from=llava", tmp_path / "in.json", f"--images={photos}", f"--out={out}"]
    assert main([str(word) for word in words]) == 2
    assert "1 of 4 entries cannot be used" in capsys.readouterr().err
    said = run(capsys, *words, "--max-broken=0.5", "--verifier=number")
    assert "3 rows of 4 entries" in said
    assert "broken: in.json:0: its turns are not" in said
    assert f"mmrl data inspect {out}" in said
    source = read(out)
    assert {sample.verifier for sample in source} == {"number"}
    assert "usable     3 (100.0%)" in run(capsys, "data", "inspect", out)


def test_pretext(photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"none")
    entries = [{"file_name": f"{k}.png", "caption": f"{['Two', 'Three'][k % 2]} dogs"} for k in range(4)]
    (tmp_path / "c.json").write_text(json.dumps(entries))
    words = [
        "data",
        "pretext",
        f"--images={photos}",
        "--side=112",
        "--rows=12",
        f"--captions={tmp_path / 'c.json'}",
    ]
    tasks = "--tasks=rotation,jigsaw,patch_order,relative_position,masked_region,caption_error"
    said = run(capsys, *words, tasks, f"--out={tmp_path / 'o.parquet'}")
    assert "12 rows in" in said
    assert "2 caption_error" in said
    run(capsys, *words, tasks, f"--out={tmp_path / 'p.parquet'}")
    assert (tmp_path / "o.parquet").read_bytes() == (tmp_path / "p.parquet").read_bytes()
    assert "usable     12 (100.0%)" in run(capsys, "data", "inspect", tmp_path / "o.parquet")


def test_every_command_explains_itself(capsys):
    for word in ("inspect", "convert", "pretext", "shapes"):
        with pytest.raises(SystemExit) as stopped:
            main(["data", word, "--help"])
        assert stopped.value.code == 0
        assert f"mmrl data {word} " in capsys.readouterr().out
