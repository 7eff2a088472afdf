"""Verifiers that misbehave, for the tests of the pool. Imported by its workers."""

import os
import subprocess
import threading
import time
from pathlib import Path

from mmrl.sample import Sample


def accurate(sample: Sample, response: str) -> dict[str, float]:
    return {"accuracy": float(response == sample.answer)}


def length(sample: Sample, response: str) -> dict[str, float]:
    return {"length": float(len(response))}


def sleep(sample: Sample, response: str) -> dict[str, float]:
    time.sleep(600)
    return {"accuracy": 1.0}


def long_c_call(sample: Sample, response: str) -> dict[str, float]:
    return {"accuracy": float(len(str(7 ** (7**10))))}  # one C call, deaf to Python's own signal handlers


def raises(sample: Sample, response: str) -> dict[str, float]:
    raise KeyError("no such fact")


def not_finite(sample: Sample, response: str) -> dict[str, float]:
    return {"accuracy": float("nan")}


def eats_memory(sample: Sample, response: str) -> dict[str, float]:
    return {"accuracy": float(len(bytearray(8 << 30)))}


def exits(sample: Sample, response: str) -> dict[str, float]:
    os._exit(3)


def exits_later(sample: Sample, response: str) -> dict[str, float]:
    """Answers, and ends its worker between two jobs."""
    threading.Timer(0.05, os._exit, (0,)).start()
    return {"accuracy": 1.0}


def process_id(sample: Sample, response: str) -> dict[str, float]:
    return {"pid": float(os.getpid())}


def too_large(sample: Sample, response: str) -> dict[str, float]:
    return {"accuracy": 1e39}  # infinity in float32


def escapes(sample: Sample, response: str) -> dict[str, float]:
    raise ValueError("\x1b[2J\ud800" * 999)


def starts_another(sample: Sample, response: str) -> dict[str, float]:
    """Leaves the number of a process of its own in the file that the response names, and hangs."""
    Path(response).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    return sleep(sample, response)


def half_a_second(sample: Sample, response: str) -> dict[str, float]:
    Path(response).write_text("begun")
    time.sleep(0.5)
    return {"accuracy": 1.0}


VERIFIERS = {
    f.__name__: f
    for f in (
        accurate,
        length,
        sleep,
        long_c_call,
        raises,
        not_finite,
        eats_memory,
        exits,
        exits_later,
        process_id,
        too_large,
        escapes,
        starts_another,
        half_a_second,
    )
}
LOADERS = {"length": lambda: time.sleep(1.5)}  # longer than the deadline of the tests
