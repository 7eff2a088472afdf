"""The runs of a sweep as processes, some at once; one line says how far they are."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from mmrl.sweep.plan import Member
from mmrl.sweep.sharing import early, made, share

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_S = 0.1  # between two looks at the processes
_SHOW_S = 1.0  # between two lines of progress
_TAIL = 1 << 16  # bytes at the end of a file that are looked at


@dataclass
class Ended:
    """How the runs of one call have ended."""

    finished: list[Member] = field(default_factory=list)
    failed: list[tuple[Member, str]] = field(default_factory=list)  # with the last that it said
    elsewhere: list[Member] = field(default_factory=list)  # ended well, and left no summary here
    signal: int | None = None  # the first that asked to stop


@dataclass
class _Work:
    """What is under way."""

    members: Sequence[Member]
    pending: list[Member]
    stages: dict[str, str]  # name of a run -> what its early stages depend on
    running: dict[str, tuple[Member, subprocess.Popen]] = field(default_factory=dict)
    ended: Ended = field(default_factory=Ended)


def execute(
    members: Sequence[Member],
    pending: Sequence[Member],
    command: Sequence[str],
    at_once: int,
    *,
    wait: bool,
    show: Callable[[str], None],
) -> Ended:
    """Run ``pending``, ``at_once`` at a time; a failure ends none of the others.

    SIGINT and SIGTERM are passed on to the runs, each of which saves its last step; no further one is begun.

    Args:
      members: all runs of the sweep, whose stages may be shared.
      pending: those to be run, in order; one whose early stages are being made by another lets later ones
        go first.
      command: what goes before a run's words; its output is added to ``log.txt`` in the run's folder.
      at_once: processes.
      wait: whether a run waits for stages that another is making; not where they are made in other places.
      show: takes the line of progress.
    """
    keys = {one.name: json.dumps(early(one.config), sort_keys=True, default=str) for one in pending}
    work = _Work(members, list(pending), keys)
    before = {one.name: _progress(one) for one in pending}
    start, shown, passed_on = time.monotonic(), 0.0, 0
    with _signals() as given:
        while work.pending or work.running:
            changed = _collect(work, bool(given))
            while passed_on < len(given):
                work.ended.signal = given[0]
                work.pending.clear()
                for _, process in work.running.values():
                    process.send_signal(given[passed_on])
                passed_on += 1
            while len(work.running) < at_once and (one := _next(work, wait)) is not None:
                _begin(work, one, command)
                changed = True
            if changed or time.monotonic() - shown > _SHOW_S:
                shown = time.monotonic()
                show(_line(work, pending, before, shown - start))
            if work.running:
                time.sleep(_LOOK_S)
    return work.ended


def last_line(log: Path) -> str:
    """The last line of a run's output that says something, without control characters."""
    text = _tail(log).decode(errors="replace")
    lines = [re.sub(r"[^ -~\u00a0-\uffff]", "", line).strip() for line in re.split(r"[\r\n]", text)]
    return next((line[:300] for line in reversed(lines) if line), "it said nothing")


def _next(work: _Work, wait: bool) -> Member | None:
    """Takes the first run that need not wait for stages which another run is making; None if all must."""
    making = {work.stages[one.name] for one, _ in work.running.values() if not made(one)} if wait else set()
    for k, one in enumerate(work.pending):
        if made(one) or work.stages[one.name] not in making:
            return work.pending.pop(k)
    return None


def _begin(work: _Work, one: Member, command: Sequence[str]) -> None:
    one.workdir.mkdir(parents=True, exist_ok=True)
    donor = share(one, work.members)
    with (one.workdir / "log.txt").open("a") as log:
        if donor is not None:
            log.write(f"mmrl sweep: the stages before reinforcement learning are those of {donor.name}\n")
            log.flush()
        # In a session of its own: Ctrl-C reaches it once, from here, and not from the terminal too.
        process = subprocess.Popen(
            [*command, *one.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    work.running[one.name] = one, process


def _collect(work: _Work, stopping: bool) -> bool:
    """Sorts the runs whose processes have ended; whether there were any."""
    over = [name for name, (_, process) in work.running.items() if process.poll() is not None]
    for name in over:
        one, process = work.running.pop(name)
        if (one.workdir / "summary.json").is_file():
            work.ended.finished.append(one)
        elif process.returncode == 0:
            work.ended.elsewhere.append(one)
        elif not stopping:
            work.ended.failed.append((one, last_line(one.workdir / "log.txt")))
    return bool(over)


def _line(work: _Work, asked: Sequence[Member], before: dict[str, float], seconds: float) -> str:
    """How many are done, running, failed; time spent, and left at the pace since this call began."""
    ended = work.ended
    done = sum(_progress(one) - before[one.name] for one in asked)
    undone = sum(1 - _progress(one) for one in [*work.pending, *(one for one, _ in work.running.values())])
    left = _clock(seconds * undone / done) if done else "?"
    text = (
        f"sweep {len(ended.finished) + len(ended.elsewhere)}/{len(asked)} done, {len(work.running)} running"
    )
    if ended.failed:
        text += f", {len(ended.failed)} failed"
    return f"{text}  [{_clock(seconds)}<{left}]"


def _progress(one: Member) -> float:
    """Share of its steps of reinforcement learning that a run has taken."""
    for line in reversed(_tail(one.workdir / "metrics.jsonl").splitlines()):
        try:
            return min(1.0, json.loads(line)["step"] / one.config.train.steps)
        except (ValueError, KeyError, TypeError):  # a line that is being written, or was cut
            continue
    return 0.0


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            return file.read()
    except OSError:
        return b""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While open, SIGINT and SIGTERM are only noted, in order."""
    given: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        given.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield given
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
