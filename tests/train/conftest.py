"""One small run that the tests of the loop look at from all sides."""

from pathlib import Path

import pytest

from mmrl.config import resolve
from mmrl.experiment import load

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.py"


@pytest.fixture(scope="session")
def smoke_config():
    """The quickstart, shrunk to seconds."""
    return resolve(load(f"{QUICKSTART}:smoke"))


@pytest.fixture(scope="session")
def smoke_run(smoke_config, tmp_path_factory) -> Path:
    """The folder of a finished run of `smoke_config`."""
    from mmrl.train.stages import run

    workdir = tmp_path_factory.mktemp("smoke") / "run"
    run(smoke_config, workdir)
    return workdir
