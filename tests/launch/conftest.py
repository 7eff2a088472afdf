"""Google Cloud as the launchers' tests have it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud import STANDINS, Cloud

from launch import tpu

ON_WORKERS = ("hostname", "mountpoint", "uv", "gcsfuse", "sudo")


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """A clone with one experiment in one commit."""
    root = tmp_path_factory.mktemp("clone")
    (root / "experiments").mkdir()
    tiny = "from mmrl.config import template\n\n\ndef get_config(arg):\n    return template()\n"
    (root / "experiments" / "tiny.py").write_text(tiny)
    (root / "constraints.txt").write_text("")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    return root


@pytest.fixture
def cloud(tmp_path, clone, monkeypatch) -> Iterator[Cloud]:
    state, root, bin_ = tmp_path / "state", tmp_path / "clone", tmp_path / "bin"
    shutil.copytree(clone, root)
    (state / "worker-bin").mkdir(parents=True)
    (state / "slices").mkdir()
    bin_.mkdir()
    # Without site packages Python starts in a third of the time, which counts: it is started a hundred times.
    text = (STANDINS / "gcloud").read_text().replace("/usr/bin/env python3", f"{sys.executable} -IS", 1)
    (bin_ / "gcloud").write_text(text)
    (bin_ / "gcloud").chmod(0o755)
    for name in ON_WORKERS:
        (state / "worker-bin" / name).symlink_to(STANDINS / "other")
    (state / "worker-bin" / "mmrl").symlink_to(STANDINS / "mmrl")
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LAUNCH_STANDIN", str(state))
    monkeypatch.chdir(root)
    monkeypatch.setattr(tpu, "handle_sigterm", lambda: None)
    made = Cloud(state, root)
    made.set()
    made.endings()
    yield made
    (state / "finish").touch()
