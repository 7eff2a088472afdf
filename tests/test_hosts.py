"""Joining several processes; what they compute together is in tests/train/test_processes.py."""

import jax
import numpy as np
import pytest

from mmrl import hosts
from mmrl.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "needs --processes and --process"),
        (("localhost:1", 2, None), "needs --processes and --process"),
        (("auto", 2, 0), "--coordinator=auto neither"),
        (("localhost:1", 2, 2), "--process=2 is not one of 0 to 1"),
    ],
)
def test_join_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        hosts.join(*arguments)


def test_the_command_refuses(capsys, tmp_path):
    experiment = "experiments/quickstart.py:smoke"
    assert main(["train", f"--config={experiment}", f"--workdir={tmp_path}", "--processes=2"]) == 2
    assert "--processes and --process need --coordinator=HOST:PORT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_alone_a_message_comes_back():
    assert hosts.gather({"a": [1.5]}) == [{"a": [1.5]}]
    assert hosts.maximum(3, 1) == (3, 1)
    assert hosts.gather_rows(np.array([2, 0, 1]), ["c", "a", "b"]) == ["a", "b", "c"]
    with hosts.on_main_process() as writes:
        assert writes


def test_alone_an_error_is_no_loss():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), hosts.exit_on_lost_process():
        raise jax.errors.JaxRuntimeError("INTERNAL: something")
