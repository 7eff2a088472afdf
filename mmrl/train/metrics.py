"""Metrics of a run, given to its writers; its clock, its count of compilations and its progress line."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from mmrl import hosts
from mmrl.atomic import set_aside, write_jsonl
from mmrl.run_folder import metrics_of
from mmrl.terminal import rewrite, tell
from mmrl.train.writers import HeldoutExample, JsonLines, TensorBoard, Writer


class Metrics:
    """Append-only ``metrics.jsonl`` and TensorBoard events of one stage, written by the first process.

    Opened to go on after ``step`` steps (-1: from nothing): rows of later steps, left by an interrupted run,
    are cut off, so that every step has one row. Lines that are damaged are set aside. ``more`` opens further
    writers, in the first process. ``last_step`` is that of the last row that is kept, -1 without any.
    """

    def __init__(self, directory: Path, step: int, more: Callable[[], Sequence[Writer]] = tuple) -> None:
        self._writers: Sequence[Writer] = ()
        self.last_step = -1
        if not hosts.is_main_process():
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        rows, damaged = metrics_of(directory)
        set_aside(damaged, hosts.say)
        rows = [row for row in rows if row["step"] <= step]
        self.last_step = max((row["step"] for row in rows), default=-1)
        write_jsonl(path, rows)
        board = TensorBoard(directory / "tensorboard", max(step + 1, 0))
        self._writers = (JsonLines(path), board, *more())

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add the row of ``step``; it is on the disk when this returns."""
        for writer in self._writers:
            writer.write(step, values)

    def show(self, step: int, shown: Sequence[HeldoutExample]) -> None:
        """Add responses of the evaluation after ``step``."""
        for writer in self._writers:
            writer.show(step, shown)

    def close(self) -> None:
        """Flush and close them."""
        for writer in self._writers:
            writer.close()


class Phases:
    """Wall-clock seconds of the named parts of a step."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin again from nothing."""
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a ``with`` block; blocks of one name add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """``time/<name>`` of each part, ``time/step`` since the beginning, and what no part covers."""
        total = time.perf_counter() - self._start
        out = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return {**out, "time/step": total, "time/other": total - sum(self.seconds.values())}


def to_floats(arrays: Mapping[str, jax.Array]) -> dict[str, float]:
    """Scalars of the devices as numbers of the host."""
    return {name: float(value) for name, value in jax.device_get(dict(arrays)).items()}


def padding_metrics(computed: Int[np.ndarray, "2"], used: Int[np.ndarray, "2"]) -> dict[str, float]:
    """Slots of tokens and of patches that an update has ``computed``, over the tokens and patches in them."""
    text, patches = computed / np.maximum(used, 1)
    return {"padding/text": float(text), "padding/patches": float(patches)}


class CompileCounter:
    """Counts the programs XLA compiles in this process, while open."""

    def __init__(self) -> None:
        self.count = 0
        self._listener = self._on_duration

    def _on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1

    def __enter__(self) -> "CompileCounter":
        jax.monitoring.register_event_duration_secs_listener(self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listener)


class Progress:
    """One line a step, rewritten in place on a terminal and plain lines elsewhere."""

    def __init__(self, stage: str, total: int) -> None:
        self._stage, self._total = stage, total
        self._speaks = hosts.is_main_process()
        self._live = sys.stdout.isatty()
        self._start = time.perf_counter()
        self._first: int | None = None

    def show(self, step: int, **values: str | float) -> None:
        """Report ``step`` of the total, with named values and the time left; the first process does."""
        if not self._speaks:
            return
        if self._first is None:
            self._first = step - 1
        elapsed = time.perf_counter() - self._start
        left = elapsed / max(1, step - self._first) * (self._total - step)
        parts = [
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        ]
        line = f"{self._stage} {step}/{self._total}  {'  '.join(parts)}  [{_clock(elapsed)}<{_clock(left)}]"
        if self._live:
            rewrite(line, last=step >= self._total)
        else:
            tell(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
