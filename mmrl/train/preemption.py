"""When to save besides every so many steps: a notice that the machine is taken away, Ctrl-C, and minutes."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mmrl import hosts

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Notice:
    """Whether the run has been asked to stop."""

    given: str | None = None  # name of the first signal that came


class Interrupted(Exception):
    """The run was asked to stop; what is to be kept must be saved now."""


def interrupt(notice: Notice) -> None:
    """Raise `Interrupted` in all processes if one of them was asked to stop; each must call this."""
    given = [name for name in hosts.gather(notice.given) if name is not None]
    if given:
        raise Interrupted(given[0])


@contextmanager
def watch() -> Iterator[Notice]:
    """While open, SIGTERM and SIGINT (Ctrl-C) only mark the notice, so that the last step can be saved.

    Ctrl-C after that raises `KeyboardInterrupt` at once. On leaving, the handlers are as they were.

    Raises:
      ValueError: called outside the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("signals can be watched for in the main thread only")
    notice = Notice()

    def handle(number: int, _: FrameType | None) -> None:
        if notice.given is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        notice.given = signal.Signals(number).name
        more = "; Ctrl-C ends it at once" if number == signal.SIGINT else ""
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{notice.given}: the last step is saved, then the run ends{more}\n".encode())

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python, which cannot be set again from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def due(saved: float, minutes: float, now: float) -> bool:
    """Whether ``minutes`` (0: never) have passed since ``saved``; both times are of `time.monotonic`."""
    return minutes > 0 and now - saved >= 60 * minutes
