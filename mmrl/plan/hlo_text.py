"""The text of a compiled program as computations and instructions, and what can be told from them alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    arguments: str
    operands: tuple[str, ...]
    attributes: str  # with the contents of strings


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    root: str


@dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str
    devices: int


_START = re.compile(r"^(?:(ENTRY )?%([\w.\-]+) \(.*\{$|  (ROOT )?%([\w.\-]+) = )", re.MULTILINE)


def parse(text: str) -> Module:
    """Computations of a module; `ValueError` if there is no entry among them."""
    # Strings may hold anything, newlines and braces too, and kernels' metadata breaks lines outside of them.
    # With strings blanked, a computation or instruction starts where a line looks like one, and ends at the
    # next.
    blank = re.sub(
        r'"(?:[^"\\]|\\.)*"', lambda match: '"' + "_" * (len(match[0]) - 2) + '"', text, flags=re.DOTALL
    )
    starts = list(_START.finditer(blank))
    if not any(match[1] for match in starts):
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    ends = [match.start() for match in starts[1:]] + [len(text)]
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] = {}
    for match, end in zip(starts, ends, strict=True):
        if match[2]:
            name, root, instructions = match[2], "", {}
            entry = name if match[1] else entry
        else:
            one = _instruction(match[4], blank[match.end() : end], text[match.end() : end])
            instructions[one.name] = one
            root = one.name if match[3] else root
        computations[name] = Computation(name, instructions, root)
    header = blank[: starts[0].start()]
    parts = (re.search(rf"{key}=(\d+)", header) for key in ("num_partitions", "replica_count"))
    return Module(computations, entry, math.prod(int(part[1]) for part in parts if part))


def _instruction(name: str, blank: str, text: str) -> Instruction:
    shape_end = _closing(blank, 0) if blank.startswith("(") else blank.index(" ")
    opened = blank.index("(", shape_end)
    closed = _closing(blank, opened)
    return Instruction(
        name=name,
        shape=blank[:shape_end],
        opcode=blank[shape_end:opened].strip(),
        arguments=blank[opened + 1 : closed - 1],
        operands=tuple(re.findall(r"%([\w.\-]+)", blank[opened:closed])),
        attributes=text[closed:],
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at ``start`` is closed, plus one."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"not the text of a compiled program: a parenthesis is not closed in {text[:80]!r}")


def called(one: Instruction, key: str) -> str:
    """The computation that an instruction names as ``key``."""
    match = re.search(rf"\b(?:{key})=%([\w.\-]+)", one.attributes)
    assert match is not None, f"{one.opcode} {one.name} names no computation"
    return match[1]


def array_bytes(shape: str) -> int:
    """Bytes of the arrays in a type, as in ``(bf16[4,8]{1,0}, u32[])``, without the padding of layouts."""
    bits = 0
    for kind, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
        width = re.search(r"\d+", kind)  # f8e4m3fn has 8
        width_bits = 8 if kind == "pred" else int(width[0]) if width else 0
        bits += width_bits * math.prod(int(size) for size in dims.split(",") if size)
    return math.ceil(bits / 8)


def trip_count(module: Module, here: Computation, loop: Instruction) -> int | None:
    """Iterations of a loop that counts up to a bound; None for one that ends otherwise.

    The start matters: of a loop with its first iteration peeled off it is 1. Where it cannot be told it is 0.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[called(loop, "condition")]
    test = _source(condition, condition.root)
    left, right = test.operands if len(test.operands) == 2 else ("", "")
    if test.opcode == "fusion" and left:
        inner = module.computations[called(test, "calls")]
        test = inner.instructions[inner.root]
        order = [inner.instructions[name] for name in test.operands]
        if any(one.opcode != "parameter" for one in order) or len(order) != 2:
            return None
        left, right = ((left, right)[int(one.arguments)] for one in order)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, bound = _index(condition, left), _index(condition, right)
    body = module.computations[called(loop, "body")]
    step = 0 if counter is None else _step(body, counter)
    limit = _carried(here, loop, condition, right)
    if step == 0 or limit is None or (bound is not None and _step(body, bound) != 0):
        return None
    start = _carried(here, loop, condition, left) or 0
    return max(0, math.ceil((limit - start) / step))


def _source(here: Computation, name: str) -> Instruction:
    """The instruction a value comes from, through copies."""
    one = here.instructions[name]
    while one.opcode in ("copy", "copy-start", "copy-done", "bitcast", "convert"):
        one = here.instructions[one.operands[0]]
    return one


def _index(here: Computation, name: str) -> int | None:
    """Which element of the computation's one parameter, a tuple, a value is."""
    one = _source(here, name)
    index = re.search(r"index=(\d+)", one.attributes) if one.opcode == "get-tuple-element" else None
    return int(index[1]) if index else None


def _constant(here: Computation, name: str) -> int | None:
    one = _source(here, name)
    whole = one.opcode == "constant" and re.fullmatch(r"-?\d+", one.arguments)
    return int(one.arguments) if whole else None


def _carried(here: Computation, loop: Instruction, condition: Computation, name: str) -> int | None:
    """A value the condition reads first: a constant there, or one that is carried into the loop."""
    index = _index(condition, name)
    if index is None:
        return _constant(condition, name)
    start = _source(here, loop.operands[0])
    return _constant(here, start.operands[index]) if start.opcode == "tuple" else None


def _step(body: Computation, index: int) -> int:
    """What an iteration adds to an element of what it carries; 1 where it cannot be told."""
    end = _source(body, body.root)
    if end.opcode != "tuple":
        return 1
    step, value = 0, end.operands[index]
    while _source(body, value).opcode == "add":
        one = _source(body, value)
        added = [_constant(body, name) for name in one.operands]
        if added.count(None) != 1:
            return 1
        step += sum(constant for constant in added if constant is not None)
        value = one.operands[added.index(None)]
    return step if _index(body, value) == index and step >= 0 else 1
