"""Verdicts on the programs of a config for a topology; the largest batches and smallest slice that fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax

from mmrl.config import Config
from mmrl.mesh import batch_shards
from mmrl.models.config import ModelConfig
from mmrl.open import sharding_warnings, with_compute_options
from mmrl.plan import aot, hlo
from mmrl.plan.aot import Compiled, MemoryUse
from mmrl.plan.chips import GIB, TPUS, Chip, Topology, slices_to_try
from mmrl.plan.lengths import FULL, LengthDistribution
from mmrl.plan.useful import UsefulFlops, rates, real_tokens, useful_flops
from mmrl.plan.workload import (
    PROGRAMS,
    Workload,
    device_bytes,
    program,
    resident_bytes,
    token_read_bytes,
    workload,
)
from mmrl.train.fit import row_choices
from mmrl.train.memory import ROOM

Log = Callable[[str], None]

LARGEST_FIRST = ("update", "decode", "score", "prefill")  # the order of a search: on at the first refusal
BATCHES = {"train.row_tokens": ("update", "score"), "rollout.prompt_slots": ("decode", "prefill")}
"""Keys of the config that bound memory, and the programs that they bound it for."""


@dataclass(frozen=True)
class Finding:
    """The verdict on one program, per device.

    Attributes:
      program: its name.
      prompts: of one call, over all devices.
      row_tokens: slots of the rows that they are packed in; 0 where they are not.
      rows: that are computed, over all devices; 0 where none are packed.
      tokens, computed_over_real, repeated_over_real, steps: see `mmrl.plan.useful.RealTokens`.
      fit: ``fits``, ``tight`` (over `ROOM` of the memory) or ``no``.
      needed_bytes: peak and what is resident beside it; where it does not fit, at least so much.
      limit_bytes: memory of one device.
      resident_bytes: in memory while the program runs, and not seen by it.
      memory: by the compiler; None where it was refused, or its arguments alone were too large.
      flops: of matrix products in one call; None where it was not traced.
      useful_flops: those that real tokens need (`mmrl.plan.useful.UsefulFlops`).
      repeated_flops: as many as these would be with a prompt for each response; None in prefill and decode.
      least_bytes: read or written in one call at the least (see `least_traffic`); None where it was refused.
      collectives: by kind, in one call.
      roofline_seconds: `hlo.roofline_seconds` of one call; None where it was refused.
      cycle_seconds: `hlo.cycle_seconds` of one call; None where refused, or compiled without optimization.
      tokens_per_second: real ones of all devices, in the longer of these two times.
      useful_share: ``useful_flops`` in that time over those at the peak; ``repeated_share`` likewise.
      compile_seconds: the compiler took.
      unbounded: a loop's length is unknown and counted as one, so that operations and bytes are more.
    """

    program: str
    prompts: int
    row_tokens: int
    fit: str
    needed_bytes: int
    limit_bytes: int
    resident_bytes: int
    memory: MemoryUse | None = None
    flops: float | None = None
    useful_flops: float | None = None
    repeated_flops: float | None = None
    least_bytes: int | None = None
    collectives: Mapping[str, hlo.Traffic] | None = None
    roofline_seconds: float | None = None
    cycle_seconds: float | None = None
    compile_seconds: float = 0.0
    unbounded: bool = False
    rows: int = 0
    tokens: int = 0
    computed_over_real: float | None = None
    steps: int = 0
    repeated_over_real: float | None = None
    tokens_per_second: float | None = None
    useful_share: float | None = None
    repeated_share: float | None = None


@dataclass(frozen=True)
class Suggestion:
    """The largest value of a key that fits, of those tried by doubling or halving; None where none does."""

    key: str
    value: int | None
    tried: tuple[tuple[int, str], ...]  # values and their verdicts


@dataclass(frozen=True)
class Plan:
    """A config compiled for a topology: its batches and mesh as compiled, and a finding for each program."""

    topology: Topology
    mesh: Mapping[str, int]
    config: Config
    findings: tuple[Finding, ...]
    quick: bool
    lengths: str = FULL.name  # that programs are counted for
    suggestions: tuple[Suggestion, ...] = ()  # one a key that was asked for


@dataclass(frozen=True)
class Attempt:
    """A slice that was tried, with a mesh, and the first program that did not fit; None where all did."""

    topology: Topology
    mesh: Mapping[str, int]
    failed: Finding | None


def fit_verdict(needed: int, limit: int) -> str:
    """The verdict on ``needed`` of ``limit`` bytes: at most `ROOM` of them is a clear fit."""
    if needed > limit:
        return "no"
    return "fits" if needed <= ROOM * limit else "tight"


def least_traffic(memory: MemoryUse, tokens: int = 1, per_token: int = 0) -> int:
    """Bytes that one call moves between a device and its memory, at the least.

    Arguments, outputs and temporaries once each; and again, in each further turn of a loop over ``tokens``,
    what every turn reads: decoding reads the weights and the prompts' keys and values.
    """
    return memory.argument + memory.output + memory.temporary + (tokens - 1) * per_token


def examine(work: Workload, program_name: str, topology: Topology, *, quick: bool) -> Finding:
    """Compile one program and judge it; one whose arguments alone are too large is not compiled."""
    chip, train, decode = TPUS[topology.generation], work.config.train, program_name == "decode"
    rollout = program_name in BATCHES["rollout.prompt_slots"]
    real = real_tokens(work, program_name, chip.peak_flops / chip.hbm_bandwidth)
    prompts = work.prompt_slots if rollout else train.update_prompts
    resident = resident_bytes(work, program_name)
    # Without optimization, libtpu 0.0.42 aborts on collectives between the two devices of a lone chip.
    lone = chip.devices_per_chip > 1 and topology.chips == 1
    with jax.set_mesh(work.mesh):
        function, arguments, static = program(work, program_name)
        given = device_bytes(arguments)
        before = Finding(
            program_name,
            prompts,
            0 if decode else (work.prompt_budget if rollout else work.budget).tokens,
            "no",
            given + resident,
            chip.hbm_bytes,
            resident_bytes=resident,
            **dataclasses.asdict(real),
        )
        if before.needed_bytes > before.limit_bytes:
            return before
        traced = function.trace(*arguments, **static)
        compiled = aot.compile_for_tpu(traced, aot.QUICK if quick and not lone else None)
    tokens = work.config.rollout.max_tokens if decode else 1
    return judge(
        before,
        compiled,
        argument_bytes=given,
        flops=useful_flops(work, program_name, traced, real),
        devices=work.mesh.size,
        chip=chip,
        trips=work.trips(program_name),
        tokens=tokens,
        per_token=token_read_bytes(work) if decode else 0,
        quick=quick,
        expensive_fraction=work.full_attention_fraction,
    )


def judge(
    before: Finding,
    compiled: Compiled,
    *,
    argument_bytes: int,
    flops: UsefulFlops,
    devices: int,
    chip: Chip,
    trips: Mapping[str, float],
    tokens: int = 1,
    per_token: int = 0,
    quick: bool,
    expensive_fraction: float = 1.0,
) -> Finding:
    """The finding on a program that was compiled.

    Args:
      before: program, batches, limit and resident bytes.
      compiled: the compiler's answer.
      argument_bytes: of a device's part of all arguments. Those the program does not read are no part of it
        when compiled, and are resident.
      flops: over all devices.
      devices: their number.
      chip: their kind.
      trips: of its loops, as for `mmrl.plan.flops.count`.
      tokens: turns of the loop that samples them; ``per_token`` bytes of the arguments are read in each.
      quick: compiled by `mmrl.plan.aot.QUICK`, which leaves cycles and collectives without meaning.
      expensive_fraction: share of the choices in a program that fall on the expensive branch.
    """
    before = replace(
        before,
        flops=flops.computed.total / devices,
        useful_flops=flops.useful / devices,
        repeated_flops=None if flops.repeated is None else flops.repeated / devices,
        compile_seconds=compiled.seconds,
        unbounded=flops.computed.unbounded,
    )
    if compiled.memory is None:
        return replace(before, fit="no", needed_bytes=compiled.needed_bytes + before.resident_bytes)
    cost = hlo.analyse(compiled.text, trips=trips, expensive_fraction=expensive_fraction)
    resident = before.resident_bytes + max(0, argument_bytes - compiled.memory.argument)
    needed = compiled.memory.peak + resident
    moved = least_traffic(compiled.memory, tokens, per_token)
    wire_bytes = 0.0 if quick else cost.wire_bytes
    roofline = hlo.roofline_seconds(flops.computed.total / devices, moved, wire_bytes, chip)
    cycles = None if quick else hlo.cycle_seconds(cost.cycles, chip)
    seconds, peak = max(roofline, cycles or 0.0), chip.peak_flops
    rate = rates(before.tokens, seconds, before.useful_flops, before.repeated_flops, peak)
    return replace(
        before,
        fit=fit_verdict(needed, before.limit_bytes),
        needed_bytes=needed,
        resident_bytes=resident,
        memory=compiled.memory,
        least_bytes=moved,
        collectives=cost.traffic,
        roofline_seconds=roofline,
        cycle_seconds=cycles,
        unbounded=flops.computed.unbounded or cost.unbounded,
        tokens_per_second=rate.tokens_per_second,
        useful_share=rate.useful_share,
        repeated_share=rate.repeated_share,
    )


def plan(
    config: Config,
    model: ModelConfig,
    topology: Topology,
    names: Sequence[str] = PROGRAMS,
    *,
    per_shard: int | None = None,
    quick: bool = False,
    suggest: bool = False,
    lengths: LengthDistribution = FULL,
    log: Log = lambda line: None,
) -> Plan:
    """Compile programs of a config for a topology, and count for ``lengths``; ``log`` gets a line on each.

    Raises:
      ValueError: the mesh or a batch of the config does not fit the topology, or libtpu is missing.
    """
    work = _workload(config, model, topology, dataclasses.asdict(config.mesh), per_shard, lengths)
    for line in sharding_warnings(work.config, model, work.mesh):
        log(line)
    findings = tuple(_examine_aloud(work, name, topology, quick, log) for name in PROGRAMS if name in names)
    suggestions: tuple[Suggestion, ...] = ()
    if suggest:
        suggestions = tuple(
            _suggestion(work, key, asked, topology, log)
            for key, of_key in BATCHES.items()
            if (asked := [found for found in findings if found.program in of_key])
        )
    return Plan(topology, dict(work.mesh.shape), work.config, findings, quick, lengths.name, suggestions)


def smallest(
    config: Config,
    model: ModelConfig,
    generation: str,
    names: Sequence[str] = PROGRAMS,
    *,
    per_shard: int = 1,
    quick: bool = False,
    lengths: LengthDistribution = FULL,
    log: Log = lambda line: None,
) -> tuple[Plan | None, tuple[Attempt, ...]]:
    """The first of `slices_to_try` on which all programs fit, with all that was tried on the way.

    Each slice is tried with the mesh of the config, and with as many of the key/value heads as it has devices
    for cut over ``tensor``: with less on that axis a device holds more.

    Raises:
      ValueError: the generation is not known, ``per_shard`` is not positive, or libtpu is missing.
    """
    attempts: list[Attempt] = []
    for topology in slices_to_try(generation):
        for axes in _meshes(config, model, topology.devices):
            work = _workload(config, model, topology, axes, per_shard, lengths)
            found: dict[str, Finding] = {}
            failed = None
            for name in (name for name in LARGEST_FIRST if name in names):
                found[name] = _examine_aloud(work, name, topology, quick, log)
                if found[name].fit != "fits":
                    failed = found[name]
                    break
            attempts.append(Attempt(topology, dict(work.mesh.shape), failed))
            if failed is None:
                findings = tuple(found[name] for name in PROGRAMS if name in found)
                mesh = dict(work.mesh.shape)
                return Plan(topology, mesh, work.config, findings, quick, lengths.name), tuple(attempts)
    return None, tuple(attempts)


def _workload(
    config: Config,
    model: ModelConfig,
    topology: Topology,
    axes: Mapping[str, int],
    per_shard: int | None,
    lengths: LengthDistribution,
) -> Workload:
    mesh = aot.device_mesh(topology, axes)
    config = with_batches(config, batch_shards(mesh), per_shard)
    return workload(config, with_compute_options(model, config, mesh), mesh, lengths)


def with_batches(config: Config, shards: int, per_shard: int | None) -> Config:
    """The config with batches that a mesh cuts evenly into ``shards`` parts.

    Args:
      config: the run.
      shards: parts that the mesh cuts the prompts of a batch into.
      per_shard: prompts of one part that are sampled at once; the other batches grow to multiples of the
        parts where they must, and rows that are left open are as short as they can be. None leaves all as
        they are.

    Raises:
      ValueError: the batches do not divide over the mesh (keys and fix are named).
    """
    train, rollout = config.train, config.rollout
    if per_shard is not None:
        slots_at_once = per_shard * shards
        update = shards * math.ceil(train.update_prompts / shards)
        prompts = update * math.ceil(max(rollout.prompts, slots_at_once) / update)
        return replace(
            config,
            train=replace(train, update_prompts=update, row_tokens=train.row_tokens or 1),
            rollout=replace(rollout, prompts=prompts, prompt_slots=slots_at_once),
        )
    slots = (
        ("rollout.prompt_slots", rollout.prompt_slots)
        if rollout.prompt_slots
        else ("rollout.prompts", rollout.prompts)
    )
    batches = (("train.update_prompts", train.update_prompts), slots)
    uneven = [f"config.{key}={size}" for key, size in batches if size % shards]
    if uneven:
        raise ValueError(
            f"{' and '.join(uneven)} cannot be cut evenly into the {shards} parts that config.mesh "
            f"makes of a batch: choose multiples of {shards}, or let --per-shard=1 choose them; a larger "
            "config.mesh.tensor makes fewer parts"
        )
    return config


def _meshes(config: Config, model: ModelConfig, devices: int) -> Iterator[Mapping[str, int]]:
    """Axes to try on one slice: those of the config, if it has devices for them, and all heads cut."""
    own = dataclasses.asdict(config.mesh)
    cut = {"replica": 1, "data": 1, "fsdp": -1, "expert": 1, "tensor": math.gcd(model.kv_heads, devices)}
    known = math.prod(size for size in own.values() if size > 0)
    if own["replica"] == 1 and (devices == known or (-1 in own.values() and devices % known == 0)):
        yield own
    if own != cut:
        yield cut


def _examine_aloud(work: Workload, program_name: str, topology: Topology, quick: bool, log: Log) -> Finding:
    found = examine(work, program_name, topology, quick=quick)
    took = f"compiled in {found.compile_seconds:.0f} s" if found.compile_seconds else "not compiled"
    log(
        f"{topology} {mesh_text(work.mesh.shape)}: {program_name} of {found.prompts}: {found.fit}, "
        f"{found.needed_bytes / GIB:.2f} of {found.limit_bytes / GIB:.2f} GiB, {took}"
    )
    return found


def mesh_text(axes: Mapping[str, int]) -> str:
    """The axes of a mesh that cut anything, on one line."""
    return " ".join(f"{axis} {size}" for axis, size in axes.items() if size > 1) or "one device"


def _suggestion(
    work: Workload, key: str, asked: Sequence[Finding], topology: Topology, log: Log
) -> Suggestion:
    """Double (where all fits) or halve a batch until the verdict turns; compiled without optimization."""
    programs = {found.program for found in asked}
    names = [name for name in BATCHES[key] if name in programs]
    start = asked[0].row_tokens or asked[0].prompts
    verdict = _worst(found.fit for found in asked)
    grow = verdict == "fits"
    best, tried = start if grow else None, [(start, verdict)]
    for value in _candidates(work, key, start, grow=grow):
        section, field = key.split(".")
        changed = replace(getattr(work.config, section), **{field: value})
        resized = replace(work, config=replace(work.config, **{section: changed}))
        verdict = "fits"
        for name in names:
            verdict = _examine_aloud(resized, name, topology, True, log).fit
            if verdict != "fits":
                break
        tried.append((value, verdict))
        best = value if verdict == "fits" else best
        if (verdict == "fits") != grow:
            break
    return Suggestion(key, best, tuple(tried))


def _candidates(work: Workload, key: str, start: int, *, grow: bool) -> Iterator[int]:
    """Twice, four times ... ``start``, or its half, quarter ..., as far as batches and mesh allow."""
    shards, config = batch_shards(work.mesh), work.config
    if key == "train.row_tokens":
        choices = row_choices(config, shards, max(config.data.prompt_buckets))
        yield from reversed([n for n in choices if n > start]) if grow else (n for n in choices if n < start)
        return
    bound, value = config.rollout.prompts, start
    while grow or value % 2 == 0:
        value = value * 2 if grow else value // 2
        if value > bound or value % shards or value < 1 or bound % value:
            return
        yield value


def _worst(verdicts: Iterator[str]) -> str:
    return max(verdicts, key=("fits", "tight", "no").index)
