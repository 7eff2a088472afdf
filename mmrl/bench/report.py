"""Measurements as JSON types, and as a table for people: the same numbers."""

import dataclasses
import datetime
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from mmrl.bench.measure import Limits, Measured
from mmrl.plan.chips import GIB
from mmrl.plan.workload import Workload, device_bytes, program, read_each_token, resident_bytes

_COUNTED = {"prefill": "prompt", "decode": "response", "score": "prompt and response"}
_NOTES = """\
tokens: of prompts in prefill, of responses in decode, of both in score and update.
of FLOP/s: products as often as the method needs them (not what is computed a second time to save memory),
  against the limit. of bytes/s: bytes that must move at the least, against the limit.
floor: the longer of the two at the limits. memory: of the program's arrays, on one device."""


def report(model: str, work: Workload, found: Sequence[Measured], limits: Limits) -> dict[str, Any]:
    """All that was measured, and on what, as JSON types; docs/commands.md has the schema.

    Args:
      model: what to call it.
      work: what was run.
      found: one a program.
      limits: of a device.
    """
    device = work.mesh.devices.flat[0]
    sizes = dataclasses.asdict(work.model)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "hardware": {
            "kind": device.device_kind,
            "platform": device.platform,
            "devices": work.mesh.size,
            "processes": jax.process_count(),
            "limits": dataclasses.asdict(limits),
        },
        "mesh": dict(work.mesh.shape),
        "model": {
            "name": model,
            **sizes,
            "dtype": jnp.dtype(work.model.dtype).name,
            "weights": _weight_count(work),
        },
        "config": dataclasses.asdict(work.config),
        "programs": [_row(work, one, limits) for one in found],
    }


def _weight_count(work: Workload) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program(work, "prefill")[1][0]))


def _row(work: Workload, one: Measured, limits: Limits) -> dict[str, Any]:
    shapes = shapes_of(work, one.name)
    seconds, tokens = statistics.median(one.seconds), token_count(one.name, shapes)
    moved = least_bytes(work, one.name)
    compute, traffic = one.model_flops / work.mesh.size / limits.flops, moved / limits.bandwidth
    floor = max(compute, traffic)
    row: dict[str, Any] = {
        "program": one.name,
        "shapes": shapes,
        "compile_seconds": one.compile_seconds,
        "seconds": {"median": seconds, "min": min(one.seconds), "max": max(one.seconds)},
        "repeats": len(one.seconds),
        "tokens": tokens,
        "tokens_counted": _COUNTED.get(one.name, "prompt and response"),
        "tokens_per_second": tokens / seconds,
        "flops": one.flops,
        "model_flops": one.model_flops,
        "flops_share": compute / seconds,
        "least_bytes": moved,
        "bytes_share": traffic / seconds,
        "floor_seconds": floor,
        "times_floor": seconds / floor,
        "memory": None,
        "resident_bytes": resident_bytes(work, one.name),
        "allocator_peak_bytes": one.held_bytes,
    }
    if one.memory:
        row["memory"] = {**dataclasses.asdict(one.memory), "held": _held(work, one)}
    if one.name == "decode":
        steps = shapes["response_tokens"]
        row["step"] = {"steps": steps, "seconds": seconds / steps, "floor_seconds": floor / steps}
    return row


def shapes_of(work: Workload, name: str) -> dict[str, int]:
    """What one call of a program is given."""
    data, rollout, train = work.config.data, work.config.rollout, work.config.train
    prompt = {"prompt_tokens": max(data.prompt_buckets), "patches": max(data.patch_buckets)}
    if name == "prefill":
        return {"prompts": work.lanes, **prompt}
    group = {"group": rollout.group, "response_tokens": rollout.max_tokens}
    if name == "decode":
        return {"prompts": work.lanes, "prompt_tokens": prompt["prompt_tokens"], **group}
    micro = {"micro_batches": train.update_prompts // train.micro_prompts}
    return {"prompts": train.update_prompts, **prompt, **group, **micro}


def token_count(name: str, shapes: dict[str, int]) -> int:
    """Tokens that a call gets through; which ones, the row says."""
    prompt = 0 if name == "decode" else shapes["prompt_tokens"]
    response = 0 if name == "prefill" else shapes["group"] * shapes["response_tokens"]
    return shapes["prompts"] * (prompt + response)


def least_bytes(work: Workload, name: str) -> int:
    """Bytes a device cannot but move to or from its memory in one call; activations are left out.

    prefill: the weights are read (but the tables of tokens, of which it needs some rows or none), the prefix
    is written. decode: in every step the weights (but the vision tower and the table of inputs), the prefix
    once a group, and the keys and values of each response so far are read, and those of one token written.
    score: the weights are read. update: weights and optimizer state are read and written.
    """
    arguments = program(work, name)[1]
    if name == "update":
        return 2 * device_bytes(arguments[0])
    params = arguments[0]
    if name == "score":
        return device_bytes(params)
    prefix = program(work, "decode")[1][2].prefix
    keys_and_values = device_bytes((prefix.key, prefix.value))
    if name == "prefill":
        read = {part: leaf for part, leaf in params.items() if part not in ("embedding", "lm_head")}
        return device_bytes(read) + keys_and_values
    steps, group = work.config.rollout.max_tokens, work.config.rollout.group
    every_step = device_bytes(read_each_token(params)) + keys_and_values
    own_token = group * keys_and_values // prefix.mask.shape[1]
    return steps * every_step + own_token * (steps * (steps + 1) // 2 + steps)


def _held(work: Workload, one: Measured) -> int:
    """Bytes of a program's arrays while it runs: by the TPU compiler, whose temporaries share room over time.

    Elsewhere the temporaries are one block beside the rest, and the compiler's own peak may leave it out.
    """
    memory = one.memory
    assert memory is not None
    whole = memory.argument + memory.output - memory.alias + memory.temporary
    return memory.peak if work.mesh.devices.flat[0].platform == "tpu" else whole


def table(made: dict[str, Any]) -> str:
    """`report` as text."""
    hardware, model, limit = made["hardware"], made["model"], made["hardware"]["limits"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in made["mesh"].items())
    lines = [
        f"{hardware['devices']} x {hardware['kind']} ({mesh}), jax {made['versions']['jax']}, {made['date']}",
        f"{model['name']}: {_scaled(model['weights'], ' weights')}, {model['layers']} layers of width "
        f"{model['width']}, {model['dtype']}, remat {model['remat']}, attention {model['attention']}",
        f"limits of a device ({limit['source']}): {_scaled(limit['flops'], 'FLOP/s')}, "
        f"{_scaled(limit['bandwidth'], 'B/s')}",
        "",
        *(f"{row['program']:<9}{_shape_text(row['shapes'])}" for row in made["programs"]),
        "",
        *_columns(made["programs"]),
        "",
    ]
    for row in made["programs"]:
        if "step" in row:
            step = row["step"]
            lines.append(
                f"decode: {1e3 * step['seconds']:.4g} ms a step, {row['times_floor']:.3g} times the floor of "
                f"{1e3 * step['floor_seconds']:.4g} ms"
            )
    return "\n".join([*lines, _NOTES])


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    def percent(share: float) -> str:
        return f"{100 * share:.3g} %"

    cells: dict[str, Callable[[dict[str, Any]], str]] = {
        "": lambda row: row["program"],
        "compile s": lambda row: f"{row['compile_seconds']:.1f}",
        "s a call": lambda row: f"{row['seconds']['median']:.4g}",
        "min": lambda row: f"{row['seconds']['min']:.4g}",
        "max": lambda row: f"{row['seconds']['max']:.4g}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "of FLOP/s": lambda row: percent(row["flops_share"]),
        "of bytes/s": lambda row: percent(row["bytes_share"]),
        "x floor": lambda row: f"{row['times_floor']:.3g}",
        "memory GiB": lambda row: f"{row['memory']['held'] / GIB:.3f}" if row["memory"] else "-",
    }
    lines = [[*cells], *([cell(row) for cell in cells.values()] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(cells))]
    return [
        "  ".join(
            text.rjust(width) if at else text.ljust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def _shape_text(shapes: dict[str, int]) -> str:
    prompt = f"{shapes['prompts']} prompts of {shapes['prompt_tokens']} tokens"
    image = f" and {shapes['patches']} patches" if "patches" in shapes else ""
    group = (
        f", {shapes['group']} responses of {shapes['response_tokens']} tokens to each"
        if "group" in shapes
        else ""
    )
    micro = f", {shapes['micro_batches']} micro-batches" if "micro_batches" in shapes else ""
    return prompt + image + group + micro


def _scaled(value: float, unit: str) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {letter}{unit}"
    return f"{value:.4g} {unit}"
