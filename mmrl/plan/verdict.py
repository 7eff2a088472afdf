"""What is said of one program on one kind of device: does it fit, what it computes and sends."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmrl.plan import hlo
from mmrl.plan.aot import Compiled, Memory
from mmrl.plan.chips import Chip
from mmrl.plan.flops import Flops

ROOM = 0.9  # of the memory: beyond it fragmentation, or a second program's code, may be one too many


@dataclass(frozen=True)
class Finding:
    """One program, per device.

    Attributes:
      program: its name.
      prompts: computed at once, over all devices.
      in_call: prompts of one call, which `prompts` divides: the others come after them.
      fit: ``fits``, ``tight`` (over `ROOM` of the memory) or ``no``.
      needed_bytes: peak and what is resident beside it; where it does not fit, at least so much.
      limit_bytes: what one device has.
      resident_bytes: in memory while the program runs, and not seen by it.
      memory: by the compiler; None where it was refused, or its arguments alone were too large.
      flops: of matrix products in one call; None where it was not traced.
      least_bytes: read or written in one call at the least (see `least_traffic`); None where it was refused.
      collectives: by kind, in one call.
      roofline_seconds: `hlo.roofline_seconds` of one call; None where it was refused.
      cycle_seconds: `hlo.cycle_seconds` of one call; None where refused or compiled in haste.
      compile_seconds: the compiler took.
      unbounded: a loop's length is unknown and counted as one, so that operations and bytes are more.
    """

    program: str
    prompts: int
    in_call: int
    fit: str
    needed_bytes: int
    limit_bytes: int
    resident_bytes: int
    memory: Memory | None = None
    flops: float | None = None
    least_bytes: int | None = None
    collectives: Mapping[str, hlo.Traffic] | None = None
    roofline_seconds: float | None = None
    cycle_seconds: float | None = None
    compile_seconds: float = 0.0
    unbounded: bool = False


def fit(needed: int, limit: int) -> str:
    """The verdict on ``needed`` of ``limit`` bytes: at most `ROOM` of them is a clear fit."""
    if needed > limit:
        return "no"
    return "fits" if needed <= ROOM * limit else "tight"


def too_large(
    program: str, prompts: int, in_call: int, arguments: int, resident: int, chip: Chip
) -> Finding | None:
    """A finding without compiling, where arguments and what is resident exceed the memory already."""
    needed = arguments + resident
    if needed <= chip.hbm_bytes:
        return None
    return Finding(program, prompts, in_call, "no", needed, chip.hbm_bytes, resident)


def judge(
    program: str,
    prompts: int,
    in_call: int,
    compiled: Compiled,
    *,
    arguments: int,
    resident: int,
    flops: Flops,
    devices: int,
    chip: Chip,
    tokens: int | None,
    per_token: int = 0,
    quick: bool,
    costlier: float = 1.0,
) -> Finding:
    """The finding on a program that was compiled.

    Args:
      program: its name.
      prompts: computed at once, over all devices.
      in_call: prompts of one call.
      compiled: what the compiler said.
      arguments: bytes of a device's part of all arguments. Those the program does not read are no part of it
        when compiled, and are resident.
      resident: bytes of what else a device holds meanwhile.
      flops: over all devices.
      devices: their number.
      chip: their kind.
      tokens: turns of a loop that ends by what it samples; None for a program without one.
      per_token: bytes of the arguments that each turn reads.
      quick: compiled by `mmrl.plan.aot.IN_HASTE`, which leaves cycles and collectives without meaning.
      costlier: share of the choices in a program that fall on the costlier branch.
    """
    limit = chip.hbm_bytes
    per_device = flops.total / devices
    if compiled.memory is None:
        return Finding(
            program,
            prompts,
            in_call,
            "no",
            compiled.needed_bytes + resident,
            limit,
            resident,
            flops=per_device,
            compile_seconds=compiled.seconds,
            unbounded=flops.unbounded,
        )
    text = hlo.analyse(compiled.text, while_trips=tokens, costlier=costlier)
    resident += max(0, arguments - compiled.memory.argument)
    needed = compiled.memory.peak + resident
    moved = least_traffic(compiled.memory, tokens or 1, per_token)
    wire = 0.0 if quick else hlo.wire_bytes(text)
    return Finding(
        program,
        prompts,
        in_call,
        fit(needed, limit),
        needed,
        limit,
        resident,
        memory=compiled.memory,
        flops=per_device,
        least_bytes=moved,
        collectives=hlo.traffic(text),
        roofline_seconds=hlo.roofline_seconds(per_device, moved, wire, chip),
        cycle_seconds=None if quick else hlo.cycle_seconds(hlo.cycles(text), chip),
        compile_seconds=compiled.seconds,
        unbounded=flops.unbounded or text.unbounded,
    )


def least_traffic(memory: Memory, tokens: int = 1, per_token: int = 0) -> int:
    """Bytes that one call moves between a device and its memory, at the least.

    Arguments, outputs and temporaries once each; and again, in each further turn of a loop over ``tokens``,
    what every turn reads: decoding reads the weights and the prompts' keys and values.
    """
    once = memory.argument + memory.output + memory.temporary
    return once + (tokens - 1) * per_token
