"""Programs of a config compiled for a topology; the largest batches and the smallest slice that fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax

from mmrl.config import Config
from mmrl.mesh import batch_shards
from mmrl.models import qwen2_5_vl_config
from mmrl.open import sharding_warnings, with_compute_options
from mmrl.plan import aot, flops
from mmrl.plan.chips import GIB, TPUS, Topology, chip_count, device_count, name, slices_to_try
from mmrl.plan.verdict import Finding, judge, too_large
from mmrl.plan.workload import (
    PROGRAMS,
    Workload,
    costlier_branches,
    device_bytes,
    one_prompt_each,
    program,
    read_each_token,
    resident_bytes,
    workload,
)

Say = Callable[[str], None]

GREEDY_FIRST = ("update", "decode", "score", "prefill")  # what asks for most is compiled first in a search
BATCHES = {"train.micro_prompts": ("update", "score"), "rollout.lanes": ("decode", "prefill")}
"""Keys of the config that bound memory, and the programs that they bound it for."""


@dataclass(frozen=True)
class Suggestion:
    """The largest value of a key that fits, of those tried by doubling or halving; None where none does."""

    key: str
    value: int | None
    tried: tuple[tuple[int, str], ...]  # values and their verdicts


@dataclass(frozen=True)
class Plan:
    """What came of compiling a config for a topology.

    Attributes:
      topology: what it was compiled for.
      mesh: size of each axis.
      config: the run, its batches as compiled.
      findings: one a program.
      quick: compiled in haste: for the verdict alone.
      suggestions: one a key that was asked for.
    """

    topology: Topology
    mesh: Mapping[str, int]
    config: Config
    findings: tuple[Finding, ...]
    quick: bool
    suggestions: tuple[Suggestion, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """A slice that was tried, with a mesh, and the first program that did not fit; None where all did."""

    topology: Topology
    mesh: Mapping[str, int]
    failed: Finding | None


def sized(config: Config, shards: int, per_shard: int | None) -> Config:
    """The config with batches that a mesh cuts evenly into ``shards`` parts.

    Args:
      config: the run.
      shards: parts that the mesh cuts the prompts of a batch into.
      per_shard: prompts of one part, computed at once; the other batches grow to multiples where they must.
        None leaves all as they are.

    Raises:
      ValueError: the batches do not divide over the mesh (keys and fix are named).
    """
    config = one_prompt_each(config, shards)
    train, rollout = config.train, config.rollout
    if per_shard is not None:
        if per_shard < 1:
            raise ValueError(f"--per-shard={per_shard} should be 1 or more")
        micro = per_shard * shards
        update = micro * math.ceil(train.update_prompts / micro)
        prompts = update * math.ceil(rollout.prompts / update)
        return replace(
            config,
            train=replace(train, micro_prompts=micro, update_prompts=update),
            rollout=replace(rollout, prompts=prompts, lanes=micro),
        )
    lanes = ("rollout.lanes", rollout.lanes) if rollout.lanes else ("rollout.prompts", rollout.prompts)
    uneven = [
        f"config.{key}={size}"
        for key, size in (("train.micro_prompts", train.micro_prompts), lanes)
        if size % shards
    ]
    if uneven:
        raise ValueError(
            f"{' and '.join(uneven)} cannot be cut evenly into the {shards} parts that config.mesh "
            f"makes of a batch: choose multiples of {shards}, or let --per-shard=1 choose them; a larger "
            "config.mesh.tensor makes fewer parts"
        )
    return config


def plan(
    config: Config,
    sizes: qwen2_5_vl_config.Config,
    topology: Topology,
    names: Sequence[str] = PROGRAMS,
    *,
    per_shard: int | None = None,
    quick: bool = False,
    suggest: bool = False,
    say: Say = lambda line: None,
) -> Plan:
    """Compile programs of a config for a topology; ``say`` is told of each.

    Raises:
      ValueError: the mesh or a batch of the config does not fit the topology, or libtpu is missing.
    """
    mesh = aot.device_mesh(topology, dataclasses.asdict(config.mesh))
    config = sized(config, batch_shards(mesh), per_shard)
    for line in sharding_warnings(config, sizes, mesh):
        say(line)
    work = workload(config, with_compute_options(sizes, config, mesh), mesh)
    findings = tuple(_examined(work, one, topology, quick, say) for one in PROGRAMS if one in names)
    suggestions: tuple[Suggestion, ...] = ()
    if suggest:
        suggestions = tuple(_suggestion(work, key, findings, topology, say) for key in BATCHES)
    return Plan(
        topology, dict(mesh.shape), config, findings, quick, tuple(one for one in suggestions if one.tried)
    )


def examine(work: Workload, program_name: str, topology: Topology, *, quick: bool) -> Finding:
    """Compile one program and judge it; one whose arguments alone are too large is not compiled."""
    chip = TPUS[topology.generation]
    train = work.config.train
    rollout = program_name in BATCHES["rollout.lanes"]
    prompts, in_call = (work.lanes,) * 2 if rollout else (train.micro_prompts, train.update_prompts)
    resident = resident_bytes(work, program_name)
    # Without optimization, libtpu 0.0.42 aborts on collectives between the two devices of a lone chip.
    lone = chip.devices_per_chip > 1 and chip_count(topology) == 1
    with jax.set_mesh(work.mesh):
        function, arguments, static = program(work, program_name)
        given = device_bytes(arguments)
        refused = too_large(program_name, prompts, in_call, given, resident, chip)
        if refused:
            return refused
        traced = function.trace(*arguments, **static)
        compiled = aot.compile(traced, aot.IN_HASTE if quick and not lone else {})
    costlier = costlier_branches(work.model)
    tokens = work.config.rollout.max_tokens if program_name == "decode" else None
    return judge(
        program_name,
        prompts,
        in_call,
        compiled,
        arguments=given,
        resident=resident,
        flops=flops.count(traced.jaxpr, while_trips=tokens, costlier=costlier),
        devices=work.mesh.size,
        chip=chip,
        tokens=tokens,
        per_token=_per_token(arguments) if program_name == "decode" else 0,
        quick=quick,
        costlier=costlier,
    )


def _per_token(arguments: tuple) -> int:
    """Bytes of decoding's arguments that each token reads: layers, the output table, and the prefix."""
    params, _, lanes, _ = arguments
    return device_bytes((read_each_token(params), lanes.prefix))


def _examined(work: Workload, program_name: str, topology: Topology, quick: bool, say: Say) -> Finding:
    found = examine(work, program_name, topology, quick=quick)
    took = f"compiled in {found.compile_seconds:.0f} s" if found.compile_seconds else "not compiled"
    say(
        f"{name(topology)} {mesh_text(work.mesh.shape)}: {program_name} of {found.prompts}: {found.fit}, "
        f"{found.needed_bytes / GIB:.2f} of {found.limit_bytes / GIB:.2f} GiB, {took}"
    )
    return found


def mesh_text(axes: Mapping[str, int]) -> str:
    """The axes of a mesh that cut anything, on one line."""
    return " ".join(f"{axis} {size}" for axis, size in axes.items() if size > 1) or "one device"


def _suggestion(
    work: Workload, key: str, findings: Sequence[Finding], topology: Topology, say: Say
) -> Suggestion:
    """Double (where all fits) or halve a batch until the verdict turns; compiled in haste."""
    asked = [found for found in findings if found.program in BATCHES[key]]
    if not asked:
        return Suggestion(key, None, ())
    names = [one for one in BATCHES[key] if one in {found.program for found in asked}]
    start, verdict = asked[0].prompts, _worst(found.fit for found in asked)
    grow = verdict == "fits"
    best, tried = start if grow else None, [(start, verdict)]
    for value in _candidates(work, key, start, grow=grow):
        verdict = _verdict(replace(work, config=_with_batch(work.config, key, value)), names, topology, say)
        tried.append((value, verdict))
        best = value if verdict == "fits" else best
        if (verdict == "fits") != grow:
            break
    return Suggestion(key, best, tuple(tried))


def _verdict(work: Workload, names: Sequence[str], topology: Topology, say: Say) -> str:
    """The first that is no clear fit, compiled in haste."""
    for one in names:
        found = _examined(work, one, topology, True, say)
        if found.fit != "fits":
            return found.fit
    return "fits"


def _candidates(work: Workload, key: str, start: int, *, grow: bool) -> Iterator[int]:
    """Twice, four times ... ``start``, or its half, quarter ..., as far as batches and mesh allow."""
    shards, config = batch_shards(work.mesh), work.config
    bound = config.train.update_prompts if key == "train.micro_prompts" else config.rollout.prompts
    value = start
    while True:
        if not grow and value % 2:
            return
        value = value * 2 if grow else value // 2
        if value > bound or value % shards or value < 1 or bound % value:
            return
        yield value


def _with_batch(config: Config, key: str, value: int) -> Config:
    if key == "train.micro_prompts":
        return replace(config, train=replace(config.train, micro_prompts=value))
    return replace(config, rollout=replace(config.rollout, lanes=value))


def _worst(verdicts: Iterator[str]) -> str:
    return max(verdicts, key=("fits", "tight", "no").index)


def smallest(
    config: Config,
    sizes: qwen2_5_vl_config.Config,
    generation: str,
    names: Sequence[str] = PROGRAMS,
    *,
    per_shard: int = 1,
    quick: bool = False,
    say: Say = lambda line: None,
) -> tuple[Plan | None, tuple[Attempt, ...]]:
    """The first of `slices_to_try` on which all programs fit, with all that was tried on the way.

    Each slice is tried with the mesh of the config, and with as many of the key/value heads as it has devices
    for cut over ``tensor``: with less on that axis a device holds more.

    Raises:
      ValueError: the generation is not known, ``per_shard`` is not positive, or libtpu is missing.
    """
    attempts: list[Attempt] = []
    for topology in slices_to_try(generation):
        for axes in _meshes(config, sizes, device_count(topology)):
            mesh = aot.device_mesh(topology, axes)
            resized = sized(config, batch_shards(mesh), per_shard)
            work = workload(resized, with_compute_options(sizes, resized, mesh), mesh)
            found, failed = _all_fit(work, names, topology, quick, say)
            attempts.append(Attempt(topology, dict(mesh.shape), failed))
            if failed is None:
                return Plan(topology, dict(mesh.shape), resized, found, quick), tuple(attempts)
    return None, tuple(attempts)


def _meshes(config: Config, sizes: qwen2_5_vl_config.Config, devices: int) -> Iterator[Mapping[str, int]]:
    """Axes to try on one slice: those of the config, if it has devices for them, and one of our own."""
    own = dataclasses.asdict(config.mesh)
    cut = {"replica": 1, "data": 1, "fsdp": -1, "tensor": math.gcd(sizes.kv_heads, devices)}
    known = math.prod(size for size in own.values() if size > 0)
    if own["replica"] == 1 and (devices == known or (-1 in own.values() and devices % known == 0)):
        yield own
    if own != cut:
        yield cut


def _all_fit(
    work: Workload, names: Sequence[str], topology: Topology, quick: bool, say: Say
) -> tuple[tuple[Finding, ...], Finding | None]:
    """Findings in the order of `PROGRAMS`, or the first that is no clear fit."""
    found: dict[str, Finding] = {}
    for one in GREEDY_FIRST:
        if one in names:
            found[one] = _examined(work, one, topology, quick, say)
            if found[one].fit != "fits":
                return (), found[one]
    return tuple(found[one] for one in PROGRAMS if one in found), None
