"""``python -m launch local``: several processes on this machine, begun and ended together."""

import argparse
import contextlib
import importlib.util
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import request
from launch.request import LOST, STOPPED
from mmrl.terminal import command, tell

MMRL = (sys.executable, "-m", "mmrl.cli")
_COUNT = "--xla_force_host_platform_device_count"
# Seconds that the others have to say how the end of one looks to them. They would wait for it in vain.
_TO_NOTICE = 10.0
_BETWEEN_LOOKS = 0.05


def arguments(sub: argparse.ArgumentParser) -> None:
    """Options of ``launch local``."""
    request.run_arguments(sub)
    sub.add_argument("--processes", type=int, default=4, metavar="N", help="how many (default: %(default)s)")
    restarts = "start all again so many times if one is killed; the run goes on from its last checkpoint"
    sub.add_argument("--restarts", type=int, default=0, metavar="N", help=restarts)
    sub.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run all processes to their end; 0, or the status that says why not."""
    request.check_at_least(options, "processes", 1)
    request.check_at_least(options, "restarts", 0)
    mesh = request.mesh_sizes(options.config, overrides)
    shares = device_shares(options.processes, mesh, os.environ)
    workdir = Path(options.workdir)
    words = [*MMRL, "train", f"--config={options.config}", f"--workdir={workdir}", *overrides]
    if options.dry_run:
        for process in processes(words, shares, workdir, os.environ):
            tell(_shell_line(process))
        return 0
    return keep_running(words, shares, workdir, options.restarts)


@dataclass(frozen=True)
class Shares:
    """Devices of the processes.

    Attributes:
      kind: "CPU" or "GPU".
      each: devices of a process.
      variables: of the environment of each process, added to what is there.
    """

    kind: str
    each: int
    variables: tuple[Mapping[str, str], ...]


def device_shares(count: int, mesh: Mapping[str, int], environment: Mapping[str, str]) -> Shares:
    """Equal parts of the GPUs if jax can use some; else as many virtual CPU devices as ``mesh`` needs.

    Raises:
      ValueError: the devices, or those of the mesh, cannot be parted so.
    """
    gpus = visible_gpus(environment)
    if not gpus:
        each = cpu_devices(count, mesh)
        flags = re.sub(rf"{_COUNT}=\S*", "", environment.get("XLA_FLAGS", "")).split()
        # Else processes on a machine with a TPU would each claim all of it.
        variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, f"{_COUNT}={each}"])}
        return Shares("CPU", each, (variables,) * count)
    if len(gpus) % count:
        counts = [str(n) for n in range(1, len(gpus) + 1) if len(gpus) % n == 0]
        raise ValueError(
            f"--processes={count}: {len(gpus)} GPUs ({', '.join(gpus)}) cannot be shared out equally; "
            f"take {' or '.join(counts)}, or the CPU with JAX_PLATFORMS=cpu in front of the command"
        )
    each = len(gpus) // count
    parts = [gpus[k * each : (k + 1) * each] for k in range(count)]
    return Shares("GPU", each, tuple({"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts))


def cpu_devices(count: int, mesh: Mapping[str, int]) -> int:
    """The least number of devices of each process that the sizes of ``mesh`` (one may be -1) allow.

    Raises:
      ValueError: the mesh has a number of devices that does not divide by the processes, or its ``expert``
        and ``tensor`` would reach over processes.
    """
    known = math.prod(size for size in mesh.values() if size > 0)
    whole = count * math.prod(max(mesh.get(axis, 1), 1) for axis in ("expert", "tensor"))
    total = math.lcm(known, whole) if -1 in mesh.values() else known
    if total % whole:
        sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.items())
        raise ValueError(
            f"--processes={count}: the {total} devices of config.mesh ({sizes}) cannot be shared out "
            "equally, each process holding all of expert and tensor; leave one size at -1, or take another "
            "number"
        )
    return total // count


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that jax would use, as CUDA_VISIBLE_DEVICES names them."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return ()
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return ()
    if "CUDA_VISIBLE_DEVICES" in environment:
        return tuple(name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip())
    if not shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath)):
        return ()
    words = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return tuple(found.stdout.split()) if found.returncode == 0 else ()


@dataclass(frozen=True)
class LocalProcess:
    """A process to be started; its output is appended to ``log``, or goes to the terminal."""

    words: Sequence[str]
    environment: Mapping[str, str]
    log: Path | None = None


@dataclass(frozen=True)
class Ended:
    """The end of a run: the process that ended first of all, rather than for the end of another.

    Attributes:
      status: 0, or why not. Negative is the number of the signal that killed it.
      process: its number.
      said: the end of what it wrote to its log; "" for one that wrote to the terminal.
      asked: the signal that this process was given meanwhile and passed on, if any.
    """

    status: int
    process: int
    said: str
    asked: int | None = None


def processes(
    words: Sequence[str], shares: Shares, workdir: Path, environment: Mapping[str, str]
) -> list[LocalProcess]:
    """The processes of a run that meet at a port that is free now; the first one has the terminal."""
    count, meeting = len(shares.variables), []
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", f"--processes={count}"]
    return [
        LocalProcess(
            words=[*words, *meeting, *([f"--process={number}"] if meeting else [])],
            environment={**environment, **variables},
            log=workdir / "logs" / f"process{number}.log" if number else None,
        )
        for number, variables in enumerate(shares.variables)
    ]


def keep_running(
    words: Sequence[str], shares: Shares, workdir: Path, restarts: int, to_notice: float = _TO_NOTICE
) -> int:
    """Run ``words`` in one process for each part, again if one was lost; 0, or the status that says why."""
    count = len(shares.variables)
    devices = f"{shares.each} {shares.kind} device{'s' if shares.each > 1 else ''}"
    _say(f"{count} process{'es' if count > 1 else ''} of {devices} each")
    if count > 1:
        _say(f"this is the output of process 0; those of others go to {workdir / 'logs'}")
    for left in range(restarts, -1, -1):
        ended = run_together(processes(words, shares, workdir, os.environ), to_notice)
        again = not ended.asked and (ended.status == LOST or ended.status < 0)
        if not (again and left):
            break
        _say(f"{_why(ended)}; starting all again, {left} of {restarts} restarts left")
    if ended.status == 0:
        return 0
    if ended.asked or ended.status in STOPPED:
        status = 128 + ended.asked if ended.asked else ended.status
        where = "here" if ended.status in STOPPED else "its last checkpoint"
        _say(f"stopped by {signal.Signals(status - 128).name}; the same command goes on from {where}")
        return status
    if ended.said:
        _say(f"the end of {workdir / 'logs' / f'process{ended.process}.log'}:\n{ended.said}")
    _say(_why(ended) + ("; the same command goes on from the last checkpoint" if again else ""))
    return LOST if again else ended.status


def _why(ended: Ended) -> str:
    if ended.status < 0:
        return f"process {ended.process} was killed by {signal.Signals(-ended.status).name}"
    if ended.status == LOST:
        return f"process {ended.process} lost another one"
    return f"process {ended.process} ended with status {ended.status}"


def _shell_line(process: LocalProcess) -> str:
    """The command as one could paste it into a shell."""
    added = {name: value for name, value in process.environment.items() if os.environ.get(name) != value}
    text = " ".join([*(f"{name}={command(value)}" for name, value in added.items())])
    text = f"{text} {command(*process.words)}".strip()
    return f"{text} >> {command(process.log)} 2>&1 &" if process.log else f"{text} &"


def _say(text: str) -> None:
    tell(f"launch: {text}", error=True)


def run_together(started: Sequence[LocalProcess], to_notice: float = _TO_NOTICE) -> Ended:
    """Start processes and wait until all have ended, of themselves or for one of them.

    SIGTERM and Ctrl-C are passed on to all, once: the run then saves its last step and all end. A second one
    ends them at once.
    """
    starts = [each.log.stat().st_size if each.log and each.log.exists() else 0 for each in started]
    with _noted_signals() as signals:
        running: list[subprocess.Popen[bytes]] = []
        try:
            for process in started:
                running.append(_start(process))
            order = _wait(running, signals, to_notice)
        finally:
            for child in running:
                # Its session, with all that it started, if something of that is left.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    failures = [(number, status) for number, status in order.items() if status not in (0, *STOPPED)]
    own = [(number, status) for number, status in failures if status != LOST]
    stopped = [(number, status) for number, status in order.items() if status]
    number, status = (own or failures or stopped or list(order.items()))[0]
    log = started[number].log
    said = _log_end(log, starts[number]) if log and status else ""
    return Ended(status, number, said, signals[0] if signals else None)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT that come within the block, in their order."""
    came: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(kind, lambda number, _: came.append(number)) for kind in kinds]
    try:
        yield came
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _start(process: LocalProcess) -> subprocess.Popen[bytes]:
    # Of a session of its own: the terminal's Ctrl-C would reach it beside the one that is passed on, and
    # two mean: at once.
    common: dict[str, Any] = {"env": dict(process.environment), "stdin": subprocess.DEVNULL}
    common["start_new_session"] = True
    if process.log is None:
        return subprocess.Popen(list(process.words), **common)
    process.log.parent.mkdir(parents=True, exist_ok=True)
    with process.log.open("ab") as file:
        return subprocess.Popen(list(process.words), stdout=file, stderr=subprocess.STDOUT, **common)


def _wait(
    running: Sequence[subprocess.Popen[bytes]], signals: Sequence[int], to_notice: float
) -> dict[int, int]:
    """Numbers and statuses of those that ended of themselves, in the order of their ends."""
    order: dict[int, int] = {}
    passed_on = 0
    failed_at: float | None = None
    while len(order) < len(running):
        for number, process in enumerate(running):
            if number not in order and process.poll() is not None:
                order[number] = process.returncode
        for kind in signals[passed_on:]:
            passed_on += 1
            if passed_on > 1:
                return {**order, **{k: -signal.SIGKILL for k in range(len(running)) if k not in order}}
            for process in running:
                process.send_signal(kind)
        if failed_at is None and any(status not in (0, *STOPPED) for status in order.values()):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + to_notice:
            return order
        time.sleep(_BETWEEN_LOOKS)
    return order


def _log_end(log: Path, start: int, lines: int = 20) -> str:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 20_000))
        return "\n".join(file.read().decode(errors="replace").rstrip().splitlines()[-lines:])
