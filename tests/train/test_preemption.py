"""Being asked to stop, and saving by minutes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mmrl.train.preemption import Interrupted, due, interrupt, watch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed(number, capfd):
    with watch() as notice:
        assert notice.given is None
        interrupt(notice)
        os.kill(os.getpid(), number)
        assert notice.given == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.given == number.name
        with pytest.raises(Interrupted, match=number.name):
            interrupt(notice)
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert number.name in lines[0]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_that_ends_at_once(first):
    with watch() as notice:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert notice.given == first.name


def test_handlers_are_as_they_were():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with watch():
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(RuntimeError), watch():
            raise RuntimeError
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_from_elsewhere(monkeypatch):
    """One that was set from C shows as None, and cannot be put back."""
    monkeypatch.setattr("mmrl.train.preemption.SIGNALS", (signal.SIGTERM,))
    real = signal.signal
    given = []

    def install(number, handler):
        given.append(handler)
        real(number, handler)

    monkeypatch.setattr("mmrl.train.preemption.signal.signal", install)
    with watch():
        pass
    assert given[1] == signal.SIG_DFL


def test_only_in_the_main_thread():
    faults = []

    def other():
        try:
            with watch():
                pass
        except ValueError as error:
            faults.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert faults == ["signals can be watched for in the main thread only"]


def test_in_the_middle_of_printing():
    """A handler that printed would fail now and then: Python's streams are not to be entered twice."""
    text = """
import os, signal, threading, time
from mmrl.train.preemption import watch
for _ in range(100):
    with watch() as notice:
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while notice.given is None:
            print("x" * 2000, flush=True)
"""
    child = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stderr.count("SIGTERM") == 100


@pytest.mark.parametrize(
    ("saved", "minutes", "now", "expected"),
    [
        (100.0, 1, 159.9, False),
        (100.0, 1, 160.0, True),
        (100.0, 0.5, 130.0, True),
        (100.0, 0, 1e9, False),
        (-50.0, 1, 9.0, False),
    ],
)
def test_due(saved, minutes, now, expected):
    assert due(saved, minutes, now) is expected
