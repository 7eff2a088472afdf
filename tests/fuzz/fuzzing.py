"""What every reader is held to, whatever it is given, and the loop that gives it things.

A reader returns a value, or raises ValueError with one line that names what is wrong. Another exception, a
line that would do something to a terminal, a long wait, a lot of memory or a new file are faults.
"""

import contextlib
import io
import os
import resource
import signal
import time
import unicodedata
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from mmrl.cli import main
from mmrl.terminal import refuse

CPU_S = 10.0  # of one input
WALL_S = 120.0  # of one input, on a machine that does other things too; more is taken for a hang
MEMORY = 1 << 30  # bytes by which one input may raise the peak of the process
_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u2028\u2029")


class Fault(AssertionError):
    """A reader did what none should."""


@dataclass
class Fuzzer:
    """Gives readers inputs, and counts what became of them."""

    folder: Path  # everything is read here, and nothing may come to lie in it or beside it
    examples: int
    derandomize: bool
    tally: dict[str, int] = field(default_factory=lambda: {"accepted": 0, "refused": 0})
    outputs: set[str] = field(default_factory=set)  # names in it, of what a reader may write after all

    def __call__(
        self,
        inputs: SearchStrategy,
        read: Callable[[Any], Any],
        *,
        names: str | Callable[[Any], str] = "",
        lines: int = 1,
        share: float = 1.0,
    ) -> None:
        """Give ``read`` many inputs.

        Args:
          inputs: where they come from.
          read: the reader; what it returns has been checked by it.
          names: what every refusal must name, of the input; "" asks for nothing.
          lines: that a refusal may have, where it lists rows.
          share: of the usual number of inputs, for readers that are slow.
        """

        @settings(
            max_examples=max(4, round(self.examples * share)),
            derandomize=self.derandomize,
            database=None,
            deadline=None,
            print_blob=not self.derandomize,
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def each(value: Any) -> None:
            name = names(value) if callable(names) else names
            self.tally[examine(lambda: read(value), self.folder.parent, name, lines, self.outputs)] += 1

        each()


def examine(
    read: Callable[[], Any], folder: Path, name: str = "", lines: int = 1, outputs: Container[str] = ()
) -> str:
    """Call ``read`` and say "accepted" or "refused". Raises `Fault` for anything else."""
    before, start, peak = _tree(folder), time.process_time(), _peak()
    try:
        with _alarm():
            read()
        said = "accepted"
    except Fault:
        raise
    except ValueError as error:
        if isinstance(error, UnicodeError):
            raise Fault(f"a codec's error is shown as it is: {error!r:.300}") from error
        _check_message(_printed(error), name, lines)
        said = "refused"
    except OSError as error:  # which `main` prints by its file
        if error.filename is None:
            raise Fault(f"{error!r:.300}") from error
        _check_message(_printed(f"{error.filename}: {error.strerror}"), name, lines)
        said = "refused"
    except Exception as error:
        raise Fault(f"{type(error).__name__}: {str(error)[:300]!r}") from error
    spent, grown = time.process_time() - start, _peak() - peak
    if spent > CPU_S:
        raise Fault(f"{spent:.1f} s of processor time")
    if grown > MEMORY:
        raise Fault(f"{grown >> 20} MiB of memory")
    appeared = {
        path for path in _tree(folder) - before if not any(part in outputs for part in Path(path).parts)
    }
    if appeared:
        raise Fault(f"a file has appeared: {sorted(appeared)[0]}")
    return said


def command(*words: object) -> None:
    """Run an ``mmrl`` command; its refusal becomes a ValueError. What it says must suit a terminal."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stopped:  # argparse's own refusals
            status = stopped.code
            if status != 2:
                raise Fault(f"exit status {status}") from stopped
            return
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    for text in texts:
        wrong = [one for one in text if _moves(one) and one not in "\n\r\t"]
        if wrong:
            raise Fault(f"{wrong[0]!r} would reach the terminal")
    if status == 2:
        raise ValueError(texts[1].rpartition("mmrl: ")[2].removesuffix("\n"))
    if status:
        raise Fault(f"exit status {status}: {texts[1][-300:]!r}")


def _printed(error: object) -> str:
    """A refusal as `mmrl.cli.main` prints it."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        refuse(error)
    return err.getvalue().removeprefix("mmrl: ").removesuffix("\n")


def _check_message(text: str, name: str, lines: int) -> None:
    if not text.strip():
        raise Fault("a refusal without a word")
    for line in (told := text.split("\n")):
        wrong = [one for one in line if _moves(one) and one != "\t"]
        if wrong:
            raise Fault(f"{wrong[0]!r} in the refusal {text[:300]!r}")
    if len(told) > lines:
        raise Fault(f"a refusal of {len(told)} lines: {text[:300]!r}")
    if name not in text:
        raise Fault(f"the refusal does not name {name!r}: {text[:300]!r}")


def _moves(character: str) -> bool:
    """Whether a character does something to a terminal, or is none."""
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


def _tree(folder: Path) -> set[str]:
    return {str(Path(top) / name) for top, folders, files in os.walk(folder) for name in (*folders, *files)}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Fault(f"no end after {WALL_S:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
