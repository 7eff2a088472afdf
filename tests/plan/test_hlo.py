"""Collectives, loops and cycles read from compiled text: each way the compiler has of hiding them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from mmrl.plan import hlo
from mmrl.plan.aot import environment
from mmrl.plan.chips import GPUS, TPUS

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=16\n\n"
WHOLE = 1024 * 4096 * 2  # bytes of the weight that is gathered below


def module(body: str, *others: str) -> str:
    """A text whose entry runs ``body`` on a quarter ``%w`` of a weight and a whole one ``%x``."""
    entry = f"""ENTRY %main (w: bf16[256,4096], x: bf16[1024,4096]) -> bf16[1024,4096] {{
  %w = bf16[256,4096]{{1,0:T(8,128)(2,1)}} parameter(0)
  %x = bf16[1024,4096]{{1,0:T(8,128)(2,1)}} parameter(1)
{body}
}}
"""
    return HEADER + "\n".join([*others, entry])


def only(text: str, **options) -> tuple[str, hlo.Traffic]:
    (found,) = hlo.analyse(text, **options).traffic.items()
    return found


GROUPS = [
    ("replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}", 4),
    ("replica_groups=[2,8]<=[4,4]T(1,0)", 8),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", 8),
    ("replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_1'}", 4),
    ("replica_groups=mesh['axis_0'=16] {'axis_0':(1)2}", 2),
    ("replica_groups={}", 16),
]


@pytest.mark.parametrize(("groups", "size"), GROUPS)
def test_every_spelling_of_replica_groups(groups, size):
    text = module(
        f"  ROOT %g = bf16[1024,4096]{{1,0}} all-gather(%w), channel_id=1, {groups}, dimensions={{0}}"
    )
    assert only(text) == ("all-gather", hlo.Traffic(1, WHOLE / 4 * (size - 1)))


@pytest.mark.parametrize(
    ("operation", "sent"),
    [
        ("all-gather(%w)", WHOLE * 3 / 4),
        ("all-reduce(%x)", WHOLE * 2 * 3 / 4),
        ("reduce-scatter(%x)", WHOLE * 3 / 4),
        ("all-to-all(%x)", WHOLE * 3 / 4),
        ("collective-permute(%x)", WHOLE),
    ],
)
@pytest.mark.parametrize("form", ["", "-start"])
def test_bytes_on_the_wire(operation, sent, form):
    kind, argument = operation.rstrip(")").split("(")
    text = module(
        f"  %one = bf16[1024,4096] {kind}{form}({argument}), channel_id=1, replica_groups=[4,4]<=[16]\n"
        f"  ROOT %end = bf16[1024,4096]{{1,0}} {kind}-done(%one)"
    )
    assert only(text) == (kind, hlo.Traffic(1, sent))


def loop(
    condition: str, start: str = "constant(0)", limit: str = "constant(28)", body: str = "", step: int = 1
):
    """A loop that gathers, its counter the first of what it carries and its limit the last."""
    carried = "(s32[], bf16[256,4096]{1,0}, /*index=2*/s32[])"
    text = module(
        f"""  %first = s32[]{{:T(128)}} {start}
  %copy.1 = s32[] copy(%first)
  %copy.2 = s32[] copy(%copy.1)
  %last = s32[] {limit}
  %carry = {carried} tuple(%copy.2, %w, /*index=2*/%last)
  %while.1 = {carried} while(%carry), condition=%test, body=%body
  ROOT %end = bf16[256,4096]{{1,0}} get-tuple-element(%while.1), index=1""",
        f"""%body (p: (s32[], bf16[256,4096], s32[])) -> (s32[], bf16[256,4096], s32[]) {{
  %p = {carried} parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %q = bf16[256,4096]{{1,0}} get-tuple-element(%p), index=1
  %n = s32[] get-tuple-element(%p), index=2
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
{body}
  %g = bf16[1024,4096]{{1,0}} all-gather(%q), channel_id=1, replica_groups=[4,4]<=[16], dimensions={{0}}
  ROOT %t = {carried} tuple(%next, %q, /*index=2*/%n)
}}
""",
        f"""%test (p: (s32[], bf16[256,4096], s32[])) -> pred[] {{
  %p = {carried} parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=2
  %four = s32[] constant(4)
{condition}
}}
""",
        """%wrapped (a: s32[], b: s32[]) -> pred[] {
  %b = s32[] parameter(1)
  %a = s32[] parameter(0)
  ROOT %less = pred[] compare(%a, %b), direction=LT
}
""",
    )
    return text


CARRIED = "  ROOT %less = pred[] compare(%i, %n), direction=LT"
DYNAMIC = "  ROOT %and = pred[] and(%flag, %less)"


@pytest.mark.parametrize(
    ("text", "trips"),
    [
        (loop("  ROOT %less = pred[] compare(%i, %four), direction=LT"), 4),
        (loop(CARRIED), 28),
        (loop(CARRIED, start="constant(1)"), 27),
        (loop(CARRIED, step=3), 10),
        (loop("  ROOT %wrap = pred[] fusion(%i, %n), kind=kLoop, calls=%wrapped"), 28),
        (loop("  ROOT %wrap = pred[] fusion(%n, %i), kind=kLoop, calls=%wrapped"), None),
        (loop(CARRIED, limit="parameter(2)"), None),
        (loop(DYNAMIC), None),
    ],
    ids=["constant", "carried", "peeled", "step", "fused", "not a counter", "unknown limit", "condition"],
)
def test_how_often_a_loop_runs(text, trips):
    assert hlo.analyse(text).unbounded == (trips is None)
    assert only(text)[1].count == (trips or 1)
    assert only(text, trips={"": 5})[1].count == (trips or 5)


def test_loops_in_loops_multiply():
    inner = loop(CARRIED, limit="constant(8)")
    start = inner.index("ENTRY")
    outer = inner[:start].replace("%body", "%inner").replace("%test", "%inner_test") + loop(
        CARRIED, body="  %in = (s32[], bf16[256,4096]{1,0}, s32[]) while(%p), condition=%fixed, body=%inner"
    ).split("num_partitions=16")[1].replace("%wrapped", "%other")
    fixed = """%fixed (p: (s32[], bf16[256,4096], s32[])) -> pred[] {
  %p = (s32[], bf16[256,4096], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %eight = s32[] constant(8)
  ROOT %less = pred[] compare(%i, %eight), direction=LT
}

"""
    text = outer.replace("ENTRY", fixed + "ENTRY")
    assert only(text)[1].count == 28 + 28 * 8


def named(name: str, text: str) -> str:
    return text.replace("body=%body", f'body=%body, metadata={{op_name="jit(step)/{name}"}}')


OF_DATA = [
    (named("rows/while", loop(DYNAMIC)), {"rows": 5}, 5),
    (named("rows/while/body/transpose(jvp(pairs))/while", loop(DYNAMIC)), {"rows": 5, "pairs": 3}, 3),
    (named("rows/while/body/layer/while", loop(DYNAMIC)), {"rows": 5}, None),
    (named("rows/while/body/layer/while", loop(DYNAMIC)), {"rows": 5, "": 2}, 2),
    (named("rows/while", loop(CARRIED)), {"rows": 5}, 28),
    (loop(DYNAMIC), {"rows": 5}, None),
]


@pytest.mark.parametrize(
    ("text", "trips", "times"), OF_DATA,
    ids=["own scope", "inner scope", "scope of the loop around", "any", "counted", "no scope"],
)  # fmt: skip
def test_a_loop_runs_as_often_as_its_own_scope_says(text, trips, times):
    assert hlo.analyse(text, trips=trips).unbounded == (times is None)
    assert only(text, trips=trips)[1].count == (times or 1)


def test_loops_by_scopes_multiply_and_need_not_be_whole():
    inner = """%pairs (q: (bf16[256,4096])) -> (bf16[256,4096]) {
  %q = (bf16[256,4096]{1,0}) parameter(0)
  %r = bf16[256,4096]{1,0} get-tuple-element(%q), index=0
  %h = bf16[1024,4096]{1,0} all-gather(%r), channel_id=2, replica_groups=[4,4]<=[16], dimensions={0}
  ROOT %u = (bf16[256,4096]{1,0}) tuple(%r)
}

%more (q: (bf16[256,4096])) -> pred[] {
  %q = (bf16[256,4096]{1,0}) parameter(0)
  ROOT %go = pred[] custom-call(%q), custom_call_target="maybe"
}

"""
    of_pairs = """  %s = (bf16[256,4096]{1,0}) tuple(%q)
  %in = (bf16[256,4096]{1,0}) while(%s), condition=%more, body=%pairs, \
metadata={op_name="jit(step)/rows/while/body/pairs/while"}"""
    text = named("rows/while", loop(DYNAMIC, body=of_pairs)).replace("%body (", inner + "%body (")
    assert only(text, trips={"rows": 4, "pairs": 2.5})[1] == hlo.Traffic(4 + 10, (4 + 10) * WHOLE * 3 / 4)


SCATTER = """%all-reduce-scatter.1 (input: bf16[1024,4096]) -> bf16[256,4096] {
  %input = bf16[1024,4096]{1,0} parameter(0)
  %all-reduce.7 = bf16[1024,4096]{1,0} all-reduce(%input), channel_id=7, replica_groups=[4,4]<=[16]
  %zero = u32[] constant(0)
  ROOT %slice = bf16[256,4096]{1,0} dynamic-slice(%all-reduce.7, %zero, %zero), dynamic_slice_sizes={256,4096}
}
"""


def test_a_reduce_scatter_is_a_fusion_around_an_all_reduce():
    text = module(
        "  %one = bf16[256,4096]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1\n"
        "  ROOT %two = bf16[256,4096]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1",
        SCATTER,
    )
    assert only(text) == ("reduce-scatter", hlo.Traffic(2, 2 * WHOLE * 3 / 4))


def gather_fusion(name: str, target: str, config: str) -> str:
    return f"""%{name} (p: bf16[256,4096]) -> bf16[1024,4096] {{
  %p = bf16[256,4096]{{1,0}} parameter(0)
  %g.{name} = bf16[1024,4096]{{1,0}} all-gather(%p), channel_id=4, replica_groups=[4,4]<=[16], \
backend_config={{"async_collective_fusion_config":{{"flag_start":"{config}"}}}}
  ROOT %c.{name} = bf16[1024,4096]{{1,0}} custom-call(%g.{name}), custom_call_target="{target}"
}}
"""


def test_an_asynchronous_collective_counts_where_it_starts():
    run = "\n".join(
        f"  %{name}.{i} = bf16[1024,4096]{{1,0}} fusion(%w), kind=kCustom, calls=%{name}"
        for i in range(3)  # copies of an unrolled body share the channel
        for name in ("begin", "beside", "end")
    )
    text = module(
        run,
        gather_fusion("begin", "AsyncCollectiveStart", "-1"),
        gather_fusion("beside", "Whatever", "1"),
        gather_fusion("end", "AsyncCollectiveDone", "2"),
    )
    assert only(text) == ("all-gather", hlo.Traffic(3, 3 * WHOLE * 3 / 4))


def test_a_collective_on_another_core_counts_and_its_cycles_do_not():
    called = """%called (w: bf16[256,4096]) -> bf16[1024,4096] {
  %w = bf16[256,4096]{1,0} parameter(0)
  ROOT %g = bf16[1024,4096]{1,0} all-gather(%w), channel_id=1, replica_groups=[4,4]<=[16], \
backend_config={"window_config":{"estimated_cycles":"99"}}
}
"""
    text = module(
        """  %s = ((bf16[256,4096]), bf16[1024,4096]) call-start(%w), async_execution_thread="sparsecore", \
to_apply=%called
  ROOT %d = bf16[1024,4096] call-done(%s)""",
        called,
    )
    assert only(text)[0] == "all-gather"
    assert hlo.analyse(text).cycles == 0
    assert hlo.analyse(text.replace("call-start", "call")).cycles == 99


def test_metadata_and_strings_with_line_breaks_hide_nothing():
    text = module(
        """  %kernel.1 = bf16[1024,4096]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128, \\"note\\": \\"}
}
  %fake = f32[] all-reduce(%x)\\"}"
}}, metadata={op_name="jit(step)/jvp()/attention/pallas_call"}
  ROOT %g = bf16[1024,4096]{1,0} all-gather(%w), channel_id=1, replica_groups=[4,4]<=[16]"""
    )
    assert only(text)[0] == "all-gather"


def test_what_goes_between_slices_is_apart():
    text = module(
        """  %token = token[] after-all()
  %send.8 = (bf16[1024,4096]{1,0}, u32[], token[]) send(%x, %token), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %done = token[] send-done(%send.8), channel_id=4, is_host_transfer=true"""
    )
    assert only(text) == ("dcn-send", hlo.Traffic(1, WHOLE))
    assert hlo.analyse(text).wire_bytes == 0


def branch(name: str, operation: str, estimate: int) -> str:
    return f"""%{name} (x: bf16[1024,4096]) -> bf16[1024,4096] {{
  %x = bf16[1024,4096]{{1,0}} parameter(0)
  ROOT %r.{name} = bf16[1024,4096]{{1,0}} {operation}(%x), replica_groups=[4,4]<=[16], \
backend_config={{"window_config":{{"estimated_cycles":"{estimate}"}}}}
}}
"""


@pytest.mark.parametrize(
    "attributes", ["branch_computations={%a, %b}", "true_computation=%a, false_computation=%b"]
)
def test_of_branches_the_most_of_each(attributes):
    text = module(
        f"  %i = s32[] constant(0)\n  ROOT %c = bf16[1024,4096] conditional(%i, %x, %x), {attributes}",
        branch("a", "all-reduce", 10),
        branch("b", "copy", 70),
    )
    assert hlo.analyse(text).cycles == 70
    assert only(text)[0] == "all-reduce"
    assert hlo.analyse(text, expensive_fraction=0.25).cycles == (70 + 3 * 10) / 4


def test_cycles_are_those_of_what_is_scheduled():
    fused = """%fused (x: bf16[1024,4096]) -> bf16[1024,4096] {
  %x = bf16[1024,4096]{1,0} parameter(0)
  ROOT %n = bf16[1024,4096]{1,0} negate(%x), backend_config={"window_config":{"estimated_cycles":"5"}}
}
"""
    lines = [
        f"  %f.{i} = bf16[1024,4096]{{1,0}} fusion(%x), calls=%fused, "
        f'backend_config={{"window_config":{{"estimated_cycles":"{estimate}"}}}}'
        for i, estimate in enumerate([100, 40, 7, 2**63 - 1])  # the last says: none
    ]
    assert hlo.analyse(module("\n".join(lines), fused)).cycles == 147


def test_estimates_of_time():
    chip = TPUS["v5p"]
    assert hlo.roofline_seconds(459e12, 0, 0, chip) == pytest.approx(1)
    assert hlo.roofline_seconds(459e12, 2 * 2765e9, 3 * 600e9, chip) == pytest.approx(3)
    assert hlo.roofline_seconds(0, 0, 300e9, TPUS["tpu7x"]) == pytest.approx(1)  # half a chip's links
    assert hlo.cycle_seconds(1.75e9, chip) == pytest.approx(1)
    with pytest.raises(ValueError, match="estimates no cycles"):
        hlo.cycle_seconds(1, GPUS[0])


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.analyse("func.func @main() { return }")


LAYERS, WIDTH, HIDDEN, TOKENS = 4, 1024, 4096, 4096
STEP = f"""
import json, re
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mmrl.plan import aot, chips, flops, hlo

def program(text, sizes, unroll):
    mesh = aot.device_mesh(chips.parse_topology(text), sizes)
    tokens = NamedSharding(mesh, P(("data", "fsdp")))
    def layer(x, w):
        with jax.named_scope("mlp"):
            y = x + jax.nn.relu(x @ w["up"]) @ w["down"]
        return jax.lax.with_sharding_constraint(y, tokens), None
    def loss(w, x):
        y, _ = jax.lax.scan(jax.checkpoint(layer), x, w, unroll=unroll)
        return jnp.mean(y.astype(jnp.float32) ** 2)
    def step(w, x):
        return jax.tree.map(lambda a, b: a - (1e-3 * b).astype(a.dtype), w, jax.grad(loss)(w, x))
    def array(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    w = {{"up": array(({LAYERS}, {WIDTH}, {HIDDEN}), P(None, "fsdp")),
         "down": array(({LAYERS}, {HIDDEN}, {WIDTH}), P(None, None, "fsdp"))}}
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0).trace(w, array(({TOKENS}, {WIDTH}), P(("data", "fsdp"))))

def scope_cycles(text, again):
    # Of the products of the forward pass, or of those that the backward pass computes again.
    def keep(line):
        name = (re.findall(r'op_name="([^"]*)"', line) or [""])[0]
        computed_again = "rematted_computation" in name
        forward = computed_again or "transpose(" not in name
        if name.endswith("mlp/dot_general") and computed_again == again and forward:
            return line
        return re.sub(r'"estimated_cycles":"[0-9]+"', '"estimated_cycles":"0"', line)
    return hlo.analyse("\\n".join(keep(line) for line in text.split("\\n"))).cycles

found = {{}}
runs = (
    ("scan", "v5p:2x2x1", {{"fsdp": 4}}, 1),
    ("unrolled", "v5p:2x2x1", {{"fsdp": 4}}, {LAYERS}),
    ("async", "v5e:4x4", {{"fsdp": 4, "data": 4}}, {LAYERS}),
)
for name, text, sizes, unroll in runs:
    traced = program(text, sizes, unroll)
    found[name + "_flops"] = flops.count(traced.jaxpr).total
    text = aot.compile_for_tpu(traced).text
    cost = hlo.analyse(text)
    found[name] = {{
        "traffic": {{kind: [t.count, t.wire_bytes] for kind, t in cost.traffic.items()}},
        "unbounded": cost.unbounded,
        "scopes": [scope_cycles(text, again) for again in (False, True)],
    }}
print(json.dumps(found))
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_compiled_training_step():
    run = subprocess.run(
        [sys.executable, "-c", STEP],
        env=os.environ | environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    scan, unrolled = found["scan"], found["unrolled"]
    assert scan["traffic"] == unrolled["traffic"]
    assert not scan["unbounded"]
    # Gathered: both weights of a layer in the forward pass, and again in the backward one.
    gathered = LAYERS * 4
    for name in ("scan", "unrolled", "async"):
        assert found[name]["traffic"]["all-gather"] == [gathered, gathered * WIDTH * HIDDEN * 2 * 3 / 4]
        assert found[name]["traffic"]["reduce-scatter"][0] == LAYERS * 2
    # The backward pass differs: a loop writes a layer's gradient into the stack, unrolled layers do not.
    assert min(unrolled["scopes"]) > 0
    assert scan["scopes"] == pytest.approx(unrolled["scopes"], rel=0.01)
    # Two products forward, the first of them again (none needs the second's result), four for gradients.
    assert found["scan_flops"] == found["unrolled_flops"] == LAYERS * 7 * 2 * TOKENS * WIDTH * HIDDEN
