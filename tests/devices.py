"""Tests on several devices: their count is fixed once jax has run, so a child runs them."""

import os
import subprocess
import sys

import jax
import pytest

IN_HASTE = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # children spend most of their time compiling


def run_on(devices: int, file: str, *words: str) -> None:
    """Run the tests of ``file`` in a process with so many virtual devices; skip in that process itself."""
    if jax.device_count() >= devices:
        pytest.skip("the devices are here")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-m", ""]  # of any marker
    child = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file, *words],
        env={**os.environ, **IN_HASTE, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert child.returncode == 0, child.stdout[-4000:] + child.stderr[-2000:]
