"""The run that nobody disturbs, which all others are compared with."""

import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.faults import command
from experiments.faults.compare import differences

TIMEOUT_S = 900.0  # of a run
WHOLE = "whole"  # its folder


def reference(workdir: Path) -> float:
    """Makes two of them, unless they are there; returns the seconds that the second took.

    The first compiles, the second reads the programs that the first has compiled, as do all that follow.

    Raises:
      RuntimeError: a run failed, or the two are not the same.
    """
    _compare_quietly()
    workdir.mkdir(parents=True, exist_ok=True)
    mark = workdir / "seconds.json"
    if mark.is_file():
        return json.loads(mark.read_text())
    seconds = 0.0
    for name in ("compiling", WHOLE):
        shutil.rmtree(workdir / name, ignore_errors=True)
        begin = time.monotonic()
        run = start(workdir, name)
        status = command.finish(run, TIMEOUT_S)
        if status != 0:
            raise RuntimeError(f"the undisturbed run failed with status {status}:\n{command.tail(run.log)}")
        seconds = time.monotonic() - begin
        say(f"undisturbed run in {seconds:.0f} s")
    found = differences(workdir / "compiling", workdir / WHOLE)
    if found:
        raise RuntimeError(f"two undisturbed runs differ: {'; '.join(found[:3])}")
    mark.write_text(json.dumps(seconds))
    return seconds


def start(workdir: Path, name: str, prefix: Sequence[str] = (), **more: str) -> command.Run:
    """The run in ``workdir / name``, begun or gone on with.

    ``prefix``: a command that runs the command that follows it. ``more``: variables of its environment.
    """
    folder = workdir / name
    log = workdir / "logs" / f"{name}.log"
    words = [*prefix, *command.command(folder)]
    return command.start(words, folder, log, command.environment(workdir / "cache", more))


def _compare_quietly() -> None:
    """Read checkpoints on the CPU, and without the libraries' remarks."""
    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("absl").setLevel(logging.ERROR)


def say(line: str) -> None:
    """Tell how far it is."""
    print(f"faults: {line}", file=sys.stderr, flush=True)
