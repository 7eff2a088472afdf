"""Being asked to end."""

import signal
import threading


class Terminated(KeyboardInterrupt):
    """The launcher itself was asked to end by SIGTERM."""


def with_signals() -> None:
    """Have SIGTERM, which a sweep sends, be treated as Ctrl-C is: with a clean-up."""

    def stop(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
