"""How much the readers are tried: a little in every run, the same each time; long in `make exhaustive`."""

import os

import pytest
from fuzzing import Fuzzer
from huggingface_hub import constants

LITTLE = 12  # inputs of a reader
LONG = 1000


@pytest.fixture(
    params=[pytest.param(False, id="little"), pytest.param(True, id="long", marks=pytest.mark.exhaustive)]
)
def fuzz(request, tmp_path, monkeypatch):
    """Gives readers inputs, from a folder of its own; see `Fuzzer`."""
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # a text may be a name on the hub
    fuzzer = Fuzzer(folder, LONG if request.param else LITTLE, not request.param)
    if request.param:  # told at the end of the session, see `pytest_terminal_summary` in tests/conftest.py
        request.node.user_properties.append(("fuzzed", fuzzer.tally))
    return fuzzer
