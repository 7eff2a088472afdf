"""Following a run on a slice: its log as it grows, and how it ends."""

import re
from collections.abc import Sequence

from launch import tpu_slice, tpu_types
from launch.gcloud import Place
from launch.job import OTHERS
from launch.shell import Shell, clean
from launch.tpu_slice import Report, Slice
from mmrl.terminal import tell

LOOK = ("bash", "mmrl-job/worker.sh", "look")
# Statuses of `mmrl train` (docs/faults.md).
STOPPED = (130, 143)  # asked to stop; the last step is saved
SILENCES = 10  # looks in a row without an answer of all workers, before the run is given up
STRAGGLERS = 6  # looks at which some workers may still run after others have failed
PART = 65536  # bytes of a log that launch/worker.sh sends at once
GRACE = 4  # looks for the notice that a stopped run was taken away


class Lost(Exception):
    """The run ended for want of machines: it may be started again. ``disk``: the slice is gone as well."""

    def __init__(self, message: str, *, disk: bool) -> None:
        super().__init__(message)
        self.disk = disk


def follow(shell: Shell, wanted: Slice, poll: float) -> int:
    """Print the log of worker 0 until the run has ended on all workers; its status.

    Raises:
      Lost: the machines are gone, or one of them failed.
      ValueError: the workers do not answer.
    """
    name, place, hosts = wanted.name, wanted.place, tpu_types.host_count(wanted.topology)
    offset = silences = stragglers = 0
    while True:
        assumed = "".join(f"mmrl-worker w-{k} ended 0\n" for k in range(hosts))
        _, reports = tpu_slice.on_workers(shell, name, place, LOOK, assumed=assumed)
        if len(reports) < hosts:
            silences += 1
            if tpu_slice.gone(shell, name, place):
                raise Lost(f"{name} was taken away", disk=True)
            if silences == SILENCES:
                quiet = hosts - len(reports)
                raise ValueError(f"{quiet} of {hosts} workers of {name} have not answered {SILENCES} times")
            shell.say(f"waiting   {len(reports)} of {hosts} workers answer")
        else:
            silences = 0
            offset = show_log(shell, name, place, offset)
            stragglers += any(_failed(report) for report in reports)
            if stragglers > STRAGGLERS or all(report.word != "running" for report in reports):
                return _end(shell, wanted, reports, poll)
        shell.sleep(poll)


def show_log(shell: Shell, name: str, place: Place, offset: int) -> int:
    """Print what worker 0 has logged from byte ``offset`` on; where it ends."""
    while True:
        words = ("bash", "mmrl-job/worker.sh", "log", str(offset))
        assumed = f"mmrl-worker w-0 log {offset}"
        done, _ = tpu_slice.on_workers(shell, name, place, words, worker="0", assumed=assumed)
        text, _, last = done.out.rstrip("\n").rpartition("\n")
        match = re.fullmatch(r"mmrl-worker \S+ log (\d+)", last)
        if match is None:
            return offset
        for line in text.splitlines():
            tell(clean(line))
        before, offset = offset, int(match[1])
        if offset - before < PART:
            return offset


def _failed(report: Report) -> bool:
    return report.word in ("gone", "idle") or (report.word == "ended" and report.rest != "0")


def _end(shell: Shell, wanted: Slice, reports: Sequence[Report], poll: float) -> int:
    """What it means that workers ended as they did."""
    failed = [report for report in reports if _failed(report)]
    if not failed:
        return 0
    if tpu_slice.gone(shell, wanted.name, wanted.place):
        raise Lost(f"{wanted.name} was taken away", disk=True)
    own = [report for report in failed if report.word == "ended" and int(report.rest) not in OTHERS]
    if not own:
        workers = ", ".join(report.worker for report in failed)
        raise Lost(f"a process of the run is gone (ended: {workers})", disk=False)
    stopped = [report for report in own if int(report.rest) in STOPPED]
    if len(stopped) == len(own):
        # Before a spot slice is taken away its processes are asked to end; that it is gone is told later.
        for _ in range(GRACE if wanted.tier == "spot" else 0):
            shell.sleep(poll)
            if tpu_slice.gone(shell, wanted.name, wanted.place):
                raise Lost(f"{wanted.name} was taken away", disk=True)
        return int(stopped[0].rest)
    first = next(report for report in own if report not in stopped)
    show_tail(shell, wanted.name, wanted.place, first.worker)
    return int(first.rest)


def show_tail(shell: Shell, name: str, place: Place, host: str) -> None:
    """Print the last lines of the log of the worker on a host."""
    match = re.search(r"-w-(\d+)$", host)
    words = ("tail", "-n", "30", "mmrl-job/log")
    done, _ = tpu_slice.on_workers(shell, name, place, words, worker=match[1] if match else "0")
    shell.say(f"the log of {host} ends:")
    for line in done.out.splitlines():
        shell.say(f"  | {clean(line)}")
