"""The process that runs functions: ``python -m mmrl.workers.worker FD TABLE DEADLINE MEMORY [OWN ...]``.

Started by ``pool.WorkerPool``. Reads pickled lists of ``(number, pickled (function, payload))`` from the
parent, which it trusts, and answers with lines of JSON, each with its job's number: the parent never
unpickles what comes from a process that has handled hostile text. Imports neither jax nor flax.
"""

import ctypes
import importlib
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmrl.terminal import printable
from mmrl.user_code import load_function as own_function
from mmrl.workers.message import LARGEST, pack

PARENT_POLL_S = 1.0  # how often the guard looks whether the pool's process still lives
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


def guard(fd: int) -> None:
    """Fork. The child returns, to be the worker; the parent waits for its end, kills all that it has started,
    and ends in the same way.

    What the worker has started becomes the guard's child when its own parent ends, even in another session.
    SIGTERM, or the end of the pool's process, ends the worker too.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent, signals = os.getppid(), {signal.SIGCHLD, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    worker = os.fork()
    if not worker:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os.close(fd)
    status = None
    while status is None and os.getppid() == parent:
        told = signal.sigtimedwait(signals, PARENT_POLL_S)
        if told is not None and told.si_signo == signal.SIGTERM:
            break
        with suppress(ChildProcessError):
            while status is None and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                status = ended[1] if ended[0] == worker else None
    with suppress(ChildProcessError):
        while True:  # children of those that die become the guard's
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            os.waitpid(-1, 0)
    code = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(fd: int, table: str, deadline_s: float, memory_bytes: int, own: Sequence[str]) -> None:
    """Serves requests until the parent closes the connection or is gone.

    Each job runs under a timer of ``deadline_s`` seconds whose signal keeps its default action, death: the
    kernel delivers it even while Python is stuck in one long C call.
    """
    process, connection = os.getpid(), Connection(fd)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    name, _, attribute = table.partition(":")
    module = importlib.import_module(name)
    functions = {**getattr(module, attribute), **{text: own_function(table, text) for text in own}}
    loaders = getattr(module, "LOADERS", {})
    loaded: set[str] = set()
    _send(fd, pack({"job": None, "event": "ready"}))
    while True:
        for number, job in pickle.loads(connection.recv_bytes()):
            function, payload = pickle.loads(job)
            load = loaders.get(function)
            if load is not None and function not in loaded:
                _send(fd, pack({"job": number, "event": "loading"}))
                load()
                loaded.add(function)
                _send(fd, pack({"job": number, "event": "loaded"}))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, deadline_s)
            answer = _run(functions, function, payload, number)
            if os.getpid() != process:  # a copy that the function forked, and that is to answer nothing
                os._exit(0)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            _send(fd, answer)


def _run(functions: Mapping[str, Callable[..., Any]], function: str, payload: Any, number: str) -> bytes:
    """The message about one job: what the function returned, or what it raised."""
    try:
        named = isinstance(payload, Mapping)
        value = functions[function](**payload) if named else functions[function](*payload)
        answer = pack({"job": number, "value": value})
        if len(answer) > LARGEST:
            raise ValueError(f"it returned {len(answer) >> 20} MiB, more than {LARGEST >> 20}")
        return answer
    except (Exception, RecursionError, MemoryError) as error:
        return pack({"job": number, "error": printable(f"{type(error).__name__}: {error}"[:500])[:500]})


def _send(fd: int, message: bytes) -> None:
    left = memoryview(message + b"\n")
    while left:
        left = left[os.write(fd, left) :]


if __name__ == "__main__":
    guard(int(sys.argv[1]))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent closed its end, or died
        main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
