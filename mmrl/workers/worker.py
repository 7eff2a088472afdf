"""The process that runs functions: ``python -m mmrl.workers.worker FD TABLE DEADLINE MEMORY [OWN ...]``.

Started by ``pool.WorkerPool``. Reads pickled lists of pickled ``(function, payload)`` from the parent, which
it trusts, and answers with JSON, one message a job: the parent never unpickles what comes from a process that
has handled hostile text. Imports neither jax nor flax.
"""

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
from typing import Any

from mmrl.python_file import function as own_function
from mmrl.terminal import printable
from mmrl.workers.message import pack

PARENT_POLL_S = 1.0  # how often an idle worker looks whether its parent still lives


def main(fd: int, table: str, deadline_s: float, memory_bytes: int, own: Sequence[str]) -> None:
    """Serves requests until the parent closes the connection or is gone.

    Each job runs under a timer of ``deadline_s`` seconds whose signal keeps its default action, death: the
    kernel delivers it even while Python is stuck in one long C call.
    """
    parent = os.getppid()
    connection = Connection(fd)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    name, _, attribute = table.partition(":")
    module = importlib.import_module(name)
    functions = {**getattr(module, attribute), **{text: own_function(table, text) for text in own}}
    loaders = getattr(module, "LOADERS", {})
    loaded: set[str] = set()
    connection.send_bytes(pack({"event": "ready"}))
    while True:
        while not connection.poll(PARENT_POLL_S):
            if os.getppid() != parent:
                return
        for job in pickle.loads(connection.recv_bytes()):
            function, payload = pickle.loads(job)
            load = loaders.get(function)
            if load is not None and function not in loaded:
                connection.send_bytes(pack({"event": "loading"}))
                load()
                loaded.add(function)
                connection.send_bytes(pack({"event": "loaded"}))
            signal.setitimer(signal.ITIMER_REAL, deadline_s)
            answer = _run(functions, function, payload)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            connection.send_bytes(answer)


def _run(functions: Mapping[str, Callable[..., Any]], function: str, payload: Any) -> bytes:
    """The message about one job: what the function returned, or what it raised."""
    try:
        named = isinstance(payload, Mapping)
        value = functions[function](**payload) if named else functions[function](*payload)
        return pack({"value": value})
    except (Exception, RecursionError, MemoryError) as error:
        return json.dumps({"error": printable(f"{type(error).__name__}: {error}"[:500])[:500]}).encode()


if __name__ == "__main__":
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent closed its end, or died
        main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
