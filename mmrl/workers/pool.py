"""Process pool: functions of a table in killable workers, under a deadline and a memory limit."""

import os
import pickle
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

from mmrl.workers.worker import MAX_MESSAGE, unpack

START_S = 120.0  # for a worker to start, or to load a function's libraries
GRACE_S = 1.0  # by how much the parent waits longer than the worker's own timer
RETRY_S = 1.0  # pause after a worker that could not be replaced
CLOSE_POLL_S = 0.2  # between checks of a waiting thread whether the pool was closed
GUARD_S = 5.0  # for a worker's guard to kill what the worker has started, and to end
READ_BYTES = 1 << 20
# Environment variables that workers see: what an interpreter and its libraries need, and no secrets.
ENVIRONMENT = re.compile(
    "PATH|HOME|USER|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|PYTHON.*|LD_.*|VIRTUAL_ENV|CONDA_PREFIX|.*_NUM_THREADS"
)


@dataclass(frozen=True)
class Answer:
    """Result of one call: the function's value, or the error; the other of the two is None."""

    value: Any = None
    error: str | None = None


CLOSED = Answer(error="the pool was closed before this was done")


class _Lost(Exception):
    """A worker that is of no use any more; the text says what was done to it."""


class _Closed(Exception):
    """The pool was closed meanwhile."""


class WorkerPool(AbstractContextManager["WorkerPool"]):
    """Worker processes that run the functions of a table; a context manager.

    ``workers``: processes. ``table``: "module:NAME", an importable module and the name of its mapping of
    functions; its mapping ``LOADERS``, if there is one, has by the same names what a worker does before its
    first call of a function, outside the deadline. ``deadline_s``: timeout of one call, after which its
    worker is killed and replaced. ``memory_bytes``: address space of a worker. ``noun``: what the functions
    are, in messages. ``user_functions``: further functions, "FILE.py:function". The workers are fresh
    interpreters: they share no state with the parent, never import jax, see nothing but `ENVIRONMENT` of its
    environment, and print to its stderr. An answer counts for the job whose number it has, and for no other.
    Leaving the context kills them and all that they started; should the parent be killed they end by
    themselves.
    """

    def __init__(
        self,
        workers: int,
        table: str,
        deadline_s: float = 5.0,
        memory_bytes: int = 2 << 30,
        noun: str = "tool",
        user_functions: Sequence[str] = (),
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers = {workers}: a pool needs at least one")
        if deadline_s <= 0:
            raise ValueError(f"deadline_s = {deadline_s}: give a positive number of seconds")
        self._arguments = [table, str(deadline_s), str(memory_bytes), *user_functions]
        self._deadline_s, self._noun = deadline_s, noun
        self._closed, self._workers = threading.Event(), set[_Worker]()
        self._threads, self._thread = ThreadPoolExecutor(workers, noun), threading.local()
        for _ in range(workers):
            self._threads.submit(self._worker)

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, function: str, payload: tuple[Any, ...] | Mapping[str, Any]) -> Future[Answer]:
        """Queues one call, with arguments by position or by name, and returns at once.

        A function that raises, dies, or runs out of time or memory is an answer with an error. So is, once
        workers have run, that one cannot be replaced: the machine may have room again for later calls. Values
        are JSON and bytes. Raises ValueError if the pool is closed; ``.result()`` raises RuntimeError if
        workers cannot start at all.
        """
        if self._closed.is_set():
            raise ValueError(f"the pool of {self._noun}s is closed; submit inside its context")
        number = secrets.token_hex(8)  # code of other jobs cannot guess it
        message = pickle.dumps((number, function, payload))
        return self._threads.submit(self._run, number, function, message)

    def close(self) -> None:
        """Kills the workers and waits for their end. What was not done yet becomes an error."""
        self._closed.set()
        self._threads.shutdown()
        for worker in self._workers:
            worker.kill()

    def _run(self, number: str, function: str, message: bytes) -> Answer:
        """The answer to one job, of this thread's worker."""
        try:
            worker = self._worker()
        except _Closed:
            return CLOSED
        except _Lost as error:
            if not hasattr(self._thread, "worker"):
                raise RuntimeError(str(error)) from error
            self._closed.wait(RETRY_S)
            return Answer(error=str(error))
        try:
            return worker.run(number, message, self._deadline_s)
        except _Closed:
            answer = CLOSED
        except _Lost as error:
            answer = Answer(error=f"{self._noun} {function!r} {error}")
        self._drop(worker)
        return answer

    def _worker(self) -> "_Worker":
        """This thread's worker, a new one where it has lost its own. Raises ``_Lost`` or ``_Closed``."""
        worker: _Worker | None = getattr(self._thread, "worker", None)
        if self._closed.is_set():
            raise _Closed
        if worker is not None and worker.is_stale():
            self._drop(worker)
            worker = None
        if worker is None:
            try:
                worker = _Worker(self._arguments, self._closed)
            except OSError as error:  # no memory, no process or no file left
                raise _Lost(f"a {self._noun} worker could not start: {error}") from error
            except _Lost as error:
                raise _Lost(
                    f"a {self._noun} worker could not start (it {error}); its error output says why. "
                    f"The {self._noun}s come from {self._arguments[0]!r}"
                ) from error
            self._thread.worker = worker
            self._workers.add(worker)
        return worker

    def _drop(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers.discard(worker)
        self._thread.worker = None


class _Worker:
    """One worker process, under its guard. The constructor returns when it is ready.

    Raises OSError if no process can be started, ``_Lost`` if it ends before it is ready, ``_Closed``.
    """

    def __init__(self, arguments: Sequence[str], closed: threading.Event) -> None:
        self._closed = closed
        self._received = b""  # after the last message
        self._connection, theirs = Pipe()
        environment = {name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name)}
        try:
            # Not multiprocessing: that would run the parent's main module, and its import of jax, once a
            # worker. A session of its own: Ctrl-C and a preemption notice go to the whole group of the
            # parent, which ends the step that it is in, and needs its workers for that.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mmrl.workers.worker", str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a function prints is no part of the output of a command
                env={**environment, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                start_new_session=True,
            )
        except OSError:
            self._connection.close()
            raise
        finally:
            theirs.close()
        try:
            self._receive(None, START_S)
        except (_Lost, _Closed):
            self.kill()
            raise

    def is_stale(self) -> bool:
        """True if the worker has ended between two jobs, or written what it was not asked for."""
        return bool(self._received) or self._connection.poll()

    def run(self, number: str, message: bytes, deadline_s: float) -> Answer:
        """The answer to a job. Raises ``_Lost`` if the worker must be replaced, or ``_Closed``."""
        try:
            self._connection.send_bytes(message)
        except OSError as error:
            size = len(message) >> 20
            raise _Lost(f"was given {size} MiB, more than its worker could take") from error
        answer = self._receive(number, deadline_s)
        return Answer(answer.get("value"), answer.get("error"))

    def kill(self) -> None:
        """Ends the worker with all that it has started, and waits for that."""
        self._process.terminate()
        try:
            self._process.wait(GUARD_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._connection.close()

    def _receive(self, number: str | None, timeout_s: float) -> dict[str, Any]:
        """The message about the job of this number, within the timeout and `GRACE_S`; None: it is ready."""
        late = f"ran past its deadline of {timeout_s} s"
        seconds = timeout_s + GRACE_S
        while True:
            try:
                message = unpack(self._read_line(time.monotonic() + seconds))
            except TimeoutError as error:
                raise _Lost(late) from error
            except (EOFError, OSError) as error:
                raise _Lost(self._cause_of_death(late)) from error
            except (ValueError, RecursionError, MemoryError) as error:
                raise _Lost("wrote what is no answer into its worker's pipe") from error
            if message.get("job") != number:
                raise _Lost("wrote what is not its own answer into its worker's pipe")
            if number is None or "event" not in message:
                return message
            seconds = START_S if message["event"] == "loading" else timeout_s + GRACE_S

    def _read_line(self, end: float) -> bytes:
        """The next line. Raises TimeoutError, EOFError, ValueError if it is too long, ``_Closed``."""
        parts, size = [self._received], len(self._received)
        while b"\n" not in parts[-1]:
            left = end - time.monotonic()
            if self._closed.is_set():
                raise _Closed
            if left <= 0:
                raise TimeoutError
            if size > MAX_MESSAGE:
                raise ValueError("a message without an end")
            if self._connection.poll(min(CLOSE_POLL_S, left)):
                parts.append(os.read(self._connection.fileno(), READ_BYTES))
                size += len(parts[-1])
                if not parts[-1]:
                    raise EOFError
        line, _, self._received = b"".join(parts).partition(b"\n")
        return line

    def _cause_of_death(self, late: str) -> str:
        """The end of a worker whose pipe is closed; ``late`` if its timer has ended it."""
        try:
            code = self._process.wait(GUARD_S)
        except subprocess.TimeoutExpired:
            return "closed its worker's pipe"
        if code == -signal.SIGALRM:
            return late
        status = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"ended its worker ({status})"
