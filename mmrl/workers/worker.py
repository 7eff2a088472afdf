"""Worker process: ``python -m mmrl.workers.worker FD TABLE DEADLINE MEMORY [FILE.py:function ...]``.

Started by `pool.WorkerPool`. Reads pickled ``(number, function, payload)`` from the parent, which it trusts,
and answers with lines of JSON, each with its job's number: the parent never unpickles what comes from a
process that has handled hostile text. Imports neither jax nor flax.
"""

import base64
import ctypes
import importlib
import json
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
from mmrl.user_code import load_function

MAX_MESSAGE = 64 << 20  # bytes of one message from a worker
PARENT_POLL_S = 1.0  # between checks that the pool's process still lives
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
_BYTES = "bytes in base64"  # the one key of an object that stands for bytes


def pack(message: dict[str, Any]) -> bytes:
    """A message as JSON. Raises TypeError for what is neither JSON, nor bytes, nor a numpy scalar."""
    return json.dumps(message, default=_to_json).encode()


def unpack(message: bytes) -> dict[str, Any]:
    """The message of these bytes of `pack`; tuples come back as lists. Raises ValueError for other bytes."""
    value = json.loads(message, object_hook=_decode_bytes)
    if not isinstance(value, dict):
        raise ValueError("a worker's message is a JSON object")
    return value


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if hasattr(value, "item"):  # a numpy scalar; numpy is not imported for this
        return value.item()
    raise TypeError(f"a worker cannot send a {type(value).__name__}; return JSON values or bytes")


def _decode_bytes(value: dict[str, Any]) -> Any:
    if value.keys() == {_BYTES} and isinstance(value[_BYTES], str):
        return base64.b64decode(value[_BYTES])
    return value


def guard(fd: int) -> None:
    """Fork: the child returns, to be the worker; the parent waits for it, kills all that it started, and ends
    in the same way.

    As a subreaper the guard adopts what the worker started, even in another session. SIGTERM, or the end of
    the pool's process, ends the worker too.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent, signals = os.getppid(), {signal.SIGCHLD, signal.SIGTERM}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    worker = os.fork()
    if not worker:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return
    os.close(fd)
    status = None
    while status is None and os.getppid() == parent:
        received = signal.sigtimedwait(signals, PARENT_POLL_S)
        if received is not None and received.si_signo == signal.SIGTERM:
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
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(fd: int, table: str, deadline_s: float, memory_bytes: int, user_functions: Sequence[str]) -> None:
    """Serves jobs until the parent closes the connection or is gone.

    Each job runs under a timer of ``deadline_s`` seconds whose signal keeps its default action, death: the
    kernel delivers it even while Python is stuck in one long C call.
    """
    process, connection = os.getpid(), Connection(fd)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    name, _, attribute = table.partition(":")
    module = importlib.import_module(name)
    functions = {
        **getattr(module, attribute),
        **{text: load_function(table, text) for text in user_functions},
    }
    loaders = dict(getattr(module, "LOADERS", {}))
    _send(fd, pack({"job": None, "event": "ready"}))
    while True:
        number, function, payload = pickle.loads(connection.recv_bytes())
        if function in loaders:
            _send(fd, pack({"job": number, "event": "loading"}))
            loaders.pop(function)()
            _send(fd, pack({"job": number, "event": "loaded"}))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        answer = _run(functions, function, payload, number)
        if os.getpid() != process:  # a copy that the function forked: it must not answer
            os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        _send(fd, answer)


def _run(functions: Mapping[str, Callable[..., Any]], function: str, payload: Any, number: str) -> bytes:
    """The message about one job: what the function returned, or what it raised."""
    try:
        named = isinstance(payload, Mapping)
        value = functions[function](**payload) if named else functions[function](*payload)
        answer = pack({"job": number, "value": value})
        if len(answer) > MAX_MESSAGE:
            raise ValueError(f"it returned {len(answer) >> 20} MiB, more than {MAX_MESSAGE >> 20}")
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
