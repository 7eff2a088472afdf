"""Plans and measurements as tables, and as JSON types, whose schemas are in docs/commands.md."""

import dataclasses
import datetime
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from mmrl.plan.chips import GIB, TPUS
from mmrl.plan.measure import Limits, Measured, least_bytes
from mmrl.plan.search import Attempt, Finding, Plan, Suggestion, mesh_text
from mmrl.plan.useful import rates
from mmrl.plan.workload import Workload, program, resident_bytes
from mmrl.terminal import table_lines

_WORDS = {"fits": "fits", "tight": "tight", "no": "does not fit"}
_BATCH_KEYS = (
    "rollout.prompts",
    "rollout.prompt_slots",
    "rollout.group",
    "rollout.max_tokens",
    "train.update_prompts",
    "train.row_tokens",
)

_BYTES_NOTE = """\
operations: of matrix products, loops multiplied out, decoding to the last token it may sample. Of attention
  in score and update, the pairs of blocks in which a token reads another; elsewhere what masks hide too.
useful: operations that the tokens there are need, each once: none of empty slots, of tokens that do not read
  each other (in decode, those too), or of what is computed again. With repeated prompts: the same if each
  response came with its prompt, as other trainers count.
least bytes moved: arguments, outputs and temporaries once each, and in decode the weights and the prompts'
  keys and values once a token. A program moves more, so the true operations per byte are fewer."""
_ROOFLINE_NOTE = """\
roofline bound: the largest of operations, least bytes and bytes sent, each at the data sheet's peak. It
  leaves out that no product reaches the peak, that the three overlap in part only, latency, contention, the
  network between slices, and the host."""
_CYCLES_NOTE = """\
compiler's cycle sum: its estimate for each operation, at the clock the peak implies. It leaves out
  collectives, Pallas kernels (attention) and the host; some 30 % off for dense training, two to three times
  too long where memory bandwidth is the limit, as in decoding.
Both are estimates for comparing plans. Neither is a measured time."""
_QUICK_NOTE = """\
--quick: compiled without optimization. Memory is some 5 % off, either way; there is no cycle sum,
  the roofline is without the bytes sent, and collectives are not those of a run (an all-reduce may be a
  reduce-scatter there)."""
_TENSOR_NOTE = """\
In prefill and decode the weights are cut over config.mesh.tensor alone: more of it, up to the
number of key/value heads, makes room.
"""
_BENCH_NOTE = """\
tokens: that there are, of prompts in prefill, of responses in decode, of both, prompts once, in score and
  update; slots/token: computed ones over them. In decode as in a rollout of these lengths.
useful FLOP/s: products that these tokens need, each once (not what is computed a second time to save memory),
  against the limit; repeated: the same if each response came with its prompt, as other trainers count.
of bytes/s: bytes that must move at the least, against the limit.
floor: the longer of the two at the limits. memory: of the program's arrays, on one device."""


def plan_text(model: str, plan: Plan | None, attempts: Sequence[Attempt] = ()) -> str:
    """The output of `mmrl plan`: attempts of a search, and the plan if there is one."""
    lines = [
        f"{attempt.topology!s:<14}{mesh_text(attempt.mesh):<24}"
        + ("all fit" if attempt.failed is None else _shortfall(attempt.failed))
        for attempt in attempts
    ]
    if plan is None:
        return "\n".join([*lines, f"no slice that was tried holds {model}"])
    if attempts:
        lines += ["", f"the smallest slice is {plan.topology}", ""]
    memory = TPUS[plan.topology.generation].hbm_bytes
    refused = {found.program for found in plan.findings if found.fit == "no"}
    return "\n".join(
        [
            *lines,
            f"{model} on {plan.topology}: {plan.topology.devices} devices of {_gib(memory)} GiB; "
            f"mesh: {_axes(plan.mesh)}",
            ", ".join(f"config.{key}={value}" for key, value in _batches(plan).items()),
            f"counted for {plan.lengths} lengths; memory is for the longest",
            "",
            *table_lines(_plan_rows(plan), numbers=True),
            "",
            *([_TENSOR_NOTE] if refused & {"prefill", "decode"} else []),
            *map(_suggestion_line, plan.suggestions),
            *([""] if plan.suggestions else []),
            _BYTES_NOTE,
            _ROOFLINE_NOTE,
            _QUICK_NOTE if plan.quick else _CYCLES_NOTE,
        ]
    )


def plan_json(model: str, plan: Plan | None, attempts: Sequence[Attempt] = ()) -> dict[str, Any]:
    """The same as JSON types."""
    tried = [
        {
            "topology": str(attempt.topology),
            "mesh": dict(attempt.mesh),
            "failed": attempt.failed and dataclasses.asdict(attempt.failed),
        }
        for attempt in attempts
    ]
    found = plan and {
        "topology": str(plan.topology),
        "devices": plan.topology.devices,
        "mesh": dict(plan.mesh),
        "batches": _batches(plan),
        "quick": plan.quick,
        "lengths": plan.lengths,
        "programs": [dataclasses.asdict(finding) for finding in plan.findings],
        "suggestions": [
            {
                "key": suggestion.key,
                "value": suggestion.value,
                "tried": [{"value": value, "fit": fit} for value, fit in suggestion.tried],
            }
            for suggestion in plan.suggestions
        ],
    }
    return {"model": model, "plan": found, "tried": tried}


def _batches(plan: Plan) -> dict[str, int]:
    """The keys of the config that bound a batch, as compiled."""
    parts = {key: key.split(".") for key in _BATCH_KEYS}
    return {key: getattr(getattr(plan.config, section), field) for key, (section, field) in parts.items()}


def _plan_rows(plan: Plan) -> list[list[str]]:
    """The table of findings: a title and one cell a program in each row."""

    def memory(field: str) -> Callable[[Finding], str]:
        return lambda found: "-" if found.memory is None else _gib(getattr(found.memory, field))

    def sent(kind: str) -> Callable[[Finding], str]:
        def cell(found: Finding) -> str:
            traffic = (found.collectives or {}).get(kind)
            return "-" if traffic is None else f"{traffic.count:,} {traffic.wire_bytes / 1e9:.3g}"

        return cell

    kinds = sorted({kind for found in plan.findings for kind in found.collectives or ()})
    rows: dict[str, Callable[[Finding], str]] = {
        "": lambda found: found.program,
        "prompts in one call": lambda found: str(found.prompts),
        "tokens in it, prompts once": lambda found: f"{found.tokens:,}" if found.tokens else "-",
        "rows computed": lambda found: str(found.rows or "-"),
        "slots of a row": lambda found: str(found.row_tokens or "-"),
        "slots computed over tokens": lambda found: _number(found.computed_over_real),
        "with repeated prompts over tokens": lambda found: _number(found.repeated_over_real),
        "steps of decoding": lambda found: f"{found.steps:,}" if found.steps else "-",
        "verdict": lambda found: _WORDS[found.fit],
        "GiB on a device": lambda found: "",
        "  arguments": memory("argument"),
        "  outputs": memory("output"),
        "  temporaries": memory("temporary"),
        "  peak of the program": memory("peak"),
        "  resident beside it": lambda found: _gib(found.resident_bytes),
        "  needed": lambda found: (">" if found.memory is None else "") + _gib(found.needed_bytes),
        "  needed, % of memory": lambda found: f"{100 * found.needed_bytes / found.limit_bytes:.1f}",
        "operations, TFLOP on a device": lambda found: (
            (">" if found.unbounded and found.flops is not None else "") + _number(found.flops, 1e-12)
        ),
        "  useful": lambda found: _number(found.useful_flops, 1e-12),
        "  useful with repeated prompts": lambda found: _number(found.repeated_flops, 1e-12),
        "least GB moved on a device": lambda found: _number(found.least_bytes, 1e-9),
        "operations per least byte": lambda found: _number(intensity(found)),
        "sent by a device in one call": lambda found: "" if found.collectives else "-",
        **{f"  {kind}, times and GB": sent(kind) for kind in kinds},
        "estimates, ms for one call": lambda found: "",
        "  roofline bound": lambda found: _number(found.roofline_seconds, 1e3),
        "  compiler's cycle sum": lambda found: _number(found.cycle_seconds, 1e3),
        "by the longer of them": lambda found: "" if found.tokens_per_second else "-",
        "  real tokens/s": lambda found: _number(found.tokens_per_second),
        "  useful FLOP/s, % of peak": lambda found: _number(found.useful_share, 100),
        "  with repeated prompts, %": lambda found: _number(found.repeated_share, 100),
        "compiled in, s": lambda found: _number(found.compile_seconds or None),
    }
    if plan.quick:
        del rows["  compiler's cycle sum"]
    return [[title, *map(cell, plan.findings)] for title, cell in rows.items()]


def intensity(found: Finding) -> float | None:
    """Operations per byte moved at the least, an upper bound; None where the program was refused."""
    if found.flops is None or not found.least_bytes:
        return None
    return found.flops / found.least_bytes


def _shortfall(found: Finding) -> str:
    needed, limit = _gib(found.needed_bytes), _gib(found.limit_bytes)
    return f"{found.program}: needs {needed} of {limit} GiB ({_WORDS[found.fit]})"


def _suggestion_line(suggestion: Suggestion) -> str:
    tried = ", ".join(f"{value} {_WORDS[fit]}" for value, fit in suggestion.tried)
    if suggestion.value is None:
        return (
            f"config.{suggestion.key}: none that was tried is a clear fit ({tried}); "
            "more devices or config.mesh.tensor may do"
        )
    return f"config.{suggestion.key}={suggestion.value} is the largest that fits of those tried ({tried})"


def bench_json(model: str, work: Workload, found: Sequence[Measured], limits: Limits) -> dict[str, Any]:
    """The measurements of `mmrl bench` with the hardware, model and config they are of, as JSON types."""
    device = work.mesh.devices.flat[0]
    weights = jax.tree.leaves(program(work, "prefill")[1][0])
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
        "lengths": work.distribution.name,
        "model": {
            "name": model,
            **dataclasses.asdict(work.model),
            "dtype": jnp.dtype(work.model.dtype).name,
            "weights": sum(math.prod(leaf.shape) for leaf in weights),
        },
        "config": dataclasses.asdict(work.config),
        "programs": [_bench_row(work, measured, limits) for measured in found],
    }


def _bench_row(work: Workload, measured: Measured, limits: Limits) -> dict[str, Any]:
    name, shapes = measured.name, _shapes(work, measured.name)
    real, devices, counted = measured.real, work.mesh.size, measured.flops
    seconds, moved = statistics.median(measured.seconds), least_bytes(work, name)
    useful, repeated = counted.useful / devices, counted.repeated and counted.repeated / devices
    traffic = moved / limits.bandwidth
    floor = max(useful / limits.flops, traffic)
    row: dict[str, Any] = {
        "program": name,
        "shapes": shapes,
        "compile_seconds": measured.compile_seconds,
        "seconds": {"median": seconds, "min": min(measured.seconds), "max": max(measured.seconds)},
        "repeats": len(measured.seconds),
        "tokens": real.tokens,
        "tokens_counted": {"prefill": "prompt", "decode": "response"}.get(name, "prompt and response"),
        "computed_over_real": real.computed_over_real,
        "repeated_over_real": real.repeated_over_real,
        "flops": counted.computed.total,
        "useful_flops": counted.useful,
        "repeated_flops": counted.repeated,
        **dataclasses.asdict(rates(real.tokens, seconds, useful, repeated, limits.flops)),
        "least_bytes": moved,
        "bytes_share": traffic / seconds,
        "floor_seconds": floor,
        "times_floor": seconds / floor,
        "memory": None,
        "resident_bytes": resident_bytes(work, name),
        "allocator_peak_bytes": measured.held_bytes,
    }
    memory = measured.memory
    if memory:
        # The TPU compiler's temporaries share room over time. Elsewhere they are one block beside the rest,
        # and the compiler's own peak may leave it out.
        whole = memory.argument + memory.output - memory.alias + memory.temporary
        on_tpu = work.mesh.devices.flat[0].platform == "tpu"
        row["memory"] = {**dataclasses.asdict(memory), "held": memory.peak if on_tpu else whole}
    if name == "decode":
        steps = shapes["response_tokens"]
        row["step"] = {"steps": steps, "seconds": seconds / steps, "floor_seconds": floor / steps}
    return row


def _shapes(work: Workload, name: str) -> dict[str, int]:
    """Sizes of one call of a program."""
    data, rollout = work.config.data, work.config.rollout
    shapes = {
        "prompts": work.prompt_slots if name in ("prefill", "decode") else work.config.train.update_prompts,
        "prompt_tokens": max(data.prompt_buckets),
    }
    if name != "decode":
        shapes["patches"] = max(data.patch_buckets)
    if name != "prefill":
        shapes |= {"group": rollout.group, "response_tokens": rollout.max_tokens}
    if name in ("score", "update"):
        shapes |= {"rows": work.computed_rows, "row_tokens": work.budget.tokens}
    return shapes


def bench_text(made: Mapping[str, Any]) -> str:
    """`bench_json` as text."""
    hardware, model, limit = made["hardware"], made["model"], made["hardware"]["limits"]
    decode = next((row for row in made["programs"] if "step" in row), None)
    lines = [
        f"{hardware['devices']} x {hardware['kind']} ({_axes(made['mesh'])}), jax {made['versions']['jax']}, "
        f"{made['date']}",
        f"{model['name']}: {_scaled(model['weights'], ' weights')}, {model['layers']} layers of width "
        f"{model['width']}, {model['dtype']}, remat {model['remat']}, attention {model['attention']}",
        f"limits of a device ({limit['source']}): {_scaled(limit['flops'], 'FLOP/s')}, "
        f"{_scaled(limit['bandwidth'], 'B/s')}",
        "",
        f"{made['lengths']} lengths",
        *(f"{row['program']:<9}{_shape_text(row['shapes'])}" for row in made["programs"]),
        "",
        *table_lines(_bench_rows(made["programs"]), numbers=True),
        "",
    ]
    if decode:
        step = decode["step"]
        lines.append(
            f"decode: {1e3 * step['seconds']:.4g} ms a step, {decode['times_floor']:.3g} times the floor of "
            f"{1e3 * step['floor_seconds']:.4g} ms"
        )
    return "\n".join([*lines, _BENCH_NOTE])


def _bench_rows(programs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of measurements: one program in each row."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "": lambda row: row["program"],
        "compile s": lambda row: f"{row['compile_seconds']:.1f}",
        "s a call": lambda row: f"{row['seconds']['median']:.4g}",
        "min": lambda row: f"{row['seconds']['min']:.4g}",
        "max": lambda row: f"{row['seconds']['max']:.4g}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "slots/token": lambda row: f"{row['computed_over_real']:.3g}",
        "useful FLOP/s": lambda row: f"{100 * row['useful_share']:.3g} %",
        "repeated": lambda row: "-" if (x := row["repeated_share"]) is None else f"{100 * x:.3g} %",
        "of bytes/s": lambda row: f"{100 * row['bytes_share']:.3g} %",
        "x floor": lambda row: f"{row['times_floor']:.3g}",
        "memory GiB": lambda row: f"{row['memory']['held'] / GIB:.3f}" if row["memory"] else "-",
    }
    return [[*columns], *([cell(row) for cell in columns.values()] for row in programs)]


def _shape_text(shapes: Mapping[str, int]) -> str:
    parts = {
        "prompt_tokens": "{prompts} prompts of up to {prompt_tokens} tokens",
        "patches": " and {patches} patches",
        "group": ", {group} responses of up to {response_tokens} tokens to each",
        "rows": ", {rows} rows of {row_tokens} tokens",
    }
    return "".join(text for key, text in parts.items() if key in shapes).format(**shapes)


def _axes(mesh: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _number(value: float | None, scale: float = 1) -> str:
    """Four digits, and no exponent for large ones."""
    if value is None:
        return "-"
    scaled = value * scale
    return f"{scaled:,.4g}" if scaled < 1e4 else f"{scaled:,.0f}"


def _scaled(value: float, unit: str) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {letter}{unit}"
    return f"{value:.4g} {unit}"
