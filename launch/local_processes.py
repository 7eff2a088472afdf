"""Several processes of one run on this machine: begun together, ended together."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LOST = 75  # status of a process of which another is gone (`mmrl.hosts.LOST`): starting all again may help
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # of one that was asked to stop and saved its last step

# Seconds that the others have to say how the end of one looks to them. They would wait for it in vain.
_TO_NOTICE = 10.0
_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Process:
    """One to be started.

    Attributes:
      words: its command.
      environment: all of it.
      log: where its output is appended; None for the terminal.
    """

    words: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None = None


@dataclass(frozen=True)
class Ended:
    """How it ended.

    Attributes:
      status: 0, or why not: of the process that ended first of all, rather than for the end of another.
        Negative is the number of the signal that killed it.
      process: its number.
      said: the end of what it wrote to its log; "" for one that wrote to the terminal.
      asked: the signal that this process was given meanwhile and passed on, if any.
    """

    status: int
    process: int
    said: str
    asked: int | None = None


@dataclass
class _Asked:
    """Signals that came, in their order; the handlers write it, the loop reads it."""

    signals: list[int] = field(default_factory=list)


def run(processes: Sequence[Process], to_notice: float = _TO_NOTICE) -> Ended:
    """Start them and wait until all have ended, of themselves or for one of them.

    SIGTERM and Ctrl-C are passed on to all, once: the run then saves its last step and all end. A second one
    ends them at once.
    """
    starts = [log.stat().st_size if (log := one.log) and log.exists() else 0 for one in processes]
    with _asked() as asked:
        running: list[subprocess.Popen[bytes]] = []
        try:
            for one in processes:
                running.append(_start(one))
            order = _wait(running, asked, to_notice)
        finally:
            for process in running:
                _end(process)
    number, status = _reason(order)
    log = processes[number].log
    said = _since(log, starts[number]) if log and status else ""
    return Ended(status, number, said, asked.signals[0] if asked.signals else None)


@contextmanager
def _asked() -> Iterator[_Asked]:
    asked = _Asked()
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(kind, lambda number, _: asked.signals.append(number)) for kind in kinds]
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _start(process: Process) -> subprocess.Popen[bytes]:
    # Of a session of its own: the terminal's Ctrl-C would reach it beside the one that is passed on, and
    # two mean: at once.
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
    common = {"env": dict(process.environment), "stdin": subprocess.DEVNULL, "start_new_session": True}
    if process.log is None:
        return start(list(process.words), **common)
    process.log.parent.mkdir(parents=True, exist_ok=True)
    with process.log.open("ab") as file:
        return start(list(process.words), stdout=file, stderr=subprocess.STDOUT, **common)


def _wait(running: list[subprocess.Popen[bytes]], asked: _Asked, to_notice: float) -> list[tuple[int, int]]:
    """Numbers and statuses of those that ended of themselves, in the order of their ends."""
    order: list[tuple[int, int]] = []
    passed_on = 0
    failed_at: float | None = None
    while len(order) < len(running):
        for number, process in enumerate(running):
            if process.poll() is not None and number not in dict(order):
                order.append((number, process.returncode))
        for kind in asked.signals[passed_on:]:
            passed_on += 1
            if passed_on > 1:
                still = [number for number in range(len(running)) if number not in dict(order)]
                return [*order, *((number, -signal.SIGKILL) for number in still)]
            for process in running:
                process.send_signal(kind)
        if failed_at is None and any(status not in (0, *STOPPED) for _, status in order):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + to_notice:
            return order
        time.sleep(_BETWEEN_LOOKS)
    return order


def _reason(order: list[tuple[int, int]]) -> tuple[int, int]:
    """The number and status of the process for which all ended."""
    failures = [(number, status) for number, status in order if status not in (0, *STOPPED)]
    own = [(number, status) for number, status in failures if status != LOST]
    stopped = [(number, status) for number, status in order if status]
    return (own or failures or stopped or order)[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all that it started, its own session, if something of that is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _since(log: Path, start: int, lines: int = 20) -> str:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 20_000))
        return "\n".join(file.read().decode(errors="replace").rstrip().splitlines()[-lines:])
