"""Parts that both sides of a comparison share: clock, threads, arguments, result; no jax, no torch."""

import argparse
import importlib.util
import json
import math
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MARK = "PEERS "  # begins the line that `compare` reads


def arguments(description: str) -> argparse.ArgumentParser:
    """The arguments that every script of this folder takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="directory, as written by models.py")
    parser.add_argument("--prompts", type=Path, required=True, help="directory, as written by models.py")
    parser.add_argument("--new", type=int, default=64, help="response tokens, forced")
    parser.add_argument("--runs", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def step_arguments(description: str) -> argparse.ArgumentParser:
    """Those, and what a whole step takes."""
    parser = arguments(description)
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--long-tailed", action="store_true", help="responses of unequal lengths")
    return parser


class ForcedLengths:
    """Tokens of one response after another, the same for both sides.

    Log-normal up to ``new``, with a median of 300 of 2,048 and a deviation of the logarithm of 0.9.
    """

    def __init__(self, new: int) -> None:
        self._new, self._draw = new, random.Random(0)
        self.total = 0

    def next(self) -> int:
        """The length of the next response."""
        drawn = self._draw.lognormvariate(math.log(self._new * 300 / 2048), 0.9)
        length = min(max(round(drawn), 1), self._new)
        self.total += length
        return length


def require(*packages: str) -> None:
    """End with one line if a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} not installed for {sys.executable}: name another --peer-python")


def limit_threads(count: int) -> None:
    """Keep this process on its first ``count`` processors; call it before jax or torch is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def prompt_rows(directory: Path, with_images: bool) -> list[dict[str, Any]]:
    """The prompts on disk; ``images`` are paths."""
    lines = (directory / ("images.jsonl" if with_images else "text.jsonl")).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{**row, "images": [directory / name for name in row.get("images", [])]} for row in rows]


def busy_seconds() -> float | None:
    """Processor seconds that all processes have used since the machine started; None where unknown."""
    try:
        user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    except OSError:
        return None
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


class Clock:
    """Wall and processor seconds since it was made, and the processors that others kept busy."""

    def __init__(self) -> None:
        self._wall, self._own, self._all = time.perf_counter(), time.process_time(), busy_seconds()

    def read(self) -> dict[str, float | None]:
        """``wall`` and ``cpu`` in seconds; ``others`` in processors."""
        wall, own, busy = time.perf_counter() - self._wall, time.process_time() - self._own, busy_seconds()
        others = None
        if busy is not None and self._all is not None and wall > 0.1:  # the counter's grain is 0.01 s
            others = round(max(0.0, busy - self._all - own) / wall, 2)
        return {"wall": wall, "cpu": own, "others": others}


def timed(call: Callable[[], Any], runs: int) -> list[dict[str, float | None]]:
    """`Clock` readings of ``runs`` calls, after one that is not timed."""
    call()
    readings = []
    for _ in range(runs):
        clock = Clock()
        call()
        readings.append(clock.read())
    return readings


def median(readings: Sequence[dict[str, Any]], key: str = "wall") -> float:
    """Of one key; 0 where nobody has it."""
    values = [reading[key] for reading in readings if reading.get(key) is not None]
    return statistics.median(values) if values else 0.0


def emit(packages: Sequence[str], **result: Any) -> None:
    """Print a result as the line that `compare` reads."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(MARK + json.dumps({**result, "peak_mib": round(peak), "versions": found}), flush=True)
