"""The comparison with peers: mmrl's side runs, and a missing peer is one line."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def compared(what: str, folder: Path, peer: str) -> tuple[dict, str]:
    """The report and the table of a quick comparison."""
    file = folder / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.peers.compare", "--quick", f"--what={what}"),
            *("--threads=1", f"--peer-python={peer}", f"--json={file}"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


@pytest.mark.exhaustive
def test_generate_and_a_missing_peer(tmp_path):
    report, table = compared("generate", tmp_path, str(tmp_path / "no-python"))
    (ours,) = report["results"]["mmrl"]
    assert ours["prompt_tokens"] == 105
    assert 0 < ours["floor"]["milliseconds"] < 1e3 * ours["modes"]["mmrl"]["total"][0]["wall"]
    assert "no peer: transformers_generate" in table


@pytest.mark.exhaustive
def test_step_computes_each_image_once_a_program(tmp_path):
    report, table = compared("step", tmp_path, str(tmp_path / "no-python"))
    (ours,) = report["results"]["mmrl"]
    (step,) = ours["steps"]
    assert step["rollout"] + step["update"] < step["wall"]
    # 2 prompts of 256 patches, in prefill and update: not once a response.
    assert step["vision_patches"] == 2 * 256 * 2
    assert "no peer: trl_step" in table


@pytest.mark.exhaustive
def test_transformers_beside_mmrl(tmp_path):
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: the peer's side of the comparison")
    report, _ = compared("generate", tmp_path, sys.executable)
    (theirs,) = report["results"]["transformers_generate"]
    assert report["peer_missing"] == ""
    assert set(theirs["modes"]) == {"repeat", "num_return", "shared"}
    assert theirs["prompt_tokens"] == report["results"]["mmrl"][0]["prompt_tokens"]
