"""Every command that mmrl prints is one that mmrl takes, with folders whose names need quotes."""

import contextlib
import json
import shlex
from pathlib import Path

import pytest

from launch.__main__ import parse as launcher
from mmrl import cli
from mmrl.commands.train import after_training
from mmrl.config import algorithm, resolve
from mmrl.experiment import load
from mmrl.tasks.catalogue import describe, read_registry

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


def commands(text: str) -> list[list[str]]:
    """The words of each mmrl command in what was printed."""
    lines = [line[line.index("mmrl ") :] for line in text.splitlines() if "mmrl " in line]
    return [shlex.split(line)[1:] for line in lines]


def taken(words: list[str]):
    """What the command line makes of the words, and the config where they name one."""
    options, rest = cli._parser().parse_known_args(words)
    cli._check_words(options.command, rest)
    return options, resolve(load(options.config, rest)) if getattr(options, "config", None) else None


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_after_training(path):
    workdir = Path("runs/run ü with 'space'")
    overrides = ["--config.data.suffix= a; b", "--config.episode.tools=zoom", "--config.train.steps=7"]
    name = load(f"{path}:smoke").algorithm.name
    text = after_training(f"{path}:smoke", overrides, workdir, name)
    report, train, export = map(taken, commands(text))
    assert (report[0].runs, report[0].out) == ([workdir], Path("report.html"))
    assert (export[0].workdir, export[0].out) == (workdir, Path("policy"))
    options, config = train
    assert config.algorithm["name"] == options.workdir.name == ("papo_g" if name == "vppo" else "vppo")
    assert (config.data.suffix, config.episode.tools, config.train.steps) == (" a; b", ("zoom",), 7)
    algorithm(config)


def test_hyper_parameters_of_the_users_own_that_another_method_lacks_are_left_out():
    papo = next(path for path in EXPERIMENTS if path.stem == "papo_qwen2_5_vl_3b")
    overrides = [
        "--config.algorithm.name=papo_g",
        "--config.algorithm.perception_kl=0.5",
        "--config.algorithm.reference_kl=0.5",
    ]
    _, words, _ = commands(after_training(f"{papo}:smoke", overrides, Path("runs/a"), "papo_g"))
    _, config = taken(words)
    assert config.algorithm["perception_kl"] is None
    assert config.algorithm["reference_kl"] == 0.5
    assert config.algorithm["name"] == "vppo"


def test_another_folder_than_this_one(tmp_path):
    (tmp_path / "vppo").mkdir()
    text = after_training(f"{EXPERIMENTS[0]}:smoke", [], tmp_path / "vppo", "grpo")
    assert taken(commands(text)[1])[0].workdir == tmp_path / "vppo-vppo"


def test_after_converting(tmp_path, capsys):
    rows = [{"question": "Which?", "A": "one", "B": "two", "answer": "A"}]
    (tmp_path / "in put.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data", "convert", "--from=choice", "in put.jsonl", "--images=.", "--out=-rows $1.parquet"]
    with contextlib.chdir(tmp_path):
        assert cli.main(words) == 0
        (words,) = commands(capsys.readouterr().out)
        assert taken(words)[0].data == "./-rows $1.parquet"
        assert cli.main([*words, "--out=page.html"]) == 0


@pytest.mark.parametrize("name", read_registry())
def test_of_a_public_data_set(name):
    for words in commands(describe(name, read_registry()[name])):
        assert taken(words)[0].command.run is not None


def test_of_sweeps_and_launchers(tmp_path, capsys):
    sweep = ROOT / "experiments" / "sweeps" / "papo_coefficient.py"
    workdir = tmp_path / "a sweep"
    with contextlib.chdir(ROOT):
        assert cli.main(["sweep", f"{sweep}:smoke", f"--workdir={workdir}", "--dry-run"]) == 0
        printed = commands(capsys.readouterr().out)
        assert len(printed) > 1
        for words in printed:
            assert taken(words)[0].workdir.parent.parent == workdir
    options, rest = launcher(
        ["local", "--config=x.py", f"--workdir={workdir}", "--dry-run", "--config.seed=1"]
    )
    assert (options.workdir, rest) == (str(workdir), ["--config.seed=1"])
