"""Running the programs of a config where we are: how long they take, and what the hardware could do."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mmrl.bench.arguments import arguments
from mmrl.plan import flops
from mmrl.plan.aot import Memory, memory_of
from mmrl.plan.chips import chip_of
from mmrl.plan.workload import Workload, costlier_branches, program
from mmrl.terminal import tell


@dataclass(frozen=True)
class Limits:
    """What one device can do: FLOP/s of products, bytes/s to and from its memory, and who says so."""

    flops: float
    bandwidth: float
    source: str


@dataclass(frozen=True)
class Measured:
    """One program, measured.

    Attributes:
      name: of the program.
      compile_seconds: from tracing to machine code.
      seconds: of each timed call; the first call of all is not among them.
      flops: of a call, over all devices, as the program is written.
      model_flops: likewise, without what is computed a second time to save memory.
      memory: per device, by the compiler's account; None where it gives none.
      held_bytes: the most that the first device's allocator has held since the process began, as it was after
        the last call; None where it does not count.
    """

    name: str
    compile_seconds: float
    seconds: tuple[float, ...]
    flops: int
    model_flops: int
    memory: Memory | None
    held_bytes: int | None


@dataclass(frozen=True)
class Ready:
    """A program before it is first called.

    Attributes:
      name: of the program.
      traced: as it is written.
      call: as it is compiled.
      seconds: from tracing to machine code.
    """

    name: str
    traced: jax.stages.Traced
    call: jax.stages.Compiled
    seconds: float


def limits(mesh: Mesh, dtype: DTypeLike) -> Limits:
    """Of the devices of ``mesh``: by data sheet where `mmrl.plan.chips` has them, else measured here."""
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    if chip is not None:
        return Limits(chip.peak_flops, chip.hbm_bandwidth, "data sheet, bfloat16")
    width, length = (2048, 2**26) if device.platform == "cpu" else (8192, 2**28)
    return measured_limits(mesh, dtype, width, length)


def measured_limits(mesh: Mesh, dtype: DTypeLike, width: int, length: int) -> Limits:
    """A product of two square matrices and a pass over an array in place, by all devices at once.

    In place, because a fresh array would first have to be given its memory by the system. The best of some
    calls, because a limit is what can be reached.

    Args:
      mesh: the devices.
      dtype: of the elements.
      width: of the matrices, large enough that the product is bound by arithmetic.
      length: of the array, large enough that no cache holds it.
    """
    devices, parts = mesh.devices.size, PartitionSpec(mesh.axis_names)

    def seconds(function: Callable, shape: tuple[int, ...]) -> float:
        x = jax.jit(
            lambda: jnp.full((devices, *shape), 0.5, dtype), out_shardings=NamedSharding(mesh, parts)
        )()
        run = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=parts), donate_argnums=0)
        x = jax.block_until_ready(run(x))
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            x = jax.block_until_ready(run(x))
            taken.append(time.perf_counter() - start)
        return min(taken)

    product = seconds(lambda x: (x[0] @ x[0] / width)[None], (width, width))
    passed = seconds(lambda x: -x, (length,))
    moved = 2 * length * jnp.dtype(dtype).itemsize  # read and written
    return Limits(2 * width**3 / product, moved / passed, "measured here")


def measure(work: Workload, name: str, repeats: int) -> Measured:
    """Compile one program, call it once unmeasured and then ``repeats`` times, each call waited for.

    Raises:
      ValueError: it does not fit the memory.
    """
    try:
        ready = prepared(work, name)
        say(f"{name}: compiled in {ready.seconds:.1f} s")
        found = called(work, ready, arguments(work, name), repeats)
        say(f"{name}: {statistics.median(found.seconds):.4g} s a call")
        return found
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fix = {
            "prefill": "rollout.lanes",
            "decode": "rollout.lanes",
            "score": "train.micro_prompts",
            "update": "train.micro_prompts",
        }[name]
        raise ValueError(
            f"{name} does not fit the memory of {work.mesh.devices.size} x "
            f"{work.mesh.devices.flat[0].device_kind}: lower config.{fix}, or leave it out with --program"
        ) from error


def prepared(work: Workload, name: str) -> Ready:
    """The program ``name``, compiled on its stand-ins."""
    start = time.perf_counter()
    traced = _trace(work, name)
    with jax.set_mesh(work.mesh):
        compiled = traced.lower().compile()
    return Ready(name, traced, compiled, time.perf_counter() - start)


def called(work: Workload, ready: Ready, given: tuple, repeats: int) -> Measured:
    """Call a program on what `arguments` made, once unmeasured and then ``repeats`` times."""
    name = ready.name
    taken = timed(ready.call, given, repeats, carried={"update": 0, "decode": 1}.get(name))
    counted = operations(work, ready.traced.jaxpr)
    lean = replace(work, model=replace(work.model, remat="none"))
    stats = work.mesh.devices.flat[0].memory_stats()
    return Measured(
        name=name,
        compile_seconds=ready.seconds,
        seconds=tuple(taken),
        flops=counted,
        model_flops=counted if work.model.remat == "none" else operations(lean, _trace(lean, name).jaxpr),
        memory=memory_of(ready.call),
        held_bytes=stats.get("peak_bytes_in_use") if stats else None,
    )


def _trace(work: Workload, name: str) -> jax.stages.Traced:
    function, stand_ins, static = program(work, name)
    with jax.set_mesh(work.mesh):
        return function.trace(*stand_ins, **static)


def timed(compiled: Callable, arguments: tuple, repeats: int, *, carried: int | None) -> list[float]:
    """Seconds of each of ``repeats`` calls after a first one.

    What comes out first takes the place of argument number ``carried``, if any: the call has given that one's
    memory away.
    """
    jax.block_until_ready(arguments)
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        taken.append(time.perf_counter() - start)
        if carried is not None:
            arguments = (*arguments[:carried], out[0], *arguments[carried + 1 :])
        del out  # else the next call would have to find room beside it
    return taken[1:]


def operations(work: Workload, jaxpr: ClosedJaxpr) -> int:
    """`mmrl.plan.flops.count` of a program of ``work``, all of whose responses are full."""
    return flops.count(
        jaxpr,
        while_trips=work.config.rollout.max_tokens,
        costlier=costlier_branches(work.model),
        platform=work.mesh.devices.flat[0].platform,
    ).total


def say(text: str) -> None:
    """Tell people something, beside the results."""
    tell(f"bench: {text}", error=True)
