"""Being asked to stop, and saving by minutes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mmrl.train.loop import minutes_passed
from mmrl.train.stop_signal import Interrupted, catch_stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed(number, capfd):
    with catch_stop_signals() as stop:
        assert stop.requested is None
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == number.name
        with pytest.raises(Interrupted, match=number.name):
            stop.check()
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert number.name in lines[0]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_that_ends_at_once(first):
    with catch_stop_signals() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == first.name


def test_handlers_are_as_they_were():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with catch_stop_signals():
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(RuntimeError), catch_stop_signals():
            raise RuntimeError
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_from_elsewhere(monkeypatch):
    """One that was set from C shows as None, and cannot be put back."""
    monkeypatch.setattr("mmrl.train.stop_signal.SIGNALS", (signal.SIGTERM,))
    real = signal.signal
    given = []

    def install(number, handler):
        given.append(handler)
        real(number, handler)

    monkeypatch.setattr("mmrl.train.stop_signal.signal.signal", install)
    with catch_stop_signals():
        pass
    assert given[1] == signal.SIG_DFL


def test_only_in_the_main_thread():
    faults = []

    def other():
        try:
            with catch_stop_signals():
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
from mmrl.train.stop_signal import catch_stop_signals
for _ in range(100):
    with catch_stop_signals() as stop:
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while stop.requested is None:
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
def test_minutes_passed(saved, minutes, now, expected):
    assert minutes_passed(saved, minutes, now) is expected
