"""Checkpoints that several processes write together, one of them damaged, read by as many and by fewer."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_checkpoint_damage import flip
from test_train_checkpoint import assert_same, make_state, over, read

from mmrl import hosts
from mmrl.train import checkpoint
from mmrl.train.stop_signal import Interrupted, catch_stop_signals

COUNT = 2


@pytest.mark.exhaustive
def test_in_children(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={8 // COUNT}"
    paths = os.pathsep.join([*(str(Path(__file__).parents[k]) for k in (0, 1)), *sys.path])
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(port), str(process), tmp_path],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(COUNT)
    ]
    try:
        told = [child.communicate(timeout=300)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for child, text in zip(children, told, strict=True):
        assert child.returncode == 0, text[-3000:]
        assert "is as it was" in text
    # And by one process, onto one device.
    saved, said = read(tmp_path / "saved")
    assert (saved.step, saved.facts, said) == (2, {"step": 2}, [])
    assert_same(saved.state, make_state(2))


def child(port, process, folder):
    """What each of the processes does."""
    hosts.join(f"localhost:{port}", COUNT, process)
    state = {step: make_state(step, over(8, 1)) for step in (1, 2, 3)}
    kept = folder / "saved"
    with catch_stop_signals() as stop:
        with checkpoint.open_manager(kept, 2) as manager:
            for step in (1, 2):
                checkpoint.save(manager, step, state[step], {"step": step})
        # One process is asked to stop, all do.
        if process == 1:
            stop.requested = "SIGTERM"
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()
    # The two largest files of the weights, about one for each process.
    written = sorted((kept / "2" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    files = [*(path.relative_to(kept) for path in written[-2:]), Path("2", "run", "metadata")]
    for number, file in enumerate(files):
        damaged = folder / str(number)
        with hosts.on_main_process() as acting:
            if acting:
                shutil.copytree(kept, damaged)
                flip(damaged / file, (damaged / file).stat().st_size // 2, 3)
        said = []
        with checkpoint.open_manager(damaged, 2) as manager:
            saved = checkpoint.restore(manager, state[3], said.append)
            for a, b in zip(jax.tree.leaves(saved.state), jax.tree.leaves(state[saved.step]), strict=True):
                for mine, other in zip(a.addressable_shards, b.addressable_shards, strict=True):
                    np.testing.assert_array_equal(mine.data, other.data)
            assert hosts.gather([saved.step, len(said)]) == [[1, 1]] * COUNT
            checkpoint.save(manager, 3, state[3], {})
    print("all is as it was")


if __name__ == "__main__":
    child(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
