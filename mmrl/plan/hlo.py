"""What a compiled program does in one call, read from its scheduled text: collectives, bytes sent, cycles.

The text lists each loop body once, names collectives in several ways and repeats some. `analyse` walks it
from its entry as the device would, and multiplies loops out.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mmrl.plan.chips import Chip
from mmrl.plan.hlo_text import Computation, Instruction, Module, array_bytes, called, parse, trip_count


@dataclass(frozen=True)
class Collective:
    """One place of the program that communicates.

    Attributes:
      kind: ``all-gather``, ``all-reduce``, ``reduce-scatter``, ``all-to-all``, ``collective-permute``, or
        ``dcn-send`` for what a device hands to the network between slices.
      group: devices that take part together; 1 for ``dcn-send``.
      wire_bytes: a device sends each time, in a ring of g devices: B (g - 1) / g for an array that has B
        bytes when whole, twice that for an all-reduce.
      count: times in one call of the program.
      op_name: what jax calls the operation; empty where the compiler made it.
    """

    kind: str
    group: int
    wire_bytes: float
    count: int
    op_name: str


@dataclass(frozen=True)
class Cost:
    """The compiler's estimate for one operation: ``cycles`` each time, ``count`` times in one call.

    The count of an operation in a branch is the mean over calls.
    """

    op_name: str
    cycles: int
    count: float


@dataclass(frozen=True)
class Program:
    """What one call of a program does on one device.

    ``unbounded``: a loop's number of iterations is not in the text, and was taken as one.
    """

    collectives: tuple[Collective, ...]
    costs: tuple[Cost, ...]
    unbounded: bool


@dataclass(frozen=True)
class Traffic:
    """``count`` collectives in one call, that send ``wire_bytes`` in all from each device."""

    count: int
    wire_bytes: float


def analyse(text: str, *, while_trips: int | None = None, costlier: float = 1.0) -> Program:
    """Collectives and estimated cycles of one call, per device.

    Args:
      text: of a compiled and scheduled program (`mmrl.plan.aot.Compiled.text`).
      while_trips: iterations of loops that end by a condition on values; one inside another runs once.
      costlier: share of the runs of a conditional that take the branch with the most cycles; the others are
        held to take that with the fewest. Of its collectives, those of the branch that sends most are taken.

    Raises:
      ValueError: the text has no entry computation.
    """
    return _walk(parse(text), None, while_trips, costlier)


def traffic(program: Program) -> dict[str, Traffic]:
    """Sums over collectives of the same kind."""
    found: dict[str, Traffic] = {}
    for one in program.collectives:
        before = found.get(one.kind, Traffic(0, 0))
        found[one.kind] = Traffic(before.count + one.count, before.wire_bytes + one.wire_bytes * one.count)
    return found


def wire_bytes(program: Program) -> float:
    """Bytes a device sends in one call over the links of its slice; those between slices are not in it."""
    return sum(one.wire_bytes * one.count for one in program.collectives if one.kind != "dcn-send")


def cycles(program: Program) -> int:
    """Estimated cycles of one call; collectives and Pallas kernels have no estimate, and count nothing."""
    return round(sum(cost.cycles * cost.count for cost in program.costs))


def top_cycles(program: Program, n: int) -> list[tuple[str, int]]:
    """The ``n`` scopes with the most estimated cycles, by pass: ``("backward mlp/dot_general", 123)``."""
    found: dict[str, float] = defaultdict(float)
    for cost in program.costs:
        found[scope(cost.op_name)] += cost.cycles * cost.count
    return [(name, round(total)) for name, total in sorted(found.items(), key=lambda item: -item[1])[:n]]


_STRUCTURE = {
    "while",
    "body",
    "cond",
    "closed_call",
    "checkpoint",
    "rematted_computation",
    "shard_map",
    "pjit",
}


def scope(op_name: str) -> str:
    """An operation's pass and named scopes, out of jax's path of transformations; empty without a name."""
    parts = op_name.split("/")
    if "rematted_computation" in parts:
        stage = ["recompute"]
    else:
        stage = ["backward"] if "transpose(" in op_name else ["forward"] if "jvp(" in op_name else []
    names = [re.sub(r"^(?:\w+\()+|\)+$", "", part) if "(" in part else part for part in parts[1:]]
    return " ".join([*stage, "/".join(name for name in names if name and name not in _STRUCTURE)])


def roofline_seconds(flops_per_device: float, hbm_bytes: float, wire: float, chip: Chip) -> float:
    """A lower bound for one call: the largest of compute, memory and links, each at its peak.

    Leaves out that the three seldom overlap whole, that no product reaches the peak, latencies, contention,
    links that a group does not use, traffic between slices, and the host. Published dense training steps on
    v5p and v6e take 1.3 and 2.3 times its compute term.

    Args:
      flops_per_device: operations of matrix products on one device.
      hbm_bytes: read and written by one device.
      wire: bytes one device sends within its slice (`wire_bytes`).
      chip: its devices share its links evenly.
    """
    return max(
        flops_per_device / chip.peak_flops,
        hbm_bytes / chip.hbm_bandwidth,
        wire * chip.devices_per_chip / chip.link_bandwidth,
    )


def cycle_seconds(total_cycles: float, chip: Chip) -> float:
    """The compiler's estimate of one call's time on the device, at the clock the peak implies.

    Leaves out collectives, Pallas kernels, what runs beside the main core, and the host. Within some 30 % for
    dense training steps; two to three times too long where memory bandwidth is the limit (decoding, the
    optimizer). For ranking versions of a program.

    Raises:
      ValueError: the accelerator has no such estimate.
    """
    if chip.clock is None:
        raise ValueError(f"{chip.name}: the compiler estimates no cycles for it; measure instead")
    return total_cycles / chip.clock


def _walk(module: Module, name: str | None, while_trips: int | None, costlier: float) -> Program:
    """One run of a computation; its fusions are operations of their own, their insides have no estimates."""
    here = module.computations[name or module.entry]
    collectives: list[Collective] = []
    costs: list[Cost] = []
    unbounded = False
    for one in here.instructions.values():
        estimate = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
        if estimate:
            costs.append(Cost(_op_name(one), int(estimate[1]), 1))
        opcode = one.opcode.removesuffix("-start")
        inner: Program | None = None
        if opcode in _SENT or opcode == "send":
            collectives += _collective(module, here, one, opcode)
        elif opcode == "fusion":
            collectives += _fused(module, one)
        elif opcode == "while":
            trips = trip_count(module, here, one)
            trips = while_trips if trips is None else trips
            within = while_trips if while_trips is None else 1
            body = _walk(module, called(one, "body"), within, costlier)
            unbounded |= trips is None
            inner = _times(body, 1 if trips is None else trips)
        elif opcode == "conditional":
            branches = [_walk(module, branch, while_trips, costlier) for branch in _branches(one)]
            inner = _mixed(branches, costlier)
        elif opcode in ("call", "async"):
            inner = _walk(module, called(one, "calls|to_apply"), while_trips, costlier)
            if opcode != one.opcode:  # on another core, beside this one
                inner = replace(inner, costs=())
        if inner:
            collectives += inner.collectives
            costs += inner.costs
            unbounded |= inner.unbounded
    return Program(tuple(collectives), tuple(costs), unbounded)


def _times(program: Program, trips: int) -> Program:
    return Program(
        tuple(replace(one, count=one.count * trips) for one in program.collectives),
        _weighed(program.costs, trips),
        program.unbounded,
    )


def _mixed(branches: list[Program], costlier: float) -> Program:
    return Program(
        max(branches, key=wire_bytes).collectives,
        _weighed(max(branches, key=cycles).costs, costlier)
        + _weighed(min(branches, key=cycles).costs, 1 - costlier),
        any(branch.unbounded for branch in branches),
    )


def _weighed(costs: tuple[Cost, ...], times: float) -> tuple[Cost, ...]:
    return tuple(replace(one, count=one.count * times) for one in costs if times)


def _op_name(one: Instruction) -> str:
    match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', one.attributes)
    return match[1] if match else ""


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    found = (
        listed[1] if listed else " ".join(re.findall(r"(?:true|false)_computation=%[\w.\-]+", one.attributes))
    )
    return re.findall(r"%([\w.\-]+)", found)


# Bytes a device sends, as a multiple of the bytes it puts in, by the size of the group.
_SENT = {
    "all-gather": lambda g: g - 1,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}


def _collective(module: Module, here: Computation, one: Instruction, kind: str) -> Iterator[Collective]:
    size = sum(array_bytes(here.instructions[name].shape) for name in one.operands)
    if kind == "send":
        if "_xla_megascale_transfer_type" in one.attributes:
            yield Collective("dcn-send", 1, size, 1, _op_name(one))
        return
    group = 2 if kind == "collective-permute" else _group(module, one)
    yield Collective(kind, group, size * _SENT[kind](group), 1, _op_name(one))


def _fused(module: Module, fusion: Instruction) -> Iterator[Collective]:
    """Collectives inside a fusion.

    A reduce-scatter is an all-reduce in a fusion that keeps a slice. An asynchronous collective stands in the
    fusion that starts it, in those that run beside it and in the one that ends it; it counts where it starts.
    (Its channel does not tell: copies of a loop's body share it.)
    """
    here = module.computations[called(fusion, "calls")]
    starts = any("AsyncCollectiveStart" in one.attributes for one in here.instructions.values())
    for one in here.instructions.values():
        if "async_collective_fusion_config" in one.attributes and not starts:
            continue
        if one.opcode == "fusion":
            yield from _fused(module, one)
        elif one.opcode in _SENT:
            scattered = one.opcode == "all-reduce" and here.name.startswith("all-reduce-scatter")
            kind = "reduce-scatter" if scattered else one.opcode
            for found in _collective(module, here, one, kind):
                yield replace(found, op_name=found.op_name or _op_name(fusion))


def _group(module: Module, one: Instruction) -> int:
    """Devices in a replica group, in its three spellings; an empty list means all."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", one.attributes)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])  # 'a', or part of it as in 'a':(1)2
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", one.attributes)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", one.attributes)
    return len(listed[1].split(",")) if listed else module.devices
