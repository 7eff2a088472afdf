"""``python -m launch local``: several processes on this machine, as if each were a host."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import local_processes, request
from launch.local_devices import Shares, shares
from launch.local_processes import LOST, STOPPED, Ended, Process
from mmrl.terminal import command, tell

MMRL = (sys.executable, "-m", "mmrl.cli")


def arguments(sub: argparse.ArgumentParser) -> None:
    """What ``launch local`` takes."""
    request.arguments(sub)
    sub.add_argument("--processes", type=int, default=4, metavar="N", help="how many (default: %(default)s)")
    sub.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start all again so many times if one is killed; the run goes on from its last checkpoint",
    )
    sub.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run all processes to their end; 0, or the status that says why not."""
    from mmrl.config import resolve
    from mmrl.experiment import load

    if options.processes < 1:
        raise ValueError(f"--processes={options.processes}: at least one")
    if options.restarts < 0:
        raise ValueError(f"--restarts={options.restarts}: 0 or more")
    config = resolve(load(options.config, overrides))
    mesh = {axis: getattr(config.mesh, axis) for axis in ("replica", "data", "fsdp", "tensor")}
    parts = shares(options.processes, mesh, os.environ)
    workdir = Path(options.workdir)
    words = [*MMRL, "train", f"--config={options.config}", f"--workdir={workdir}", *overrides]
    if options.dry_run:
        for process in together(words, parts, workdir, os.environ):
            tell(_shown(process))
        return 0
    return keep_running(words, parts, workdir, options.restarts)


def keep_running(
    words: Sequence[str], parts: Shares, workdir: Path, restarts: int, to_notice: float = 10.0
) -> int:
    """Run ``words`` in one process for each part, again if one was lost; 0, or the status that says why."""
    count = len(parts.variables)
    devices = f"{parts.each} {parts.kind} device{'s' if parts.each > 1 else ''}"
    _say(f"{count} process{'es' if count > 1 else ''} of {devices} each")
    if count > 1:
        _say(f"this is the output of process 0; those of others go to {workdir / 'logs'}")
    for left in range(restarts, -1, -1):
        ended = local_processes.run(together(words, parts, workdir, os.environ), to_notice)
        again = not ended.asked and (ended.status == LOST or ended.status < 0)
        if not (again and left):
            break
        _say(f"{_why(ended)}; starting all again, {left} of {restarts} restarts left")
    return _told(ended, again, workdir)


def together(
    words: Sequence[str], parts: Shares, workdir: Path, environment: Mapping[str, str]
) -> list[Process]:
    """The processes of a run that meet at a port that is free now; the first one has the terminal."""
    count = len(parts.variables)
    meeting = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"] if count > 1 else []
    return [
        Process(
            words=[*words, *meeting, *([f"--process={number}"] if meeting else [])],
            environment={**environment, **variables},
            log=workdir / "logs" / f"process{number}.log" if number else None,
        )
        for number, variables in enumerate(parts.variables)
    ]


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _told(ended: Ended, again: bool, workdir: Path) -> int:
    """Say how it ended; the status of all."""
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


def _shown(process: Process) -> str:
    """The command as one could paste it into a shell."""
    added = {name: value for name, value in process.environment.items() if os.environ.get(name) != value}
    text = " ".join([*(f"{name}={command(value)}" for name, value in added.items())])
    text = f"{text} {command(*process.words)}".strip()
    return f"{text} >> {command(process.log)} 2>&1 &" if process.log else f"{text} &"


def _say(text: str) -> None:
    tell(f"launch: {text}", error=True)
