"""A training run as a child process: started as a person starts it, watched and ended from outside."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The quickstart in seconds. More than an epoch of 8 batches, so that its border is crossed as well.
CONFIG = "experiments/quickstart.py:smoke"
FLAGS = ("--config.train.steps=10", "--config.train.evaluate_every=5", "--config.train.checkpoint_every=2")
POLL_S = 0.002
MARK = "MMRL_FAULTS_RUN"  # variable of the environment that all processes of a run inherit
TMP = "orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written


@dataclass(frozen=True)
class Run:
    """A process that trains in ``workdir``, the leader of a process group, and what it has started."""

    process: subprocess.Popen[bytes]
    workdir: Path
    log: Path  # what it says
    mark: str  # value of `MARK`
    leftovers: frozenset[tuple[Path, int]]  # checkpoints that an earlier run has not finished


def environment(cache: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a run: on the CPU, with programs compiled once for all runs and kept in ``cache``."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        **(more or {}),
    }


def command(workdir: Path, flags: Sequence[str] = FLAGS) -> list[str]:
    """The command line of a run; the same again goes on."""
    return [sys.executable, "-m", "mmrl.cli", "train", f"--config={CONFIG}", f"--workdir={workdir}", *flags]


def start(words: Sequence[str], workdir: Path, log: Path, env: Mapping[str, str], **options) -> Run:
    """Start it in a group of its own; ``options`` are those of `subprocess.Popen`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    leftovers, mark = frozenset(_unfinished(workdir)), f"{os.getpid()}-{uuid.uuid4().hex}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**env, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    return Run(process, workdir, log, mark, leftovers)


def finish(run: Run, timeout_s: float) -> int | None:
    """Its exit status; None if it had to be killed because it did not end in time."""
    try:
        return run.process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        kill_all(run)
        return None


def kill_all(run: Run) -> None:
    """SIGKILL to the process and all it has started."""
    send(run, signal.SIGKILL, "all")
    run.process.wait()


@contextmanager
def none_left() -> Iterator[None]:
    """On leaving, however that comes, all runs that this process has started are killed."""
    try:
        yield
    finally:
        for pid in members(f"{os.getpid()}-"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def send(run: Run, number: signal.Signals, to: str) -> None:
    """A signal to "all" processes of the run, to the "group" that a terminal knows, or to the "main" one.

    None if the run has ended.
    """
    if run.process.poll() is not None:
        return
    if to == "group":
        os.killpg(run.process.pid, number)
        return
    for pid in members(run.mark) if to == "all" else [run.process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def reached(run: Run, moment: Callable[[], bool], timeout_s: float) -> bool:
    """Waits for the moment; False if the run ended before, or the time was over."""
    end = time.monotonic() + timeout_s
    while run.process.poll() is None and time.monotonic() < end:
        if moment():
            return True
        time.sleep(POLL_S)
    return False


def members(mark: str) -> list[int]:
    """Processes that live and inherited a mark that begins so, workers in sessions of their own included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            # Empty once the process has ended and waits to be collected.
            content = path.read_bytes()
        except OSError:
            continue
        if any(one.startswith(f"{MARK}={mark}".encode()) for one in content.split(b"\0")):
            found.append(int(path.parent.name))
    return found


def gone(mark: str, timeout_s: float) -> float | None:
    """Seconds until no process with the mark is left; None if some are after ``timeout_s``."""
    begin = time.monotonic()
    while members(mark):
        if time.monotonic() - begin > timeout_s:
            return None
        time.sleep(0.05)
    return time.monotonic() - begin


def children(run: Run) -> list[int]:
    """Processes that the run has started, from any of its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{run.process.pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:  # the thread has ended
            continue
    return found


def characters_read(pid: int) -> int:
    """The bytes that a process has read so far, from files and pipes; 0 if it has ended."""
    try:
        first = Path(f"/proc/{pid}/io").read_text().splitlines()[0]
    except OSError:
        return 0
    return int(first.split()[1])


def saving(run: Run) -> bool:
    """True while a checkpoint of any stage is being written."""
    return any(one not in run.leftovers for one in _unfinished(run.workdir))


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.is_file() else ""


def _unfinished(workdir: Path) -> list[tuple[Path, int]]:
    """Each with the time it was last changed at: one that is begun anew has the name of the one before."""
    found = []
    for folder in ("", "cold_start"):
        for path in (workdir / folder).glob(f"checkpoints/*{TMP}*"):
            try:
                found.append((path, path.stat().st_mtime_ns))
            except OSError:  # finished meanwhile
                continue
    return found
