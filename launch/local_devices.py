"""What each of several processes on one machine gets of its devices, as variables of its environment."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

_COUNT = "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class Shares:
    """Devices of the processes.

    Attributes:
      kind: "CPU" or "GPU".
      each: devices of a process.
      variables: of the environment of each process, added to what is there.
    """

    kind: str
    each: int
    variables: tuple[Mapping[str, str], ...]


def shares(processes: int, mesh: Mapping[str, int], environment: Mapping[str, str]) -> Shares:
    """Equal parts of the GPUs if jax can use some; else as many virtual CPU devices as ``mesh`` needs.

    Raises:
      ValueError: the devices, or those of the mesh, cannot be parted so.
    """
    gpus = visible_gpus(environment)
    if gpus:
        return _gpu_shares(processes, gpus)
    each = cpu_devices(processes, mesh)
    flags = re.sub(rf"{_COUNT}=\S*", "", environment.get("XLA_FLAGS", "")).split()
    # Else processes on a machine with a TPU would each claim all of it.
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, f"{_COUNT}={each}"])}
    return Shares("CPU", each, (variables,) * processes)


def _gpu_shares(processes: int, gpus: tuple[str, ...]) -> Shares:
    if len(gpus) % processes:
        counts = [str(n) for n in range(1, len(gpus) + 1) if len(gpus) % n == 0]
        raise ValueError(
            f"--processes={processes}: {len(gpus)} GPUs ({', '.join(gpus)}) cannot be shared out equally; "
            f"take {' or '.join(counts)}, or the CPU with JAX_PLATFORMS=cpu in front of the command"
        )
    each = len(gpus) // processes
    parts = [gpus[k * each : (k + 1) * each] for k in range(processes)]
    return Shares("GPU", each, tuple({"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts))


def cpu_devices(processes: int, mesh: Mapping[str, int]) -> int:
    """The least number of devices of each process that the sizes of ``mesh`` (one may be -1) allow.

    Raises:
      ValueError: the mesh has a number of devices that does not divide by ``processes``, or its ``tensor``
        would reach over processes.
    """
    known = math.prod(size for size in mesh.values() if size > 0)
    tensor = max(mesh.get("tensor", 1), 1)
    total = math.lcm(known, processes * tensor) if -1 in mesh.values() else known
    if total % (processes * tensor):
        sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.items())
        raise ValueError(
            f"--processes={processes}: the {total} devices of config.mesh ({sizes}) cannot be shared out "
            "equally, each process holding all of tensor; leave one size at -1, or take another number"
        )
    return total // processes


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs that jax would use, as CUDA_VISIBLE_DEVICES names them."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return ()
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return ()
    if "CUDA_VISIBLE_DEVICES" in environment:
        return tuple(name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip())
    if not shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath)):
        return ()
    words = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return tuple(found.stdout.split()) if found.returncode == 0 else ()
