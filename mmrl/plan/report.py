"""A plan as a table for people, and as a JSON object for programs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mmrl.plan.chips import GIB, TPUS, device_count, name
from mmrl.plan.search import Attempt, Plan, Suggestion, mesh_text
from mmrl.plan.verdict import Finding

_WORDS = {"fits": "fits", "tight": "tight", "no": "does not fit"}

_BYTES_NOTE = """\
operations: of matrix products, loops multiplied out, decoding to the last token it may sample. Of a causal
  mask the hidden blocks are counted too.
least bytes moved: arguments, outputs and temporaries once each, and in decode the weights and the prompts'
  keys and values once a token. A program moves more, so the true operations per byte are fewer."""
_ROOFLINE_NOTE = """\
roofline bound: the largest of operations, least bytes and bytes sent, each at the data sheet's peak. It
  leaves out that no product reaches the peak, that the three overlap in part only, latency, contention, the
  network between slices, and the host."""
_CYCLES_NOTE = """\
compiler's cycle sum: what it expects of each operation, at the clock the peak implies. It leaves out
  collectives, Pallas kernels (attention) and the host; some 30 % off for dense training, two to three times
  too long where memory bandwidth is the limit, as in decoding."""
_QUICK_NOTE = """\
--quick: compiled without optimization. Memory is some 5 % off, either way; there is no cycle sum,
  the roofline is without the bytes sent, and collectives are not those of a run (an all-reduce may be a
  reduce-scatter there)."""
_NEITHER = "Both are estimates for comparing plans. Neither is a measured time."


def table(plan: Plan, model: str) -> str:
    """The plan as text; ``model`` names the sizes it is for."""
    chip = TPUS[plan.topology.generation]
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{model} on {name(plan.topology)}: {device_count(plan.topology)} devices of "
        f"{chip.hbm_bytes / GIB:.2f} GiB; mesh: {mesh}",
        ", ".join(f"config.{key}={value}" for key, value in batches(plan).items()),
        "",
        *_columns(_rows(plan.findings, plan.quick)),
        "",
        *_hints(plan),
        *(_suggestion_line(one) for one in plan.suggestions),
        *([""] if plan.suggestions else []),
        _BYTES_NOTE,
        _ROOFLINE_NOTE,
        _QUICK_NOTE if plan.quick else f"{_CYCLES_NOTE}\n{_NEITHER}",
    ]
    return "\n".join(lines)


def batches(plan: Plan) -> dict[str, int]:
    """The keys of the config that say how much is computed at once, as compiled."""
    config = plan.config
    return {
        "rollout.prompts": config.rollout.prompts,
        "rollout.lanes": config.rollout.lanes,
        "rollout.group": config.rollout.group,
        "rollout.max_tokens": config.rollout.max_tokens,
        "train.update_prompts": config.train.update_prompts,
        "train.micro_prompts": config.train.micro_prompts,
    }


def text(model: str, plan: Plan | None, attempts: Sequence[Attempt] = ()) -> str:
    """What `mmrl plan` prints: what a search tried, and the plan if there is one; ``model`` is its name."""
    lines = [
        f"{name(one.topology):<14}{mesh_text(one.mesh):<24}"
        + ("all fit" if one.failed is None else f"{one.failed.program}: {_shortfall(one.failed)}")
        for one in attempts
    ]
    if plan is None:
        return "\n".join([*lines, f"no slice that was tried holds {model}"])
    if attempts:
        lines += ["", f"the smallest slice is {name(plan.topology)}", ""]
    return "\n".join([*lines, table(plan, model)])


def as_json(model: str, plan: Plan | None, attempts: Sequence[Attempt] = ()) -> dict[str, Any]:
    """The same as JSON types; docs/commands.md has the schema."""
    tried = [
        {
            "topology": name(one.topology),
            "mesh": dict(one.mesh),
            "failed": None if one.failed is None else dataclasses.asdict(one.failed),
        }
        for one in attempts
    ]
    return {"model": model, "plan": None if plan is None else _plan_json(plan), "tried": tried}


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "topology": name(plan.topology),
        "devices": device_count(plan.topology),
        "mesh": dict(plan.mesh),
        "batches": batches(plan),
        "quick": plan.quick,
        "programs": [dataclasses.asdict(found) for found in plan.findings],
        "suggestions": [
            {
                "key": one.key,
                "value": one.value,
                "tried": [{"value": value, "fit": fit} for value, fit in one.tried],
            }
            for one in plan.suggestions
        ],
    }


def _rows(findings: Sequence[Finding], quick: bool) -> list[tuple[str, list[str]]]:
    """The table: what each row is called, and its cells."""

    def row(title: str, cell: Callable[[Finding], str]) -> tuple[str, list[str]]:
        return title, [cell(found) for found in findings]

    def memory(field: str) -> Callable[[Finding], str]:
        return lambda found: "-" if found.memory is None else _gib(getattr(found.memory, field))

    def milliseconds(field: str) -> Callable[[Finding], str]:
        return lambda found: _number(getattr(found, field), 1e3)

    def sent(kind: str) -> Callable[[Finding], str]:
        return lambda found: _sent(found, kind)

    kinds = sorted({kind for found in findings for kind in found.collectives or ()})
    return [
        row("", lambda found: found.program),
        row("prompts at once", lambda found: str(found.prompts)),
        row("prompts in one call", lambda found: str(found.in_call)),
        row("verdict", lambda found: _WORDS[found.fit]),
        row("GiB on a device", lambda found: ""),
        row("  arguments", memory("argument")),
        row("  outputs", memory("output")),
        row("  temporaries", memory("temporary")),
        row("  peak of the program", memory("peak")),
        row("  resident beside it", lambda found: _gib(found.resident_bytes)),
        row("  needed", lambda found: (">" if found.memory is None else "") + _gib(found.needed_bytes)),
        row("  needed, % of memory", lambda found: f"{100 * found.needed_bytes / found.limit_bytes:.1f}"),
        row("operations, TFLOP on a device", lambda found: _bound(found, _number(found.flops, 1e-12))),
        row("least GB moved on a device", lambda found: _number(found.least_bytes, 1e-9)),
        row("operations per least byte", lambda found: _number(intensity(found), 1)),
        row("sent by a device in one call", lambda found: "" if found.collectives else "-"),
        *(row(f"  {kind}, times and GB", sent(kind)) for kind in kinds),
        row("estimates, ms for one call", lambda found: ""),
        row("  roofline bound", milliseconds("roofline_seconds")),
        *([] if quick else [row("  compiler's cycle sum", milliseconds("cycle_seconds"))]),
        row("compiled in, s", lambda found: _number(found.compile_seconds or None, 1)),
    ]


def _hints(plan: Plan) -> list[str]:
    refused = {found.program for found in plan.findings if found.fit == "no"}
    if not refused & {"prefill", "decode"}:
        return []
    return [
        "In prefill and decode the weights are cut over config.mesh.tensor alone: more of it, up to the",
        "number of key/value heads, makes room.",
        "",
    ]


def intensity(found: Finding) -> float | None:
    """Operations per byte moved at the least, an upper bound; None where the program was refused."""
    if found.flops is None or not found.least_bytes:
        return None
    return found.flops / found.least_bytes


def _columns(rows: list[tuple[str, list[str]]]) -> list[str]:
    width = max(len(title) for title, _ in rows) + 2
    cells = max(12, *(len(cell) for _, row in rows for cell in row)) + 2
    return [(title.ljust(width) + "".join(cell.rjust(cells) for cell in row)).rstrip() for title, row in rows]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _number(value: float | None, scale: float) -> str:
    """Four digits, and no exponent for large ones."""
    if value is None:
        return "-"
    scaled = value * scale
    return f"{scaled:,.4g}" if scaled < 1e4 else f"{scaled:,.0f}"


def _bound(found: Finding, text: str) -> str:
    return f">{text}" if found.unbounded and text != "-" else text


def _sent(found: Finding, kind: str) -> str:
    one = (found.collectives or {}).get(kind)
    return "-" if one is None else f"{one.count:,} {one.wire_bytes / 1e9:.3g}"


def _shortfall(found: Finding) -> str:
    return f"needs {_gib(found.needed_bytes)} of {_gib(found.limit_bytes)} GiB ({_WORDS[found.fit]})"


def _suggestion_line(one: Suggestion) -> str:
    tried = ", ".join(f"{value} {_WORDS[fit]}" for value, fit in one.tried)
    if one.value is None:
        return (
            f"config.{one.key}: none that was tried is a clear fit ({tried}); "
            "more devices or config.mesh.tensor may do"
        )
    return f"config.{one.key}={one.value} is the largest that fits of those tried ({tried})"
