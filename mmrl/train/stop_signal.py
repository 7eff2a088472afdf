"""The stop signal: SIGTERM or Ctrl-C asks a run to save its last step and end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mmrl import hosts

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to stop; what is to be kept must be saved now."""


@dataclass
class StopSignal:
    """A request that the run stop, as this process has seen it."""

    requested: str | None = None  # name of the first signal that came

    def should_stop(self) -> bool:
        """True once this process was asked to."""
        return self.requested is not None

    def check(self) -> None:
        """Raise `Interrupted` in all processes if one of them was asked to stop; each must call this."""
        names = [name for name in hosts.gather(self.requested) if name is not None]
        if names:
            raise Interrupted(names[0])


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """While open, SIGTERM and SIGINT (Ctrl-C) only request the stop, so that the last step can be saved.

    Ctrl-C after that raises `KeyboardInterrupt` at once. On leaving, the handlers are as they were.

    Raises:
      ValueError: called outside the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("signals can be watched for in the main thread only")
    stop = StopSignal()

    def handle(number: int, _: FrameType | None) -> None:
        if stop.requested is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        stop.requested = signal.Signals(number).name
        more = "; Ctrl-C ends it at once" if number == signal.SIGINT else ""
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{stop.requested}: the last step is saved, then the run ends{more}\n".encode())

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python, which cannot be set again from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
