"""Commands of other tools: shown first, with a time limit, retried where that may help; and signals."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmrl.terminal import command, printable, tell

MISSING = 127  # status of a command that is not installed, as shells say it
TOO_LONG = 124  # status of one that ran past its limit, as timeout(1) says it


@dataclass(frozen=True)
class Shell:
    """Commands are shown only (``dry_run``), or run; time is given so that tests need not wait."""

    dry_run: bool = False
    say: Callable[[str], None] = lambda line: tell(line, error=True)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def say_lines(self, text: str, most: int) -> None:
        """Say the last lines of what another program wrote."""
        for line in text.rstrip().splitlines()[-most:]:
            self.say(f"  | {clean(line)}")

    def say_commands_only(self) -> "Shell":
        """In a dry run, a shell for all that follows: commands are shown, and nothing else is said."""
        if not self.dry_run:
            return self
        self.say("commands  in their order, where nothing goes wrong; none is run")
        return replace(self, say=lambda line: None)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    words: tuple[str, ...]
    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of what it wrote: of one that failed, why."""
        lines = [line.strip() for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return lines[-1] if lines else f"{self.words[0]} ended with status {self.status}"


@dataclass(frozen=True)
class Retry:
    """Retries of a command: ``transient`` is looked for in what it wrote."""

    times: int
    transient: re.Pattern[str]
    first_wait: float = 5.0  # seconds, doubled every time


def run(
    shell: Shell,
    words: Sequence[str],
    *,
    assumed: str = "",
    timeout: float = 600.0,
    retry: Retry | None = None,
    folder: Path | None = None,
) -> Done:
    """Run a command to its end and capture what it writes; a dry run shows it and takes ``assumed`` for that.

    A failure is in ``status``, never raised: `TOO_LONG` past ``timeout`` seconds, `MISSING` if there is no
    such program.
    """
    if shell.dry_run:
        tell(command(*words))
        return Done(tuple(words), 0, assumed, "")
    wait = retry.first_wait if retry else 0.0
    for left in range(retry.times if retry else 0, -1, -1):
        done = _run(words, timeout, folder)
        if not (left and retry and done.status and retry.transient.search(done.err + done.out)):
            break
        shell.say(f"{done.last_line}; trying again in {wait:g} s ({left} left)")
        shell.sleep(wait)
        wait *= 2
    return done


def _run(words: Sequence[str], timeout: float, folder: Path | None) -> Done:
    try:
        ended = subprocess.run(
            list(words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Done(tuple(words), TOO_LONG, "", f"{words[0]} took longer than {timeout:g} s")
    except FileNotFoundError:
        return Done(tuple(words), MISSING, "", f"{words[0]} is not installed, or not on PATH")
    return Done(tuple(words), ended.returncode, ended.stdout, ended.stderr)


def clean(line: str) -> str:
    """A line of a log without what a terminal would act on: a model may write it."""
    return printable(line.replace("\r", ""))


class Terminated(KeyboardInterrupt):
    """The launcher itself was asked to end by SIGTERM."""


def handle_sigterm() -> None:
    """Have SIGTERM, which a sweep sends, be treated as Ctrl-C is: with a clean-up."""

    def stop(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
