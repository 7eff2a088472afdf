"""A run's folder: what is needed to reproduce the run, and the refusal to mix two runs in one folder."""

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmrl import hosts
from mmrl.atomic import (
    NO_LOCKS,
    atomic_write,
    remove,
    remove_partial,
    set_aside,
    write_jsonl,
)
from mmrl.config import Config
from mmrl.run_folder import config_of, differing, starts_of
from mmrl.terminal import one_line
from mmrl.train.checkpoint import saved_steps
from mmrl.train.environment import environment
from mmrl.train.stop_signal import Interrupted

# Made in the folder of a run before its first step.
_MADE = (
    *("checkpoints", "cold_start", "config.json", "lock", "metrics.jsonl"),
    *("skipped_rows.jsonl", "starts.jsonl", "tensorboard", "world"),
)


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it until the block, or the process, ends.

    What a killed run was writing there is deleted. A start that fails in a folder without a run before it has
    taken a step leaves the folder as it was, so that a corrected command can begin there.
    Of several processes the first does so for all.

    Raises:
      ValueError: the folder cannot be made or written, or a run is in it (its process is named).
    """
    if not hosts.is_main_process():
        yield
        return
    there = workdir.exists()
    _make(workdir)
    lock = _acquire(workdir / "lock")
    try:
        remove_partial(workdir)
        with _undo_failed_start(workdir, there):
            yield
    finally:
        lock.release()


@contextmanager
def _undo_failed_start(workdir: Path, there: bool) -> Iterator[None]:
    """Undo what a start has written that fails before its first step, where no run was before.

    ``there``: whether the folder was.
    """
    before = {entry.name for entry in workdir.iterdir()}
    try:
        yield
    except Exception as error:
        logs = (workdir / "metrics.jsonl", workdir / "cold_start" / "metrics.jsonl")
        begun = "config.json" in before or any(log.is_file() and log.stat().st_size for log in logs)
        if not begun and not isinstance(error, Interrupted):
            for name in {*_MADE} - (before - {"lock"}):
                remove(workdir / name)
            if not there and not any(workdir.iterdir()):
                workdir.rmdir()
        raise


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        holder = path.read_text(errors="replace").strip() or "unknown"
        raise ValueError(
            f"{path.parent} is in use by another run (process {holder}); wait for it, end it, or name another"
            " --workdir"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ValueError(f"--workdir={path.parent} cannot be written: {error}") from error
    with _os_errors_as_value_errors(path.parent), path.open("w") as file:
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        os.fsync(file.fileno())
    return lock


def open_workdir(config: Config, workdir: Path) -> None:
    """Make the folder and write ``config.json``, or check that it agrees.

    Raises:
      ValueError: the folder cannot be written, or belongs to a run with another config (the keys are named).
    """
    _make(workdir)
    before = config_of(workdir)
    if before is not None:
        check_same(config, before, f"{workdir}")
    if hosts.is_main_process():
        with _os_errors_as_value_errors(workdir):
            atomic_write(workdir / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")


def check_same(config: Config, before: Config, what: str) -> None:
    """Raises ValueError naming the keys in which ``config`` contradicts that of ``what``."""
    keys = differing(config, before)
    if keys:
        raise ValueError(
            f"{what} holds a run with another config ({'; '.join(keys)}); name another --workdir, "
            "or delete this one"
        )


def record_start(
    workdir: Path,
    fingerprints: dict[str, str],
    say: Callable[[str], None],
    commits: dict[str, str] | None = None,
    chosen: dict[str, Any] | None = None,
) -> None:
    """Add a row to ``starts.jsonl``: when, by which command, what computes, from which step, on which data.

    Args:
      workdir: the run's folder.
      fingerprints: of each data source, by the config's key that names it.
      say: takes a warning of libraries that are not those of the last start.
      commits: of what is from the hub, by kind and name; a run that goes on takes those it began with.
      chosen: values of keys that the config leaves open, likewise.

    Raises:
      ValueError: data is not that of the first start that read it (the key is named), or the folder cannot
        be written.
    """
    starts, damaged = starts_of(workdir)
    for key, fingerprint in fingerprints.items():
        first = next((start["data"][key] for start in starts if key in start["data"]), fingerprint)
        if first != fingerprint:
            raise ValueError(
                f"config.{key} is not the data that the run in {workdir} began with (fingerprint"
                f" {one_line(first[:12])} then, {fingerprint[:12]} now); put that back, or name another"
                " --workdir"
            )
    here = environment()
    if starts:
        _warn(starts[-1]["libraries"], here["libraries"], say)
    if not hosts.is_main_process():
        return
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "step": max(saved_steps(workdir / "checkpoints"), default=0),
        "cold_start_step": max(saved_steps(workdir / "cold_start" / "checkpoints"), default=0),
        "data": fingerprints,
        "hub": commits or {},
        "chosen": chosen or {},
        **here,
    }
    with _os_errors_as_value_errors(workdir):
        set_aside(damaged, say)
        write_jsonl(workdir / "starts.jsonl", [*starts, row])


def _warn(before: dict[str, str], now: dict[str, str], say: Callable[[str], None]) -> None:
    changed = [
        f"{name} {before.get(name, 'missing')} then, {now.get(name, 'missing')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        say(f"warning: other versions than at the last start ({'; '.join(changed)}): results may differ")


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be made: {error}") from error
    if not os.access(workdir, os.W_OK):
        raise ValueError(f"--workdir={workdir} is not writable")


@contextmanager
def _os_errors_as_value_errors(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be written: {error}") from error
