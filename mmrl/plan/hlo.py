"""Collectives, bytes sent and estimated cycles of one call of a compiled program, read from its text.

The text lists each loop body once, names collectives in several ways and repeats some. `analyse` walks it
from its entry as the device would, and multiplies loops out.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from mmrl.plan.chips import Chip
from mmrl.plan.flops import innermost


@dataclass(frozen=True)
class Traffic:
    """``count`` collectives in one call, that send ``wire_bytes`` in all from each device."""

    count: float  # whole in the end (`analyse`)
    wire_bytes: float


@dataclass(frozen=True)
class CallCost:
    """One call of a program on one device; sums and multiples of them are others.

    Attributes:
      traffic: by kind of collective (``all-gather``, ``all-reduce``, ``reduce-scatter``, ``all-to-all``,
        ``collective-permute``), and ``dcn-send`` for what a device hands to the network between slices. In a
        ring of g devices a device sends B (g - 1) / g for an array that has B bytes when whole, twice that
        for an all-reduce.
      cycles: by the compiler's estimate; collectives and Pallas kernels have none, and count nothing. Of
        branches, the mean over calls.
      unbounded: a loop's number of iterations is not in the text, and was taken as one.
    """

    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    cycles: float = 0
    unbounded: bool = False

    @property
    def wire_bytes(self) -> float:
        """Bytes sent over the links of the slice; those between slices are not in it."""
        return sum(sent.wire_bytes for kind, sent in self.traffic.items() if kind != "dcn-send")

    def __add__(self, other: "CallCost") -> "CallCost":
        traffic = dict(self.traffic)
        for kind, sent in other.traffic.items():
            before = traffic.get(kind, Traffic(0, 0))
            traffic[kind] = Traffic(before.count + sent.count, before.wire_bytes + sent.wire_bytes)
        return CallCost(traffic, self.cycles + other.cycles, self.unbounded or other.unbounded)

    def __mul__(self, times: float) -> "CallCost":
        traffic = {
            kind: Traffic(times * sent.count, times * sent.wire_bytes) for kind, sent in self.traffic.items()
        }
        return CallCost(traffic, times * self.cycles, self.unbounded)


def analyse(
    text: str, *, trips: Mapping[str, float] = MappingProxyType({}), expensive_fraction: float = 1.0
) -> CallCost:
    """Collectives and estimated cycles of one call, per device.

    Args:
      text: of a compiled and scheduled program (`mmrl.plan.aot.Compiled.text`).
      trips: iterations of loops whose number is data, by the scopes they stand in (`flops.count`).
      expensive_fraction: share of the runs of a conditional that take the branch with the most cycles; the
        others are held to take that with the fewest. Of its collectives, those of the branch that sends most
        are taken.

    Raises:
      ValueError: the text has no entry computation.
    """
    module = _parse(text)
    cost = _walk(module, module.entry, trips, expensive_fraction)
    whole = {kind: Traffic(round(sent.count), sent.wire_bytes) for kind, sent in cost.traffic.items()}
    return replace(cost, traffic=whole)


def roofline_seconds(flops_per_device: float, hbm_bytes: float, wire_bytes: float, chip: Chip) -> float:
    """A lower bound for one call: the largest of compute, memory and links, each at its peak.

    Leaves out that the three seldom overlap whole, that no product reaches the peak, latencies, contention,
    links that a group does not use, traffic between slices, and the host. Published dense training steps on
    v5p and v6e take 1.3 and 2.3 times its compute term. The devices of a chip share its links evenly.
    """
    return max(
        flops_per_device / chip.peak_flops,
        hbm_bytes / chip.hbm_bandwidth,
        wire_bytes * chip.devices_per_chip / chip.link_bandwidth,
    )


def cycle_seconds(cycles: float, chip: Chip) -> float:
    """The compiler's estimate of one call's time on the device, at the clock the peak implies.

    Leaves out collectives, Pallas kernels, what runs beside the main core, and the host. Within some 30 % for
    dense training steps; two to three times too long where memory bandwidth is the limit (decoding, the
    optimizer). For ranking versions of a program.

    Raises:
      ValueError: the accelerator has no such estimate.
    """
    if chip.clock is None:
        raise ValueError(f"{chip.name}: the compiler estimates no cycles for it; measure instead")
    return cycles / chip.clock


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str  # with the contents of strings

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def called(self, key: str) -> str:
        """The computation that is named as ``key``."""
        match = re.search(rf"\b(?:{key})=%([\w.\-]+)", self.attributes)
        assert match is not None, f"{self.opcode} {self.name} names no computation"
        return match[1]


@dataclass
class _Computation:
    name: str
    instructions: dict[str, _Instruction] = field(default_factory=dict)
    root: str = ""


@dataclass
class _Module:
    devices: int
    computations: dict[str, _Computation] = field(default_factory=dict)
    entry: str = ""


_NO_ESTIMATE = 2**63 - 1  # cycles, as the compiler says of what the sparse cores do
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_START = re.compile(
    r"^(?:(ENTRY )?%([\w.\-]+) \(.*\{$"
    r"|  (ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\))",
    re.MULTILINE,
)


def _parse(text: str) -> _Module:
    # Strings may hold anything, newlines and braces too, and kernels' metadata breaks lines outside of them.
    # With strings blanked, a computation or instruction starts where a line looks like one, and ends at the
    # next.
    blank = _STRING.sub(lambda match: '"' + "_" * (len(match[0]) - 2) + '"', text)
    starts = list(_START.finditer(blank))
    if not any(match[1] for match in starts):
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    header = blank[: starts[0].start()]
    parts = (re.search(rf"{key}=(\d+)", header) for key in ("num_partitions", "replica_count"))
    module = _Module(math.prod(int(part[1]) for part in parts if part))
    here = _Computation("")
    for match, end in zip(starts, [*(match.start() for match in starts[1:]), len(text)], strict=True):
        if match[2]:
            here = module.computations[match[2]] = _Computation(match[2])
            module.entry = here.name if match[1] else module.entry
        else:
            name, shape, opcode, arguments = match.group(4, 5, 6, 7)
            here.instructions[name] = _Instruction(name, shape, opcode, arguments, text[match.end() : end])
            here.root = name if match[3] else here.root
    return module


def _walk(module: _Module, name: str, trips: Mapping[str, float], expensive_fraction: float) -> CallCost:
    """One run of a computation; its fusions are operations of their own, their insides have no estimates."""
    here, cost = module.computations[name], CallCost()
    for one in here.instructions.values():
        estimate = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
        if estimate and int(estimate[1]) < _NO_ESTIMATE:
            cost += CallCost(cycles=int(estimate[1]))
        opcode = one.opcode.removesuffix("-start")
        if opcode in _SENT or opcode == "send":
            cost += _collective(module, here, one, opcode)
        elif opcode == "fusion":
            cost += _fused(module, one)
        elif opcode == "while":
            times: float | None = _trip_count(module, here, one)
            times = innermost(trips, _own_scope(one)) if times is None else times
            body = _walk(module, one.called("body"), trips, expensive_fraction)
            cost += body * (1 if times is None else times) + CallCost(unbounded=times is None)
        elif opcode == "conditional":
            branches = [_walk(module, branch, trips, expensive_fraction) for branch in _branch_names(one)]
            cycles = [branch.cycles for branch in branches]
            cost += CallCost(
                max(branches, key=lambda branch: branch.wire_bytes).traffic,
                expensive_fraction * max(cycles) + (1 - expensive_fraction) * min(cycles),
                any(branch.unbounded for branch in branches),
            )
        elif opcode in ("call", "async"):
            inner = _walk(module, one.called("calls|to_apply"), trips, expensive_fraction)
            beside = opcode != one.opcode  # on another core
            cost += CallCost(inner.traffic, 0 if beside else inner.cycles, inner.unbounded)
    return cost


def _own_scope(loop: _Instruction) -> str:
    """The scopes that a loop stands in, without those of the loop around it."""
    name = re.search(r'op_name="([^"]*)"', loop.attributes)
    return re.split(r"while/body", name[1])[-1] if name else ""


def _branch_names(one: _Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if listed:
        return re.findall(r"%([\w.\-]+)", listed[1])
    return re.findall(r"(?:true|false)_computation=%([\w.\-]+)", one.attributes)


# Bytes a device sends, as a multiple of the bytes it puts in, by the size of the group.
_SENT = {
    "all-gather": lambda g: g - 1,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
}


def _collective(module: _Module, here: _Computation, one: _Instruction, kind: str) -> CallCost:
    size = sum(_array_bytes(here.instructions[name].shape) for name in one.operands)
    if kind == "send":
        across = "_xla_megascale_transfer_type" in one.attributes
        return CallCost({"dcn-send": Traffic(1, size)} if across else {})
    group = 2 if kind == "collective-permute" else _group_size(module, one)
    return CallCost({kind: Traffic(1, size * _SENT[kind](group))})


def _fused(module: _Module, fusion: _Instruction) -> CallCost:
    """Collectives inside a fusion.

    A reduce-scatter is an all-reduce in a fusion that keeps a slice. An asynchronous collective stands in the
    fusion that starts it, in those that run beside it and in the one that ends it; it counts where it starts.
    (Its channel does not tell: copies of a loop's body share it.)
    """
    here, cost = module.computations[fusion.called("calls")], CallCost()
    starts = any("AsyncCollectiveStart" in each.attributes for each in here.instructions.values())
    for one in here.instructions.values():
        if "async_collective_fusion_config" in one.attributes and not starts:
            continue
        if one.opcode == "fusion":
            cost += _fused(module, one)
        elif one.opcode in _SENT:
            scattered = one.opcode == "all-reduce" and here.name.startswith("all-reduce-scatter")
            cost += _collective(module, here, one, "reduce-scatter" if scattered else one.opcode)
    return cost


def _group_size(module: _Module, one: _Instruction) -> int:
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


def _array_bytes(shape: str) -> int:
    """Bytes of the arrays in a type, as in ``(bf16[4,8]{1,0}, u32[])``, without the padding of layouts."""
    bits = 0
    for kind, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
        width = re.search(r"\d+", kind)  # f8e4m3fn has 8
        width_bits = 8 if kind == "pred" else int(width[0]) if width else 0
        bits += width_bits * math.prod(int(size) for size in dims.split(",") if size)
    return math.ceil(bits / 8)


def _trip_count(module: _Module, here: _Computation, loop: _Instruction) -> int | None:
    """Iterations of a loop that counts up to a bound; None for one that ends otherwise.

    The start matters: of a loop with its first iteration peeled off it is 1. Where it cannot be told it is 0.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.called("condition")]
    body = module.computations[loop.called("body")]
    test = _source(condition, condition.root)
    left, right = test.operands if len(test.operands) == 2 else ("", "")
    if test.opcode == "fusion" and left:
        inner = module.computations[test.called("calls")]
        test = inner.instructions[inner.root]
        order = [inner.instructions[name] for name in test.operands]
        if len(order) != 2 or any(operand.opcode != "parameter" for operand in order):
            return None
        left, right = ((left, right)[int(operand.arguments)] for operand in order)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, bound = _index(condition, left), _index(condition, right)
    step = 0 if counter is None else _step(body, counter)
    limit = _carried(here, loop, condition, right)
    if step == 0 or limit is None or (bound is not None and _step(body, bound) != 0):
        return None
    start = _carried(here, loop, condition, left) or 0
    return max(0, math.ceil((limit - start) / step))


def _source(here: _Computation, name: str) -> _Instruction:
    """The instruction a value comes from, through copies."""
    one = here.instructions[name]
    while one.opcode in ("copy", "copy-start", "copy-done", "bitcast", "convert"):
        one = here.instructions[one.operands[0]]
    return one


def _index(here: _Computation, name: str) -> int | None:
    """The position of a value in the computation's one parameter, a tuple."""
    one = _source(here, name)
    index = re.search(r"index=(\d+)", one.attributes) if one.opcode == "get-tuple-element" else None
    return int(index[1]) if index else None


def _constant(here: _Computation, name: str) -> int | None:
    one = _source(here, name)
    return int(one.arguments) if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.arguments) else None


def _carried(here: _Computation, loop: _Instruction, condition: _Computation, name: str) -> int | None:
    """A value the condition reads first: a constant there, or one that is carried into the loop."""
    index = _index(condition, name)
    if index is None:
        return _constant(condition, name)
    start = _source(here, loop.operands[0])
    return _constant(here, start.operands[index]) if start.opcode == "tuple" else None


def _step(body: _Computation, index: int) -> int:
    """The number that an iteration adds to an element of what it carries; 1 where it cannot be told."""
    end = _source(body, body.root)
    if end.opcode != "tuple":
        return 1
    step, value = 0, _source(body, end.operands[index])
    while value.opcode == "add":
        others = [name for name in value.operands if _constant(body, name) is None]
        if len(others) != 1:
            return 1
        step += sum(_constant(body, name) or 0 for name in value.operands)
        value = _source(body, others[0])
    return step if _index(body, value.name) == index and step >= 0 else 1
