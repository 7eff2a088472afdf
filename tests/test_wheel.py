"""The wheel: it builds, holds all that the packages hold, and works where the repository is not."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip(*words):
    command = [sys.executable, "-m", "pip", *words, "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves its folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mmrl", source / "mmrl", ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", f"--wheel-dir={folder / 'dist'}", str(source))
    (found,) = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs Python with the wheel installed and the repository out of sight; gives what it printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    site = folder / "site"
    pip("install", f"--target={site}", str(wheel))
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words):
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.site = site
    return run


@pytest.mark.exhaustive
def test_it_holds_all_files_of_the_packages_and_no_others(wheel):
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mmrl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in there} == {".py", ".toml", ".html", ".css", ".js"}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == there


@pytest.mark.exhaustive
def test_it_works_outside_of_the_repository(run, fixtures_dir):
    model = str((fixtures_dir / "qwen2_5_vl").absolute())
    assert "mmrl COMMAND --help" in run(str(run.site / "bin" / "mmrl"), "--help")
    assert run(sys.executable, "-m", "mmrl.cli", "--version").startswith(f"mmrl {PROJECT['version']} (Python")
    assert "mathvista" in run(sys.executable, "-m", "mmrl.cli", "data", "list")
    loaded = (
        f"import mmrl; print(mmrl.__file__, len(mmrl.load({model!r}).score([{{'problem': 'a'}}], [['b']])))"
    )
    assert run(sys.executable, "-c", loaded).split() == [str(run.site / "mmrl" / "__init__.py"), "1"]


def test_the_version_stands_in_one_place():
    """Beside pyproject.toml only the citation has it; the package asks its metadata."""
    citation = re.search(r"version = \{(.*?)\}", (ROOT / "README.md").read_text())
    assert citation[1] == PROJECT["version"]
    assert not [path for path in (ROOT / "mmrl").rglob("*.py") if "__version__ =" in path.read_text()]


def test_there_are_extras_for_accelerators():
    extras = PROJECT["optional-dependencies"]
    assert all(extras[name][0].startswith(f"jax[{name}") for name in ("tpu", "cuda"))
