"""Ahead-of-time compilation for accelerators that are not there: memory, refusal, and text of a program."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from mmrl.mesh import make_mesh
from mmrl.plan.chips import GIB, Topology, devices

QUICK: Mapping[str, str | int] = {"optimization_level": 9}  # O0
"""Options for the verdict on memory alone, in less time: within some 5 %, either way (7B, v5e:4x4).

Cycles of such a program mean nothing, and it reduces whole arrays where a proper one reduces and scatters.
"""


def environment() -> dict[str, str]:
    """Variables to set before jax starts: libtpu is then quiet, and looks for no TPU and no server."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any value silences the warnings of a missing one
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two processes may compile at once
        "TPU_LOG_DIR": "disabled",
    }


def device_mesh(topology: Topology, axis_sizes: Mapping[str, int]) -> Mesh:
    """The mesh of `mmrl.mesh` over the devices of a topology; ``replica``, and only that, crosses slices.

    Args:
      topology: the slices to compile for.
      axis_sizes: of each mesh axis, for all slices together; one but ``replica`` may be -1: whatever is
        left. ``replica`` is the number of slices and may be left out.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, ``replica`` is not the number of slices,
        or libtpu is not installed.
    """
    replica = axis_sizes.get("replica", topology.slices)
    if replica != topology.slices:
        raise ValueError(
            f"config.mesh: replica is {replica}, but {topology} has {topology.slices} slice(s); "
            f"set replica to {topology.slices}, or name another topology"
        )
    return make_mesh({**axis_sizes, "replica": replica}, devices(topology))


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a program per device, by the compiler's own account.

    ``peak`` is held against the limit of the device. It is not the sum of the others: temporaries share room
    over time.
    """

    argument: int
    output: int
    temporary: int
    alias: int
    code: int
    peak: int


@dataclass(frozen=True)
class Compiled:
    """A program after compilation: ``memory`` and ``text`` where it was accepted, else the refusal."""

    seconds: float
    memory: MemoryUse | None = None
    text: str = ""
    needed_bytes: int = 0  # per device, as the refusal says
    limit_bytes: int = 0


def compile_for_tpu(
    program: jax.stages.Traced | jax.stages.Lowered, options: Mapping[str, str | int] | None = None
) -> Compiled:
    """Compile for the TPU devices that the shardings of the program's arguments name.

    A program whose kernels ask for the kind of chip must have been traced under ``jax.set_mesh``. That it
    does not fit the device's memory is an answer, and no error; any other refusal of the compiler is raised.
    """
    lowered = (
        program.lower(lowering_platforms=("tpu",)) if isinstance(program, jax.stages.Traced) else program
    )
    given: dict[str, Any] = dict(options or {})
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=given)
    except jax.errors.JaxRuntimeError as error:
        refusal = memory_refusal(str(error))
        if refusal is None:
            raise
        needed, limit = refusal
        return Compiled(time.perf_counter() - start, needed_bytes=needed, limit_bytes=limit)
    seconds = time.perf_counter() - start
    return Compiled(seconds, memory_use(compiled), compiled.as_text() or "")


def memory_use(compiled: jax.stages.Compiled) -> MemoryUse | None:
    """The compiler's account of a program's memory; None where it gives none."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return MemoryUse(
        argument=stats.argument_size_in_bytes,
        output=stats.output_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
        alias=stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
    )


_SIZE = r"([\d.]+)([KMGT]?)"
_REFUSALS = (  # the compiler's wording differs between versions, and between the passes that notice
    rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    rf"memory space hbm\. Used {_SIZE} of {_SIZE} hbm",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def memory_refusal(message: str) -> tuple[int, int] | None:
    """Bytes a device needs and has, from the compiler's refusal; None if that is not about memory."""
    matches = (re.search(pattern, message) for pattern in _REFUSALS)
    match = next((match for match in matches if match), None)
    if match is None or "RESOURCE_EXHAUSTED" not in message:
        return None
    return int(float(match[1]) * _UNITS[match[2]]), int(float(match[3]) * _UNITS[match[4]])
