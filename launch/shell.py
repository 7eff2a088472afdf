"""Running commands of other tools: shown first, with a time limit, tried again where that may help."""

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrl.terminal import command, printable, tell

MISSING = 127  # status of a command that is not installed, as shells say it
TOO_LONG = 124  # status of one that ran past its limit, as timeout(1) says it


def _print(line: str) -> None:
    tell(line, error=True)


@dataclass(frozen=True)
class Shell:
    """How commands are run: shown only (``dry_run``), or run; time is given so that tests need not wait."""

    dry_run: bool = False
    show: bool = False  # also say each command that is run
    say: Callable[[str], None] = _print
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    words: tuple[str, ...]
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Retry:
    """When and how often a command is tried again: ``transient`` is looked for in what it wrote."""

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
    input: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Done:
    """Run a command to its end and capture what it writes; a dry run shows it and takes ``assumed`` for that.

    A failure is in ``status``, never raised: `TOO_LONG` past ``timeout`` seconds, `MISSING` if there is no
    such program.
    """
    if shell.dry_run:
        tell(shown(words))
        return Done(tuple(words), 0, assumed, "")
    wait = retry.first_wait if retry else 0.0
    for left in range(retry.times if retry else 0, -1, -1):
        if shell.show:
            shell.say(f"$ {shown(words)}")
        done = _run(words, timeout, input, environment, folder)
        if not (left and retry and done.status and retry.transient.search(done.err + done.out)):
            break
        shell.say(f"{last_line(done)}; trying again in {wait:g} s ({left} left)")
        shell.sleep(wait)
        wait *= 2
    return done


def _run(
    words: Sequence[str],
    timeout: float,
    input: str | None,
    environment: Mapping[str, str] | None,
    folder: Path | None,
) -> Done:
    try:
        ended = subprocess.run(
            list(words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            env=environment,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Done(tuple(words), TOO_LONG, "", f"{words[0]} took longer than {timeout:g} s")
    except FileNotFoundError:
        return Done(tuple(words), MISSING, "", f"{words[0]} is not installed, or not on PATH")
    return Done(tuple(words), ended.returncode, ended.stdout, ended.stderr)


def shown(words: Sequence[str]) -> str:
    """A command as one could paste it into a shell."""
    return command(*words)


def last_line(done: Done) -> str:
    """What a command that failed said at last, on one line."""
    lines = [line.strip() for line in (done.err.strip() or done.out.strip()).splitlines() if line.strip()]
    return lines[-1] if lines else f"{done.words[0]} ended with status {done.status}"


def clean(line: str) -> str:
    """A line of a log without what a terminal would act on: a model may write it."""
    return printable(line.replace("\r", ""))


def tail(text: str, lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(text.rstrip().splitlines()[-lines:])
