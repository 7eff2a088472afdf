"""Functions of a table in killable processes, under a deadline and a memory limit for each call."""

import itertools
import os
import pickle
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from mmrl.workers.message import LARGEST, unpack

START_S = 120.0  # a worker that is not up, or has not loaded a function's libraries, by then is broken
GRACE_S = 1.0  # by how much the parent waits longer than the worker's own timer
CHUNK = 16  # jobs in one message
CHUNK_BYTES = 32 << 20  # of their payloads together, so that no worker runs out of memory over many at once
RETRY_S = 1.0  # pause after a worker that could not be replaced
CLOSE_POLL_S = 0.2  # how often a waiting thread looks whether the pool was closed
GUARD_S = 5.0  # for a worker's guard to kill what the worker has started, and to end
READ_BYTES = 1 << 20
# Variables that workers see: what an interpreter and its libraries need, and no secrets.
ENVIRONMENT = re.compile(
    "PATH|HOME|USER|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|PYTHON.*|LD_.*|VIRTUAL_ENV|CONDA_PREFIX|.*_NUM_THREADS"
)


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
    number: str = field(default_factory=lambda: secrets.token_hex(8))  # which code of other jobs cannot guess


class WorkerPool:
    """Worker processes that run the functions of a table; a context manager.

    ``workers``: processes. ``table``: "module:NAME", an importable module and the name of its mapping of
    functions; its mapping ``LOADERS``, if there is one, has by the same names what a worker does before its
    first call of a function, outside the deadline. ``deadline_s``: seconds for one call, after which its
    worker is killed and replaced. ``memory_bytes``: address space of a worker. ``noun``: what the functions
    are, in messages. ``own``: functions besides those of the table, "FILE.py:function".
    The workers are fresh interpreters: they share no state with the parent, never import jax, see
    nothing but `ENVIRONMENT` of its environment, and print to its stderr. An answer counts for the job whose
    number it has, and for no other. Leaving the context kills them and all that they started; should the
    parent be killed they end by themselves.
    """

    def __init__(
        self,
        workers: int,
        table: str,
        deadline_s: float = 5.0,
        memory_bytes: int = 2 << 30,
        noun: str = "tool",
        own: Sequence[str] = (),
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers = {workers}: a pool needs at least one")
        if deadline_s <= 0:
            raise ValueError(f"deadline_s = {deadline_s}: give a positive number of seconds")
        self._arguments = [table, str(deadline_s), str(memory_bytes), *own]
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
        or memory is an answer with an error. Values are JSON and bytes (see ``message``). So is, once
        workers have run, that one cannot be replaced: the machine may have room again for later calls.

        ValueError if the pool is closed. ``.result()`` raises RuntimeError if workers cannot start at all.
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
        begun = False
        try:
            while not self._closed.is_set():
                try:
                    worker = worker or _start(self._arguments, self._noun, self._closed)
                    begun = True
                except _CannotStart as error:
                    if not begun:
                        raise
                    jobs = jobs or self._take()
                    while jobs:
                        jobs.pop(0).future.set_result(Answer(error=str(error)))
                    self._closed.wait(RETRY_S)
                    continue
                jobs = jobs or self._take()
                if not _work(worker, jobs, self._noun, self._deadline_s, self._closed):
                    _kill(worker)
                    worker = None
        except Exception as error:  # of any kind: whoever waits for these jobs must hear of it
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


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]  # the guard of the worker, which ends as the worker does
    connection: Connection
    received: bytes = b""  # after the last message


class _CannotStart(Exception):
    """A fresh worker did not report ready: no fault of the job it was to do."""


class _Lost(Exception):
    """A worker that is of no use any more; the text says what was done to it."""


class _Closed(Exception):
    """The pool was closed meanwhile."""


def _start(arguments: list[str], noun: str, closed: threading.Event) -> _Worker:
    """Starts a worker and waits until it is ready. ``_CannotStart`` if it ends first."""
    ours, theirs = Pipe()
    environment = {name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name)}
    try:
        # Not multiprocessing: that would run the parent's main module, and its import of jax, once a worker.
        # A session of its own: Ctrl-C and a notice of preemption go to the whole group of the parent, which
        # ends the step that it is in, and needs its workers for that.
        process = subprocess.Popen(
            [sys.executable, "-m", "mmrl.workers.worker", str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a function prints is no part of the output of a command
            env={**environment, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,
        )
    except OSError as error:  # no memory, or no process left
        ours.close()
        raise _CannotStart(f"a {noun} worker could not start: {error}") from error
    finally:
        theirs.close()
    worker = _Worker(process, ours)
    try:
        _receive(worker, None, START_S, closed)
    except _Lost as error:
        _kill(worker)
        raise _CannotStart(
            f"a {noun} worker could not start (it {error}); its error output says why. "
            f"The {noun}s come from {arguments[0]!r}"
        ) from error
    except _Closed:
        pass
    return worker


def _kill(worker: _Worker) -> None:
    """Ends a worker with all that it has started, and waits for that."""
    worker.process.terminate()
    try:
        worker.process.wait(GUARD_S)
    except subprocess.TimeoutExpired:
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    worker.connection.close()


def _work(worker: _Worker, jobs: list[_Job], noun: str, deadline_s: float, closed: threading.Event) -> bool:
    """Runs ``jobs`` from the front, removing what is done. False if the worker must be replaced.

    Those that do not fit into one message are left for the next.
    """
    sent = _fitting(jobs)
    if not sent or worker.received or worker.connection.poll():  # it has ended, or says what nobody asked
        return not sent
    try:
        worker.connection.send_bytes(pickle.dumps([(job.number, job.payload) for job in sent]))
    except (BrokenPipeError, ConnectionResetError):
        if len(sent) == 1:  # sent alone, and more than the worker could take: it would be so each time
            job = jobs.pop(0)
            what = f"{noun} {job.function!r} was given {len(job.payload) >> 20} MiB"
            job.future.set_result(Answer(error=f"{what}, more than its worker could take"))
        return False
    for job in sent:
        try:
            message = _receive(worker, job.number, deadline_s, closed)
        except _Closed:
            return False
        except _Lost as error:
            jobs.pop(0).future.set_result(Answer(error=f"{noun} {job.function!r} {error}"))
            return False
        jobs.pop(0).future.set_result(Answer(message.get("value"), message.get("error")))
    return True


def _fitting(jobs: list[_Job]) -> list[_Job]:
    """The first of ``jobs``, and those after it that are together no more than ``CHUNK_BYTES``."""
    sizes = itertools.accumulate(len(job.payload) for job in jobs)
    return [
        job for k, (job, size) in enumerate(zip(jobs, sizes, strict=True)) if not k or size <= CHUNK_BYTES
    ]


def _receive(worker: _Worker, number: str | None, limit_s: float, closed: threading.Event) -> dict[str, Any]:
    """The worker's answer to the job of this number, for which it has ``limit_s`` seconds and `GRACE_S`.

    None is the number of its first message, that it is ready. Raises ``_Lost`` or ``_Closed``.
    """
    late = f"ran past its deadline of {limit_s} s"
    limit = limit_s + GRACE_S
    while True:
        try:
            message = unpack(_line(worker, time.monotonic() + limit, closed))
        except TimeoutError as error:
            raise _Lost(late) from error
        except (EOFError, OSError) as error:
            raise _Lost(_how_it_ended(worker.process, late)) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise _Lost("wrote what is no answer into its worker's pipe") from error
        if message.get("job") != number:
            raise _Lost("wrote what is not its own answer into its worker's pipe")
        if number is None or "event" not in message:
            return message
        limit = START_S if message["event"] == "loading" else limit_s + GRACE_S


def _line(worker: _Worker, end: float, closed: threading.Event) -> bytes:
    """The worker's next line. Raises TimeoutError, EOFError, ValueError if it is too long, ``_Closed``."""
    parts, size = [worker.received], len(worker.received)
    while b"\n" not in parts[-1]:
        left = end - time.monotonic()
        if closed.is_set():
            raise _Closed
        if left <= 0:
            raise TimeoutError
        if size > LARGEST:
            raise ValueError("a message without an end")
        if worker.connection.poll(min(CLOSE_POLL_S, left)):
            parts.append(os.read(worker.connection.fileno(), READ_BYTES))
            size += len(parts[-1])
            if not parts[-1]:
                raise EOFError
    line, _, worker.received = b"".join(parts).partition(b"\n")
    return line


def _how_it_ended(process: subprocess.Popen[bytes], late: str) -> str:
    """What was done to a worker whose pipe is closed; ``late`` if its timer has ended it."""
    try:
        code = process.wait(GUARD_S)
    except subprocess.TimeoutExpired:
        return "closed its worker's pipe"
    if code == -signal.SIGALRM:
        return late
    return (
        f"ended its worker ({f'signal {signal.Signals(-code).name}' if code < 0 else f'exit status {code}'})"
    )
