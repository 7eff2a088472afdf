"""The programs of a config run on the devices that are there: their times, and the limits of the hardware."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mmrl.plan.aot import MemoryUse, memory_use
from mmrl.plan.chips import chip_of
from mmrl.plan.useful import RealTokens, UsefulFlops, trace, useful_flops
from mmrl.plan.workload import Workload, arguments, device_bytes, program, token_read_bytes
from mmrl.terminal import tell


@dataclass(frozen=True)
class Limits:
    """Rates of one device: FLOP/s of products, bytes/s to and from its memory, and who says so."""

    flops: float
    bandwidth: float
    source: str


@dataclass(frozen=True)
class Executable:
    """A compiled program: as it is written, as it is called, and the seconds between the two."""

    name: str
    traced: jax.stages.Traced
    call: jax.stages.Compiled
    compile_seconds: float


@dataclass(frozen=True)
class Measured:
    """One program, measured.

    Attributes:
      name: of the program.
      compile_seconds: from tracing to machine code.
      seconds: of each timed call; the first call of all is not among them.
      real: tokens of a call.
      flops: of a call.
      memory: per device, by the compiler's account; None where it gives none.
      held_bytes: the most that the first device's allocator has held since the process began, as it was after
        the last call; None where it does not count.
    """

    name: str
    compile_seconds: float
    seconds: tuple[float, ...]
    real: RealTokens
    flops: UsefulFlops
    memory: MemoryUse | None
    held_bytes: int | None


def measure(work: Workload, name: str, repeats: int, real: RealTokens) -> Measured:
    """Compile one program, call it once unmeasured and then ``repeats`` times, each call waited for.

    ``real``: tokens of a call (`mmrl.plan.useful.real_tokens`).

    Raises:
      ValueError: it does not fit the memory.
    """
    try:
        executable = compile_program(work, name)
        log(f"{name}: compiled in {executable.compile_seconds:.1f} s")
        found = time_program(work, executable, arguments(work, name), repeats, real)
        log(f"{name}: {statistics.median(found.seconds):.4g} s a call")
        return found
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        key = "rollout.prompt_slots" if name in ("prefill", "decode") else "train.row_tokens"
        raise ValueError(
            f"{name} does not fit the memory of {work.mesh.devices.size} x "
            f"{work.mesh.devices.flat[0].device_kind}: lower config.{key}, or leave it out with --program"
        ) from error


def compile_program(work: Workload, name: str) -> Executable:
    """The program ``name``, compiled on abstract arguments."""
    start = time.perf_counter()
    traced = trace(work, name)
    with jax.set_mesh(work.mesh):
        compiled = traced.lower().compile()
    return Executable(name, traced, compiled, time.perf_counter() - start)


def time_program(
    work: Workload, executable: Executable, given: tuple, repeats: int, real: RealTokens
) -> Measured:
    """Call a program on `arguments`, once unmeasured and then ``repeats`` times."""
    name = executable.name
    seconds = time_calls(executable.call, given, repeats, carried={"update": 0, "decode": 1}.get(name))
    stats = work.mesh.devices.flat[0].memory_stats()
    return Measured(
        name=name,
        compile_seconds=executable.compile_seconds,
        seconds=tuple(seconds),
        real=real,
        flops=useful_flops(work, name, executable.traced, real),
        memory=memory_use(executable.call),
        held_bytes=stats.get("peak_bytes_in_use") if stats else None,
    )


def time_calls(compiled: Callable, given: tuple, repeats: int, *, carried: int | None) -> list[float]:
    """Seconds of each of ``repeats`` calls after a first one.

    The first output takes the place of argument number ``carried``, if any: the call has given that one's
    memory away.
    """
    jax.block_until_ready(given)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*given))
        seconds.append(time.perf_counter() - start)
        if carried is not None:
            given = (*given[:carried], out[0], *given[carried + 1 :])
        del out  # else the next call would have to find room beside it
    return seconds[1:]


def least_bytes(work: Workload, name: str) -> int:
    """Bytes a device cannot but move to or from its memory in one call; activations are left out.

    prefill: the weights are read (but the tables of tokens, of which it needs some rows or none), the prefix
    is written. decode: in every step the weights (but the vision tower and the table of inputs), the prefix
    once a group, and the keys and values of each response so far are read, and those of one token written.
    score: the weights are read. update: weights and optimizer state are read and written.
    """
    given = program(work, name)[1]
    if name == "update":
        return 2 * device_bytes(given[0])
    if name == "score":
        return device_bytes(given[0])
    prefix = program(work, "decode")[1][2].prefix
    keys_and_values = device_bytes((prefix.key, prefix.value))
    if name == "prefill":
        read = {part: leaf for part, leaf in given[0].items() if part not in ("embedding", "lm_head")}
        return device_bytes(read) + keys_and_values
    steps, group = work.config.rollout.max_tokens, work.config.rollout.group
    own_token = group * keys_and_values // prefix.mask.shape[1]
    return steps * token_read_bytes(work) + own_token * (steps * (steps + 1) // 2 + steps)


def limits(mesh: Mesh, dtype: DTypeLike) -> Limits:
    """Of the devices of ``mesh``: by data sheet where `mmrl.plan.chips` has them, else measured here.

    Measured are a product of two square matrices, large enough to be bound by arithmetic, and a pass over an
    array that no cache holds, by all devices at once: in place, because a fresh array would first have to be
    given its memory by the system, and the best of some calls, because a limit is what can be reached.
    """
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    if chip is not None:
        return Limits(chip.peak_flops, chip.hbm_bandwidth, "data sheet, bfloat16")
    width, length = (2048, 2**26) if device.platform == "cpu" else (8192, 2**28)
    devices, parts = mesh.devices.size, PartitionSpec(mesh.axis_names)

    def seconds(function: Callable, shape: tuple[int, ...]) -> float:
        make = jax.jit(
            lambda: jnp.full((devices, *shape), 0.5, dtype), out_shardings=NamedSharding(mesh, parts)
        )
        run = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=parts), donate_argnums=0)
        return min(time_calls(lambda x: (run(x),), (make(),), 5, carried=0))

    product = seconds(lambda x: (x[0] @ x[0] / width)[None], (width, width))
    passed = seconds(lambda x: -x, (length,))
    moved = 2 * length * jnp.dtype(dtype).itemsize  # read and written
    return Limits(2 * width**3 / product, moved / passed, "measured here")


def log(text: str) -> None:
    """Print a line of progress, beside the results."""
    tell(f"bench: {text}", error=True)
