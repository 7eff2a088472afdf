"""Runs of a sweep as processes, some at once; one line says how far they are."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmrl.sweep.definition import SweepRun, early_config, early_stages_done, share_stages

_POLL_S = 0.1  # between two looks at the processes
_SHOW_S = 1.0  # between two lines of progress
_TAIL = 1 << 16  # bytes at the end of a file that are read

Running = list[tuple[SweepRun, subprocess.Popen]]


@dataclass
class Outcome:
    """Runs of one call, by how they ended."""

    finished: list[SweepRun] = field(default_factory=list)
    failed: list[tuple[SweepRun, str]] = field(default_factory=list)  # with the last line of the log
    elsewhere: list[SweepRun] = field(default_factory=list)  # exit status 0, and no summary here
    signal: int | None = None  # the first that asked to stop


def execute(
    runs: Sequence[SweepRun],
    pending: Sequence[SweepRun],
    command: Sequence[str],
    at_once: int,
    *,
    wait: bool,
    show: Callable[[str], None],
) -> Outcome:
    """Run ``pending``, ``at_once`` at a time; a failure ends none of the others.

    SIGINT and SIGTERM are passed on to the runs, each of which saves its last step; no further one is begun.

    Args:
      runs: all runs of the sweep, whose stages may be shared.
      pending: those to be run, in order; one whose early stages are being made by another lets later ones
        go first.
      command: what goes before a run's words; its output is added to ``log.txt`` in the run's folder.
      at_once: processes.
      wait: whether a run waits for stages that another is making; not where they are made in other places.
      show: takes the line of progress.
    """
    outcome, queue = Outcome(), list(pending)
    running: Running = []
    before = sum(map(_progress, pending))
    start, shown, forwarded = time.monotonic(), 0.0, 0
    with _record_signals() as signals:
        while queue or running:
            changed = _collect(running, outcome, stopping=bool(signals))
            for number in signals[forwarded:]:
                outcome.signal = signals[0]
                queue.clear()
                for _, process in running:
                    process.send_signal(number)
                forwarded += 1
            while len(running) < at_once and (run := _pop_ready(queue, running, wait)) is not None:
                running.append((run, _start(run, runs, command)))
                changed = True
            if changed or time.monotonic() - shown > _SHOW_S:
                shown = time.monotonic()
                unfinished = sum(1 - _progress(run) for run in [*queue, *(run for run, _ in running)])
                progress = sum(map(_progress, pending)) - before
                left = _clock((shown - start) * unfinished / progress) if progress else "?"
                failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
                done = f"{len(outcome.finished) + len(outcome.elsewhere)}/{len(pending)} done"
                times = f"[{_clock(shown - start)}<{left}]"
                show(f"sweep {done}, {len(running)} running{failed}  {times}")
            if running:
                time.sleep(_POLL_S)
    return outcome


def last_line(log: Path) -> str:
    """The last line of a run's output that says something, without control characters."""
    text = _read_tail(log).decode(errors="replace")
    lines = [re.sub(r"[^ -~\u00a0-\uffff]", "", line).strip() for line in re.split(r"[\r\n]", text)]
    return next((line[:300] for line in reversed(lines) if line), "it said nothing")


def _pop_ready(queue: list[SweepRun], running: Running, wait: bool) -> SweepRun | None:
    """Takes the first run that need not wait for stages which another run is making; None if all must."""
    made_now = [early_config(run.config) for run, _ in running if wait and not early_stages_done(run)]
    for k, run in enumerate(queue):
        if not made_now or early_stages_done(run) or early_config(run.config) not in made_now:
            return queue.pop(k)
    return None


def _start(run: SweepRun, runs: Sequence[SweepRun], command: Sequence[str]) -> subprocess.Popen:
    run.workdir.mkdir(parents=True, exist_ok=True)
    donor = share_stages(run, runs)
    with (run.workdir / "log.txt").open("a") as log:
        if donor is not None:
            log.write(f"mmrl sweep: the stages before reinforcement learning are those of {donor.name}\n")
            log.flush()
        # In a session of its own: Ctrl-C reaches it once, from here, and not from the terminal too.
        return subprocess.Popen(
            [*command, *run.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _collect(running: Running, outcome: Outcome, stopping: bool) -> bool:
    """Moves the runs whose processes have ended to the outcome; whether there were any."""
    ended = [pair for pair in running if pair[1].poll() is not None]
    for run, process in ended:
        running.remove((run, process))
        if (run.workdir / "summary.json").is_file():
            outcome.finished.append(run)
        elif process.returncode == 0:
            outcome.elsewhere.append(run)
        elif not stopping:
            outcome.failed.append((run, last_line(run.workdir / "log.txt")))
    return bool(ended)


def _progress(run: SweepRun) -> float:
    """Share of its steps of reinforcement learning that a run has taken."""
    for line in reversed(_read_tail(run.workdir / "metrics.jsonl").splitlines()):
        try:
            return min(1.0, json.loads(line)["step"] / run.config.train.steps)
        except (ValueError, KeyError, TypeError):  # a line that is being written, or was cut
            continue
    return 0.0


def _read_tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            return file.read()
    except OSError:
        return b""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _record_signals() -> Iterator[list[int]]:
    """While open, SIGINT and SIGTERM are only recorded, in order."""
    signals: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _: signals.append(got)) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
