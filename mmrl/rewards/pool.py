"""Grading in killable processes, under a deadline and a memory limit for each sample."""

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from mmrl.sample import Sample

TABLE = "mmrl.rewards.verifier"
START_S = 120.0  # a worker that is not up, or has not loaded a verifier's libraries, by then is broken
GRACE_S = 1.0  # by how much the parent waits longer than the worker's own timer
CHUNK = 16  # samples in one message
CLOSE_POLL_S = 0.2  # how often a waiting thread looks whether the pool was closed


@dataclass(frozen=True)
class Graded:
    """What became of one response: its reward components, or why there are none.

    ``valid=False`` means that nobody knows the reward (the verifier raised, or ran out of time or memory).
    The row must be left out of statistics and of the loss; it is not a reward of 0.
    """

    components: dict[str, float]
    valid: bool = True
    error: str | None = None


@dataclass
class _Job:
    sample: Sample
    payload: bytes  # the pickled (sample, response)
    future: Future[Graded]


class RewardPool:
    """Worker processes that grade responses; a context manager.

    ``workers``: processes. ``deadline_s``: seconds for one sample, after which its worker is killed and
    replaced. ``table``: an importable module with ``VERIFIERS`` and optionally ``LOADERS``, as in
    ``mmrl.rewards.verifier``. ``memory_bytes``: address space of a worker. The workers are fresh
    interpreters: they share no state with the parent and never import jax. Leaving the context kills them;
    should the parent be killed they end by themselves.
    """

    def __init__(
        self,
        workers: int,
        deadline_s: float = 5.0,
        table: str = TABLE,
        memory_bytes: int = 2 << 30,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers = {workers}: a pool needs at least one")
        if deadline_s <= 0:
            raise ValueError(f"deadline_s = {deadline_s}: give a positive number of seconds")
        self._arguments = [table, str(deadline_s), str(memory_bytes)]
        self._deadline_s = deadline_s
        self._workers = workers
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, name=f"reward-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, sample: Sample, response: str) -> Future[Graded]:
        """Queues one response and returns at once; ``.result()`` of the handle is its ``Graded``.

        Verifiers see the sample without its images; what they need of these belongs into ``facts``.
        ValueError if the pool is closed. ``.result()`` raises RuntimeError if workers cannot be started.
        """
        if self._closed.is_set():
            raise ValueError("the reward pool is closed; grade inside its context")
        sample = replace(sample, images=())  # megabytes that no verifier reads
        job = _Job(sample, pickle.dumps((sample, response)), Future())
        self._jobs.put(job)
        return job.future

    def grade(self, requests: list[tuple[Sample, str]]) -> list[Graded]:
        """Grades all ``requests`` and waits; results in the order of the requests."""
        handles = [self.submit(sample, response) for sample, response in requests]
        return [handle.result() for handle in handles]

    def close(self) -> None:
        """Kills the workers and waits for their end. What was not graded yet becomes invalid."""
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
                worker = worker or _start(self._arguments, self._closed)
                jobs = jobs or self._take()
                if not _work(worker, jobs, self._deadline_s, self._closed):
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
        job.future.set_result(Graded({}, False, "the reward pool was closed before this was graded"))


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection


class _CannotStart(Exception):
    """A fresh worker did not report ready: no fault of the sample it was to grade."""


def _start(arguments: list[str], closed: threading.Event) -> _Worker:
    """Starts a worker and waits until it is ready. ``_CannotStart`` if it ends first."""
    ours, theirs = Pipe()
    # Not multiprocessing: that would run the parent's main module, and its import of jax, once a worker.
    process = subprocess.Popen(
        [sys.executable, "-m", "mmrl.rewards.worker", str(theirs.fileno()), *arguments],
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
            f"a reward worker could not start ({_how_it_ended(process)}); its error output says why. "
            f"Verifiers come from the module {arguments[0]!r}"
        )
    return worker


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.connection.close()


def _work(worker: _Worker, jobs: list[_Job], deadline_s: float, closed: threading.Event) -> bool:
    """Grades ``jobs`` from the front, removing what is done. False if the worker must be replaced."""
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
            job.future.set_result(Graded({}, False, _why_it_died(job.sample, worker.process, deadline_s)))
            return False
        if "event" in message:
            limit_s = START_S if message["event"] == "loading" else deadline_s + GRACE_S
            continue
        job = jobs.pop(0)
        if "error" in message:
            job.future.set_result(Graded({}, False, f"sample {job.sample.id}: {message['error']}"))
        else:
            job.future.set_result(Graded(message["components"]))
    return True


def _receive(worker: _Worker, limit_s: float, closed: threading.Event) -> dict[str, Any] | None:
    """The worker's next message; None if it died, stayed silent for ``limit_s``, or the pool was closed."""
    end = time.monotonic() + limit_s
    try:
        while not worker.connection.poll(min(CLOSE_POLL_S, max(0.0, end - time.monotonic()))):
            if closed.is_set() or time.monotonic() >= end:
                return None
        return json.loads(worker.connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        return None


def _why_it_died(sample: Sample, process: subprocess.Popen[bytes], deadline_s: float) -> str:
    code = process.wait()
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        return f"sample {sample.id}: verifier {sample.verifier!r} ran past its deadline of {deadline_s} s"
    return f"sample {sample.id}: verifier {sample.verifier!r} ended its worker ({_how_it_ended(process)})"


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
