"""Several real processes as one run: what they compute, and what becomes of the others when one is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devices import IN_HASTE
from runs import assert_same_run

from launch import local
from launch.local import device_shares
from mmrl.hosts import LOST
from mmrl.run_folder import read_metrics

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "quickstart.py"


def start(processes: int, workdir: Path) -> list[subprocess.Popen[str]]:
    """Processes as ``python -m launch local`` starts them, but that all of them are heard here."""
    command = [sys.executable, "-m", "mmrl.cli", "train", f"--config={EXPERIMENT}:smoke"]
    command += [f"--workdir={workdir}", "--config.train.checkpoint_every=1"]
    env = dict(os.environ)
    if processes > 1:  # each compiles for itself: let that be in haste
        env |= IN_HASTE
        parts = device_shares(processes, {"fsdp": -1}, env)
        started = [(one.words, one.environment) for one in local.processes(command, parts, workdir, env)]
    else:
        started = [(command, env)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(words, env=variables, **pipes) for words, variables in started]


def test_processes_that_differ_are_refused(tmp_path):
    """Both end at once, each with the same one line, and no folder is made."""
    command = [sys.executable, "-m", "mmrl.cli", "train", f"--config={EXPERIMENT}:smoke"]
    command += [f"--workdir={tmp_path / 'run'}"]
    parts = device_shares(2, {"fsdp": -1}, dict(os.environ))
    started = local.processes(command, parts, tmp_path, dict(os.environ))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [
        subprocess.Popen([*one.words, f"--config.seed={k}"], env=one.environment, **pipes)
        for k, one in enumerate(started)
    ]
    for process in running:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 2, said
        (line,) = [one for one in said.splitlines() if one.startswith("mmrl: the processes of this run")]
        assert "not alike: config.seed is 0 on process 0 and 1 on process 1. Start" in line
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def finish(running: list[subprocess.Popen[str]]) -> list[str]:
    said = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(said)[-4000:]
    return said


@pytest.mark.exhaustive
@pytest.mark.parametrize("after", [1, 2])
def test_two_processes_make_the_same_run_and_end_together(smoke_run, tmp_path, after):
    """One of the two is killed in the middle; ``after`` processes then end the run that one would make."""
    running = start(2, tmp_path)
    while len(read_metrics(tmp_path)) < 4:  # the second checkpoint is begun: the first is complete
        time.sleep(0.02)
        assert all(process.poll() is None for process in running)
    running[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said, _ = running[0].communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert running[0].returncode == LOST
    assert "another process of the run has" in said
    assert running[1].communicate() is not None
    assert len(read_metrics(tmp_path)) < 5
    said, *quiet = finish(start(after, tmp_path))
    assert "resuming after step" in said
    assert not any("resuming" in text for text in quiet)
    assert_same_run(smoke_run, tmp_path)


@pytest.mark.exhaustive
def test_the_first_process_is_lost(tmp_path):
    running = start(2, tmp_path)
    while len(read_metrics(tmp_path)) < 2:
        time.sleep(0.02)
    running[0].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said, _ = running[1].communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert running[1].returncode not in (0, None)
    assert said
    os.waitpid(running[0].pid, 0)


@pytest.mark.exhaustive
def test_four_processes_make_the_same_run(smoke_run, tmp_path):
    finish(start(4, tmp_path))
    assert_same_run(smoke_run, tmp_path)
