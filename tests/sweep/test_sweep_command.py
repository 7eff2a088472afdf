"""``mmrl sweep`` as it is called."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl import cli
from mmrl.sweep import open_sweep
from mmrl.sweep.definition import plan_runs

FILE = """
from mmrl.sweep import Sweep, param

def get_sweep(arg=""):
    return Sweep({experiment!r}, param("algorithm.perception_kl", 0.1, 0.2), (0, 1), "perception_kl=0.1")
"""


@pytest.fixture
def file(quickstart, tmp_path):
    path = tmp_path / "grid.py"
    path.write_text(FILE.format(experiment=quickstart))
    return path


def test_a_sweep_with_a_launcher_from_nothing_to_its_table(file, tmp_path, standin, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = "perception_kl=0.2/seed1"
    members = plan_runs(open_sweep(str(file)), Path("runs/grid"))
    launcher = shlex.join(standin(members, fails=[bad]))
    command = ["sweep", str(file), f"--launcher={launcher}", "--at-once=2"]
    with pytest.raises(SystemExit) as left:
        cli.main([*command, "--arm=perception_kl=0.2"])
    assert left.value.code == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "4 runs, 2 to be run, 2 at once"
    assert re.search(r"^sweep 1/2 done, 0 running, 1 failed  \[\d:\d\d<", out, re.MULTILINE)
    assert f"failed    {bad}: out of memory [31m<b>\n" in err
    table = (tmp_path / "runs" / "grid" / "table.md").read_text()
    assert table in out
    assert "| `perception_kl=0.1` | 0 of 2 | - |" in table
    assert cli.main([*command, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["new", "perception_kl=0.1/seed0"],
        ["finished", "perception_kl=0.2/seed0"],
        ["new", "perception_kl=0.1/seed1"],
        ["begun", bad],
    ]
    assert shlex.split(lines[0])[2:] == [*shlex.split(launcher), *members[0].words]
    standin(members, heights={"perception_kl=0.2/seed1": [0.0, 0.5]})
    assert cli.main(command) == 0
    assert "| `perception_kl=0.2` | 2 of 2 | 0.750" in capsys.readouterr().out
    before = sorted(str(path) for path in (tmp_path / "runs").rglob("*"))
    assert cli.main(["sweep", str(file), "--table"]) == 0
    assert sorted(str(path) for path in (tmp_path / "runs").rglob("*")) == before
    assert (tmp_path / "runs" / "grid" / "table.md").read_text() in capsys.readouterr().out


def test_what_is_asked_wrongly_is_told_and_nothing_is_begun(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["--at-once=0"], "argument --at-once: '0' should be a whole number, 1 or more"),
        (["--launcher=nosuchprogram run"], "there is no program 'nosuchprogram'"),
        (["--launcher='"], "No closing quotation"),
        (["--launcher="], "--launcher is empty"),
        (["--workdir=gs://bucket/sweep"], "name a folder of this machine"),
        (["--arm=perception_kl=0.3"], "did you mean 'perception_kl=0.2'?"),
        (["--config.algorithm.perception_kl=3"], "is what the sweep varies"),
        (["--config.trian.steps=3"], "did you mean config.train.steps?"),
        (["--lauuncher=x"], "unknown argument '--lauuncher=x'"),
    ):
        assert cli.main(["sweep", str(file), *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.exhaustive
def test_the_devices_are_left_to_the_runs(file, tmp_path):
    """A TPU belongs to one process: that of the sweep must not take it. Ctrl-C is passed on, and told."""
    code = """
import os, signal, sys, threading, time
from mmrl import cli

def interrupt():
    while not os.path.exists("runs/grid/perception_kl=0.1/seed0/log.txt"):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    cli.main(["sweep", sys.argv[1], "--launcher=sh sleep"])
finally:
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized()
"""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "sleep").write_text("#!/bin/sh\nexec sleep 60\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stderr.endswith("mmrl: stopped by SIGINT; the same command goes on from here\n")
    assert json.loads((tmp_path / "runs" / "grid" / "sweep.json").read_text())["seeds"] == [0, 1]
    assert "| `perception_kl=0.1` | 0 of 2 | - |" in done.stdout
