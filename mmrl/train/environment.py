"""Environment of a run: versions, commit, machine, devices."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_LIBRARIES = (
    "mmrl",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "numpy",
    "pillow",
    "pyarrow",
    "math-verify",
)
_VARIABLES = ("JAX_", "XLA_", "LIBTPU_")  # of the environment, that change what is compiled


def versions() -> dict[str, str]:
    """Versions of mmrl and of the libraries that decide what it computes, of those that are there."""
    found = {name: _version(name) for name in _LIBRARIES}
    return {name: version for name, version in found.items() if version is not None}


def environment() -> dict[str, Any]:
    """Commit, machine, libraries, variables, devices and number of processes, as JSON."""
    device = jax.devices()[0]
    return {
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": versions(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
        "devices": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "processes": jax.process_count(),
    }


def commit(package: Path) -> dict[str, Any] | None:
    """Hash of the commit that ``package`` lies in, and whether its files differ; None outside a repository.

    A package installed somewhere inside another project's repository is not of that repository.
    """
    if not _git(package, "ls-files", "."):
        return None
    return {"hash": _git(package, "rev-parse", "HEAD"), "changed": bool(_git(package, "status", "-s", "."))}


def _git(where: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(where), *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):  # no git, or a repository on a disk that hangs
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
