"""The fault benchmark: what it calls the same, a leak or a loss; and a small form of each part of it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.faults import command, compare, damage, hosts, kill, reference, soak

ROOT = Path(__file__).parents[2]
MIB = 2**20


@pytest.fixture
def start_python(tmp_path):
    """Starts Python with a script, as a run; what is left of it is killed in the end."""
    runs = []

    def start(script: str) -> command.Run:
        log = tmp_path / f"{len(runs)}.log"
        runs.append(command.start([sys.executable, "-u", "-c", script], tmp_path, log, os.environ))
        return runs[-1]

    yield start
    for run in runs:
        command.kill_all(run)


# A process with a child in a session of its own, as workers are.
PARENT = """
import subprocess, sys, time
child = "import sys, time; print('child', flush=True); sys.stdin.buffer.read(1); print('read', flush=True)"
process = subprocess.Popen(
    [sys.executable, "-c", child + "; time.sleep(60)"], stdin=subprocess.PIPE, start_new_session=True
)
time.sleep(1.5)
process.stdin.write(b"x")
process.stdin.flush()
time.sleep(60)
"""


def heard(run: command.Run, word: str) -> bool:
    return command.reached(run, lambda: word in command.tail(run.log), 30)


def test_every_process_of_a_run_is_found_and_killed(start_python):
    run = start_python(PARENT)
    assert heard(run, "child")
    (child,) = command.children(run)
    assert set(command.members(run.mark)) == {run.process.pid, child}
    assert command.gone(run.mark, 0.2) is None
    command.kill_all(run)
    assert command.gone(run.mark, 10) is not None
    assert run.process.returncode == -signal.SIGKILL


def test_the_benchmark_leaves_no_run(start_python):
    with command.none_left():
        run = start_python(PARENT)
        assert heard(run, "child")
    assert command.gone(run.mark, 10) is not None


def test_the_main_process_alone_is_killed(start_python):
    run = start_python(PARENT)
    assert heard(run, "child")
    (child,) = command.children(run)
    command.send(run, signal.SIGKILL, "main")
    assert command.finish(run, 10) == -signal.SIGKILL
    assert command.members(run.mark) == [child]
    os.kill(child, signal.SIGKILL)
    assert command.gone(run.mark, 10) is not None


def test_a_worker_that_gets_work_is_noticed(start_python):
    run = start_python(PARENT)
    assert heard(run, "child")
    assert command.reached(run, kill.at_work(run), 30)
    assert heard(run, "read")


def test_a_run_that_ends_first_has_not_reached_the_moment(start_python):
    run = start_python("pass")
    assert not command.reached(run, kill.elapsed(30), 30)
    assert command.finish(run, 10) == 0


def test_one_that_does_not_end_is_killed(start_python):
    assert command.finish(start_python("import time; time.sleep(60)"), 0.2) is None


def test_a_moment_after_a_sign():
    signs = iter([False, True])
    moment = kill.after(lambda: next(signs), 0.05)
    assert not moment()
    assert not moment()
    time.sleep(0.06)
    assert moment()  # and the sign is not asked for again


def test_a_checkpoint_being_written_is_seen(tmp_path, start_python):
    folder = tmp_path / "checkpoints"
    (folder / f"2.{command.TMP}").mkdir(parents=True)
    run = start_python("import time; time.sleep(60)")
    assert not command.saving(run)
    (folder / f"2.{command.TMP}" / "params").mkdir()
    assert command.saving(run)
    assert kill.phase_of(run) == "checkpoint"


def test_no_step_may_be_lost(tmp_path, start_python):
    run = start_python("pass")
    rows = [{"step": step} for step in range(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert kill.lost(run) == []
    (tmp_path / "checkpoints" / "3").rename(tmp_path / "checkpoints" / "2")
    assert kill.lost(run) == [".: step 3 was made, 2 is saved"]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (np.zeros(2, np.float32), np.zeros(2, np.float32), True),
        (np.zeros(2, np.float32), -np.zeros(2, np.float32), False),
        (np.full(2, np.nan, np.float32), np.full(2, np.nan, np.float32), True),
        (np.zeros(2, np.float32), np.zeros(2, np.int32), False),
        (np.zeros((2, 1), np.float32), np.zeros((1, 2), np.float32), False),
    ],
)
def test_same_bits(left, right, same):
    assert compare.same_bits(left, right) is same


def write_run(folder: Path, weights: np.ndarray, **row: float) -> Path:
    """What a finished run leaves, in small."""
    import orbax.checkpoint as ocp

    for stage in (".", "cold_start"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
        rows = [{"step": 1, "loss/loss": 0.5, "time/step": time.time()}, {"step": 2, **row}]
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    for name in ("responses_before.jsonl", "responses_after.jsonl", "world/train.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    for name in ("world/model/config.json", "cold_start/model/config.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text(name)
    with ocp.StandardCheckpointer() as writer:
        for item in compare.ITEMS:
            writer.save((folder / "checkpoints" / "2" / item).absolute(), {"w": weights})
    return folder


def test_differences_of_runs(tmp_path):
    weights = np.arange(4, dtype=np.float32)
    whole = write_run(tmp_path / "whole", weights, value=1.0)
    assert compare.differences(whole, write_run(tmp_path / "same", weights, value=1.0)) == []
    other = write_run(tmp_path / "other", -weights, value=2.0)
    (other / "responses_after.jsonl").write_text("else")
    (other / "world" / "train.parquet").unlink()
    found = compare.differences(whole, other)
    assert found == [
        "./metrics.jsonl, step 2: value 1.0 and 2.0",
        "cold_start/metrics.jsonl, step 2: value 1.0 and 2.0",
        "checkpoint 2: params['w']",
        "checkpoint 2: optimizer['w']",
        "responses_after.jsonl: differs",
        "world/train.parquet: not in both",
    ]


def test_a_repeated_step_and_a_broken_line_are_differences(tmp_path):
    weights = np.zeros(1, np.float32)
    whole, other = (write_run(tmp_path / name, weights) for name in ("whole", "other"))
    path = other / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2}\n')
    assert compare.differences(whole, other) == ["./metrics.jsonl: steps [1, 2] and [1, 2, 2]"]
    path.write_text(path.read_text() + '{"st')
    assert "Unterminated string" in compare.differences(whole, other)[0]


def test_nothing_is_not_the_same_as_nothing(tmp_path):
    assert compare.differences(tmp_path, tmp_path)


def test_apart_by_more_than_rounding(tmp_path):
    weights = np.ones(1, np.float32)
    one = write_run(tmp_path / "one", weights, value=1.0)
    close = write_run(tmp_path / "close", weights + 1e-3, value=1.000001)
    assert hosts.apart(one, close) == []
    assert hosts.most_apart(one, close) == pytest.approx(1e-3, rel=1e-3)
    far = write_run(tmp_path / "far", weights, value=1.0001)
    assert hosts.apart(one, far) == [f"{s}, step 2: value 1.0 and 1.0001" for s in (".", "cold_start")]


def looks(growth: int = 0, processor: float = 0.3, **more: list[int]) -> list[soak.Look]:
    """Of 100 steps: memory goes up and down, and grows by so many bytes a step."""
    ups = random.Random(0)
    return [
        soak.Look(
            step=step,
            processor=processor * step + (step**2 / 200 if processor > 0.3 else 0),
            memory=1000 * MIB + ups.randrange(50 * MIB) + growth * step,
            workers_memory=20 * MIB,
            processes=2,
            threads=30 + ups.randrange(3),
            files=more.get("files", [8] * 100)[step - 1],
            workers_files=4,
        )
        for step in range(1, 101)
    ]


def test_a_flat_run_has_no_fault():
    assert soak.faults(looks(), []) == []


def test_the_end_of_a_run_hides_no_growth():
    """In its last step a run has closed its files."""
    files = [8 + step // 10 for step in range(99)] + [0]
    assert soak.faults(looks(files=files), [])[0].startswith("open files: 9")


def test_growth_is_a_fault():
    assert soak.faults(looks(growth=2 * MIB), [])[0].startswith("memory, MiB: ")
    files = [8 + step // 10 for step in range(100)]
    assert soak.faults(looks(files=files), [])[0].startswith("open files: 9")
    assert soak.faults(looks(processor=0.4), [])[0].startswith("processor s a step: ")
    assert soak.faults(looks(), [17]) == ["1 processes are left"]


def test_the_run_at_one_moment(tmp_path, start_python):
    run = start_python(PARENT)
    assert heard(run, "child")
    assert soak.look_at(run) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    look = soak.look_at(run)
    assert look is not None
    assert (look.step, look.processes, look.threads) == (1, 2, 1)
    assert look.memory > MIB
    assert look.files >= 3


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("import sys; sys.exit('mmrl: no')", "CRASHES"),
        ("import sys; print('Traceback\\nmmrl: no'); sys.exit(2)", damage.REFUSED),
        ("import sys; print('mmrl: no\\nmore'); sys.exit(2)", "CRASHES"),
        ("raise ValueError", "CRASHES"),
        ("pass", "WRONG"),
    ],
)
def test_outcomes(tmp_path, start_python, script, kind):
    write_run(tmp_path / reference.WHOLE, np.zeros(1, np.float32))
    assert damage.judged(tmp_path, "none", start_python(script)).kind == kind


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("resuming after step 2 of 2", damage.SAME),
        ("step 2 is damaged\nresuming after step 1 of 2", damage.ASIDE),
        ("resuming after step 1 of 2", "OLDER ONE USED WITHOUT A WORD"),
    ],
)
def test_an_older_checkpoint_is_not_used_in_silence(tmp_path, start_python, words, kind):
    whole = write_run(tmp_path / reference.WHOLE, np.zeros(1, np.float32))
    assert damage.judged(tmp_path, whole.name, start_python(f"print({words!r})")).kind == kind


def test_damage_to_files(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8))
    damage.flip(path)
    assert path.read_bytes() == b"\0\0\0\0\x10\0\0\0"
    damage.truncate(path)
    assert path.read_bytes() == bytes(4)


def test_the_clock_jumps():
    env = {**os.environ, "PYTHONPATH": str(damage.CLOCK), "CLOCK_JUMP_S": "1000", "CLOCK_EVERY_S": "0"}
    script = "import time; a = time.time(); import sitecustomize as s; s._BEGIN -= 11; print(time.time() - a)"
    told = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert 1000 <= float(told.stdout) < 1001


def benchmark(name: str, folder: Path, *flags: str) -> str:
    """What a part of it prints; it must find nothing."""
    words = [sys.executable, "-m", f"experiments.faults.{name}", f"--workdir={folder}", *flags]
    # Programs are compiled in haste, by all runs alike.
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.exhaustive
def test_killed_and_started_again(tmp_path):
    """The least that shows it: one run, killed while it writes a checkpoint and while it grades."""
    told = benchmark("kill", tmp_path, "--kills=2", "--aims=checkpoint,reward")
    assert "2 kills" in told
    assert "identical: 0" not in told


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """Shared, so that programs are compiled once."""
    return tmp_path_factory.mktemp("faults")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "kills"), [("KILL", 20), ("TERM", 6), ("INT", 4)])
def test_killed_at_many_moments(scratch, name, kills):
    assert f"{kills} kills" in benchmark("kill", scratch, f"--kills={kills}", f"--signal={name}")


@pytest.mark.exhaustive
def test_damaged(scratch):
    assert "verdict: good" in benchmark("damage", scratch)


@pytest.mark.exhaustive
def test_several_processes(scratch):
    assert "verdict: good" in benchmark("hosts", scratch)


@pytest.mark.exhaustive
def test_three_hundred_steps(scratch):
    assert "verdict: within bounds" in benchmark("soak", scratch)
