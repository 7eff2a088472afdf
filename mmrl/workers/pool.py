"""Functions of a table in killable processes, under a deadline and a memory limit for each call."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from mmrl.workers.message import unpack

START_S = 120.0  # a worker that is not up, or has not loaded a function's libraries, by then is broken
GRACE_S = 1.0  # by how much the parent waits longer than the worker's own timer
CHUNK = 16  # jobs in one message
CLOSE_POLL_S = 0.2  # how often a waiting thread looks whether the pool was closed


@dataclass(frozen=True)
class Answer:
    """What became of one call: the function's value, or why there is none; the other of the two is None."""

    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class _Job:
    function: str
    payload: bytes  # the pickled (function, payload)
    future: Future[Answer]


class WorkerPool:
    """Worker processes that run the functions of a table; a context manager.

    ``workers``: processes. ``table``: "module:NAME", an importable module and the name of its mapping of
    functions; its mapping ``LOADERS``, if there is one, has by the same names what a worker does before its
    first call of a function, outside the deadline. ``deadline_s``: seconds for one call, after which its
    worker is killed and replaced. ``memory_bytes``: address space of a worker. ``noun``: what the functions
    are, in messages. The workers are fresh interpreters: they share no state with the parent and never import
    jax. Leaving the context kills them; should the parent be killed they end by themselves.
    """

    def __init__(
        self,
        workers: int,
        table: str,
        deadline_s: float = 5.0,
        memory_bytes: int = 2 << 30,
        noun: str = "tool",
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers = {workers}: a pool needs at least one")
        if deadline_s <= 0:
            raise ValueError(f"deadline_s = {deadline_s}: give a positive number of seconds")
        self._arguments = [table, str(deadline_s), str(memory_bytes)]
        self._deadline_s = deadline_s
        self._noun = noun
        self._workers = workers
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{noun}-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, function: str, payload: tuple[Any, ...] | Mapping[str, Any]) -> Future[Answer]:
        """Queues one call and returns at once; ``.result()`` of the handle is its ``Answer``.

        ``payload``: the arguments, by position or by name. A function that raises, dies, or runs out of time
        or memory is an answer with an error. Values are JSON and bytes (see ``message``).

        ValueError if the pool is closed. ``.result()`` raises RuntimeError if workers cannot be started.
        """
        if self._closed.is_set():
            raise ValueError(f"the pool of {self._noun}s is closed; submit inside its context")
        job = _Job(function, pickle.dumps((function, payload)), Future())
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Kills the workers and waits for their end. What was not done yet becomes an error."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        _abandon(self._rest())

    def _serve(self) -> None:
        """One thread: owns one worker at a time, gives it chunks of jobs, replaces it when it dies."""
        worker: _Worker | None = None
        jobs: list[_Job] = []
        try:
            while not self._closed.is_set():
                worker = worker or _start(self._arguments, self._noun, self._closed)
                jobs = jobs or self._take()
                if not _work(worker, jobs, self._noun, self._deadline_s, self._closed):
                    _kill(worker)
                    worker = None
        except _CannotStart as error:
            while not self._closed.is_set():
                for job in jobs:
                    job.future.set_exception(RuntimeError(str(error)))
                jobs = self._take()
        finally:
            if worker is not None:
                _kill(worker)
            _abandon(jobs)

    def _take(self) -> list[_Job]:
        """The next chunk, waiting for its first job; empty once the pool is closed."""
        while not self._closed.is_set():
            with suppress(queue.Empty):
                job = self._jobs.get(timeout=CLOSE_POLL_S)
                return [job, *self._rest(min(CHUNK, self._jobs.qsize() // (2 * self._workers)))]
        return []

    def _rest(self, most: int | None = None) -> list[_Job]:
        """Up to ``most`` jobs that already wait in the queue."""
        jobs: list[_Job] = []
        with suppress(queue.Empty):
            while most is None or len(jobs) < most:
                jobs.append(self._jobs.get_nowait())
        return jobs


def _abandon(jobs: list[_Job]) -> None:
    for job in jobs:
        job.future.set_result(Answer(error="the pool was closed before this was done"))


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection


class _CannotStart(Exception):
    """A fresh worker did not report ready: no fault of the job it was to do."""


def _start(arguments: list[str], noun: str, closed: threading.Event) -> _Worker:
    """Starts a worker and waits until it is ready. ``_CannotStart`` if it ends first."""
    ours, theirs = Pipe()
    # Not multiprocessing: that would run the parent's main module, and its import of jax, once a worker.
    process = subprocess.Popen(
        [sys.executable, "-m", "mmrl.workers.worker", str(theirs.fileno()), *arguments],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )
    theirs.close()
    worker = _Worker(process, ours)
    message = _receive(worker, START_S, closed)
    if message is None and not closed.is_set():
        _kill(worker)
        raise _CannotStart(
            f"a {noun} worker could not start ({_how_it_ended(process)}); its error output says why. "
            f"The {noun}s come from {arguments[0]!r}"
        )
    return worker


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.connection.close()


def _work(worker: _Worker, jobs: list[_Job], noun: str, deadline_s: float, closed: threading.Event) -> bool:
    """Runs ``jobs`` from the front, removing what is done. False if the worker must be replaced."""
    try:
        worker.connection.send_bytes(pickle.dumps([job.payload for job in jobs]))
    except (BrokenPipeError, ConnectionResetError):
        return False
    limit_s = deadline_s + GRACE_S
    while jobs:
        message = _receive(worker, limit_s, closed)
        if message is None:
            if closed.is_set():
                return False
            worker.process.kill()
            job = jobs.pop(0)
            why = _why_it_died(worker.process, deadline_s)
            job.future.set_result(Answer(error=f"{noun} {job.function!r} {why}"))
            return False
        if "event" in message:
            limit_s = START_S if message["event"] == "loading" else deadline_s + GRACE_S
            continue
        job = jobs.pop(0)
        job.future.set_result(Answer(message.get("value"), message.get("error")))
    return True


def _receive(worker: _Worker, limit_s: float, closed: threading.Event) -> dict[str, Any] | None:
    """The worker's next message; None if it died, sent none that can be read for ``limit_s`` seconds, or the
    pool was closed.
    """
    end = time.monotonic() + limit_s
    try:
        while not worker.connection.poll(min(CLOSE_POLL_S, max(0.0, end - time.monotonic()))):
            if closed.is_set() or time.monotonic() >= end:
                return None
        return unpack(worker.connection.recv_bytes())
    except (EOFError, ConnectionResetError, ValueError):
        return None


def _why_it_died(process: subprocess.Popen[bytes], deadline_s: float) -> str:
    if process.wait() in (-signal.SIGALRM, -signal.SIGKILL):
        return f"ran past its deadline of {deadline_s} s"
    return f"ended its worker ({_how_it_ended(process)})"


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
