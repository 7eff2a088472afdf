"""The process that runs verifiers: ``python -m mmrl.rewards.worker FD TABLE DEADLINE MEMORY``.

Started by ``pool.RewardPool``. Reads pickled lists of pickled ``(sample, response)`` from the parent, which
it trusts, and answers with JSON, one message a sample: the parent never unpickles what comes from a process
that has handled a hostile response.
"""

import importlib
import json
import math
import os
import pickle
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

PARENT_POLL_S = 1.0  # how often an idle worker looks whether its parent still lives


def main(fd: int, table: str, deadline_s: float, memory_bytes: int) -> None:
    """Serves requests until the parent closes the connection or is gone.

    Each sample runs under a timer of ``deadline_s`` seconds whose signal keeps its default action, death: the
    kernel delivers it even while Python is stuck in one long C call.
    """
    parent = os.getppid()
    connection = Connection(fd)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pool
    module = importlib.import_module(table)
    loaded: set[str] = set()
    _send(connection, {"event": "ready"})
    while True:
        while not connection.poll(PARENT_POLL_S):
            if os.getppid() != parent:
                return
        for payload in pickle.loads(connection.recv_bytes()):
            sample, response = pickle.loads(payload)
            load = getattr(module, "LOADERS", {}).get(sample.verifier)
            if load is not None and sample.verifier not in loaded:
                _send(connection, {"event": "loading"})
                load()
                loaded.add(sample.verifier)
                _send(connection, {"event": "loaded"})
            signal.setitimer(signal.ITIMER_REAL, deadline_s)
            answer = _grade(module.VERIFIERS, sample, response)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            _send(connection, answer)


def _grade(verifiers: Any, sample: Any, response: str) -> dict[str, Any]:
    try:
        components = verifiers[sample.verifier](sample, response)
        values = {str(name): float(value) for name, value in components.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"verifier {sample.verifier!r} reported a value that is not finite: {values}")
        return {"components": values}
    except (Exception, RecursionError, MemoryError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent closed its end, or died
        main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
