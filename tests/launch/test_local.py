"""Several processes on this machine: what they are given, and what becomes of the others when one ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devices import IN_HASTE

from launch import __main__ as main
from launch import local
from launch.local import Shares, cpu_devices, device_shares, keep_running

ROOT = Path(__file__).parents[2]

# In the place of mmrl: does what its first word says, is called like it, and leaves notes in its folder.
STAND_IN = """
import os, signal, subprocess, sys, time
from pathlib import Path

words = dict(word.lstrip("-").split("=") for word in sys.argv[2:])
me, folder = int(words.get("process", 0)), Path(words["workdir"])
attempt = len(list(folder.glob(f"started{me}.*")))
(folder / f"started{me}.{attempt}").write_text(words.get("coordinator", ""))
print(f"process {me} speaks, attempt {attempt}", flush=True)

def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)

def on_signal(number, _):
    with (folder / f"signals{me}").open("a") as file:
        file.write(f"{number}\\n")
    if sys.argv[1] == "saves":
        time.sleep(0.2)  # one that came twice would be noted twice
        sys.exit(128 + number)

for kind in (signal.SIGTERM, signal.SIGINT):
    signal.signal(kind, on_signal)
doing = sys.argv[1]
if doing == "fails" and me == 1:
    print("\\n".join(f"line {n}" for n in range(100)))
    sys.exit("the reason")
if doing == "refuses":
    sys.exit(2)
if doing == "dies_once" and attempt == 0 or doing == "dies_always":
    if me == 1:
        wait_for("started0.0")
        kill_me()
    wait_for("started1.0")
    time.sleep(0.3)
    sys.exit(75)
if doing == "leaves_child" and me == 1:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    (folder / "child").write_text(str(child.pid))
    sys.exit(1)
while doing in ("fails", "saves", "stubborn", "leaves_child"):
    time.sleep(0.02)
"""


def parts(count: int) -> Shares:
    return Shares("CPU", 1, ({},) * count)


@pytest.fixture
def words(tmp_path) -> list[str]:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    return [sys.executable, str(script), "DOING", f"--workdir={tmp_path}"]


def doing(words: list[str], what: str) -> list[str]:
    return [what if word == "DOING" else word for word in words]


def launched(words: list[str], what: str, folder: Path, count: int = 3) -> subprocess.Popen[str]:
    """A process that launches, whose children have all started."""
    program = (
        "import sys; from pathlib import Path; from launch.local import Shares, keep_running; "
        f"sys.exit(keep_running({doing(words, what)!r}, Shares('CPU', 1, ({{}},) * {count}), "
        f"Path({str(folder)!r}), 0))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while len(list(folder.glob("started*.0"))) < count:
        assert launcher.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)  # their handlers are set just after
    return launcher


def test_all_meet_at_one_port_and_speak_where_they_should(words, tmp_path, capfd):
    assert keep_running(doing(words, "fine"), parts(3), tmp_path, restarts=0) == 0
    met = {(tmp_path / f"started{k}.0").read_text() for k in range(3)}
    assert len(met) == 1
    assert re.fullmatch(r"127\.0\.0\.1:\d+", met.pop())
    assert capfd.readouterr().out == "process 0 speaks, attempt 0\n"
    for number in (1, 2):
        said = (tmp_path / "logs" / f"process{number}.log").read_text()
        assert said == f"process {number} speaks, attempt 0\n"


def test_one_process_needs_no_meeting(words, tmp_path):
    assert keep_running(doing(words, "fine"), parts(1), tmp_path, restarts=0) == 0
    assert (tmp_path / "started0.0").read_text() == ""
    assert not (tmp_path / "logs").exists()


def test_an_error_of_one_ends_all_and_its_log_is_shown(words, tmp_path, capfd):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "process1.log").write_text("of a run before\n")
    begun = time.monotonic()
    assert keep_running(doing(words, "fails"), parts(3), tmp_path, restarts=2, to_notice=0.2) == 1
    assert time.monotonic() - begun < 20
    said = capfd.readouterr().err
    assert "process 1 ended with status 1" in said
    assert "the reason" in said
    assert "line 99" in said
    assert "line 50" not in said
    assert "restarts left" not in said  # it would fail again
    log = (tmp_path / "logs" / "process1.log").read_text()
    assert log.startswith("of a run before\nprocess 1 speaks")
    assert list(tmp_path.glob("started*.1")) == []


def test_what_a_process_started_ends_with_it(words, tmp_path):
    assert keep_running(doing(words, "leaves_child"), parts(2), tmp_path, restarts=0, to_notice=0.1) == 1
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    for _ in range(200):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it lives on")


def test_a_killed_process_is_why_all_start_again(words, tmp_path, capfd):
    assert keep_running(doing(words, "dies_once"), parts(2), tmp_path, restarts=2) == 0
    said = capfd.readouterr().err
    assert "process 1 was killed by SIGKILL; starting all again, 2 of 2 restarts left" in said
    first, second = ((tmp_path / f"started0.{attempt}").read_text() for attempt in (0, 1))
    assert first
    assert second
    assert not (tmp_path / "started0.2").exists()


def test_a_run_that_is_lost_again_and_again_ends_with_75(words, tmp_path, capfd):
    assert keep_running(doing(words, "dies_always"), parts(2), tmp_path, restarts=1) == 75
    assert "the same command goes on from the last checkpoint" in capfd.readouterr().err
    assert (tmp_path / "started0.1").exists()
    assert not (tmp_path / "started0.2").exists()


def test_a_refusal_of_all_is_not_tried_again(words, tmp_path):
    assert keep_running(doing(words, "refuses"), parts(2), tmp_path, restarts=3) == 2
    assert not (tmp_path / "started0.1").exists()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_once_and_all_may_save(words, tmp_path, kind):
    launcher = launched(words, "saves", tmp_path)
    launcher.send_signal(kind)
    _, said = launcher.communicate(timeout=30)
    assert launcher.returncode == 128 + kind
    assert f"stopped by {kind.name}; the same command goes on from here" in said
    for number in range(3):
        assert (tmp_path / f"signals{number}").read_text() == f"{int(kind)}\n"


def test_a_second_signal_ends_those_that_do_not_heed_the_first(words, tmp_path):
    launcher = launched(words, "stubborn", tmp_path, count=2)
    launcher.send_signal(signal.SIGTERM)
    while not (tmp_path / "signals1").exists():
        time.sleep(0.02)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=30)
    assert launcher.returncode == 143
    assert "goes on from its last checkpoint" in said


def test_a_mesh_decides_how_many_virtual_devices():
    assert cpu_devices(4, {"replica": 1, "data": 1, "fsdp": -1, "tensor": 1}) == 1
    assert cpu_devices(2, {"replica": 1, "data": 1, "fsdp": -1, "tensor": 2}) == 2
    assert cpu_devices(2, {"replica": 1, "data": 2, "fsdp": 4, "tensor": 1}) == 4
    assert cpu_devices(2, {"replica": 1, "data": 1, "fsdp": -1, "expert": 4, "tensor": 2}) == 8
    assert cpu_devices(4, {"replica": 2, "data": 3, "fsdp": -1, "tensor": 1}) == 3
    for processes, mesh in ((4, {"data": 2, "fsdp": 3}), (2, {"data": 1, "fsdp": 1, "tensor": 2})):
        with pytest.raises(ValueError, match=r"config\.mesh"):
            cpu_devices(processes, mesh)


def test_flags_of_the_caller_are_kept_but_for_the_count():
    environment = {"XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2"}
    environment["JAX_PLATFORMS"] = "cpu"
    given = device_shares(2, {"fsdp": -1}, environment)
    assert (given.kind, given.each) == ("CPU", 1)
    flags = "--xla_a=1 --xla_b=2 --xla_force_host_platform_device_count=1"
    assert given.variables == ({"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},) * 2


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: name)
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$*" = "--query-gpu=index --format=csv,noheader" ] && seq 0 7\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machine = {"PATH": os.environ["PATH"]}
    given = device_shares(4, {"fsdp": -1}, machine)
    assert (given.kind, given.each) == ("GPU", 2)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given.variables] == ["0,1", "2,3", "4,5", "6,7"]
    few = device_shares(2, {"fsdp": -1}, {**machine, "CUDA_VISIBLE_DEVICES": "5, 3"})
    assert [one["CUDA_VISIBLE_DEVICES"] for one in few.variables] == ["5", "3"]
    with pytest.raises(ValueError, match=r"8 GPUs .* take 1 or 2 or 4 or 8, or the CPU"):
        device_shares(3, {"fsdp": -1}, machine)
    assert device_shares(3, {"fsdp": -1}, {**machine, "JAX_PLATFORMS": "cpu"}).kind == "CPU"


def test_a_dry_run_prints_the_commands_and_makes_nothing(tmp_path, capsys):
    words = ["local", "--processes=2", f"--config={ROOT}/experiments/quickstart.py:smoke", "--dry-run"]
    words += [f"--workdir={tmp_path / 'a run'}", "--config.train.steps=2"]
    assert main.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "-m mmrl.cli train" in lines[0]
    assert "--config.train.steps=2 --coordinator=127.0.0.1:" in lines[0]
    assert lines[0].endswith("--processes=2 --process=0 &")
    assert lines[1].endswith(f">> '{tmp_path}/a run/logs/process1.log' 2>&1 &")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--processes=0", "--processes=0: at least one"),
        ("--restarts=-1", "--restarts=-1: 0 or more"),
        ("--config.train.stepz=3", "did you mean config.train.steps"),
        ("--config.mesh.fsdp=3", "config.mesh"),
        ("--proceses=3", "unknown argument '--proceses=3'"),
    ],
)
def test_mistakes_are_one_line(word, message, tmp_path, capsys):
    words = ["local", f"--config={ROOT}/experiments/quickstart.py", f"--workdir={tmp_path / 'run'}", word]
    assert main.main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def smoke(processes: int, workdir: Path) -> str:
    words = [sys.executable, "-m", "launch", "local", f"--processes={processes}", f"--workdir={workdir}"]
    words += ["--config=experiments/quickstart.py:smoke"]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=dict(os.environ) | IN_HASTE,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.exhaustive
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_run_the_smoke_form_of_the_quickstart(tmp_path, processes):
    """In CI tests/train/test_processes.py runs two that are started so."""
    assert "held out" in smoke(processes, tmp_path)
    assert (tmp_path / "logs" / f"process{processes - 1}.log").is_file()
