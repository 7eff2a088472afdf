"""The verdict on one program, from made-up figures of the compiler."""

import pytest

from mmrl.plan import hlo
from mmrl.plan.aot import Compiled, MemoryUse
from mmrl.plan.chips import GIB, TPUS
from mmrl.plan.flops import Flops
from mmrl.plan.search import Finding, fit_verdict, judge, least_traffic
from mmrl.plan.useful import UsefulFlops

V5E = TPUS["v5e"]
# A loop that runs until its values say so, and in it one all-gather and one operation with an estimate.
TEXT = """HloModule jit_made_up, is_scheduled=true, num_partitions=4

%cond (arg: (s32[])) -> pred[] {
  %arg = (s32[]) parameter(0)
  ROOT %go = pred[] custom-call(%arg), custom_call_target="maybe"
}

%body (arg.1: (s32[])) -> (s32[]) {
  %arg.1 = (s32[]) parameter(0)
  %part = bf16[1000]{0} constant({...})
  %whole = bf16[4000]{0} all-gather(%part), replica_groups={{0,1,2,3}}, dimensions={0}
  %work = bf16[4000]{0} negate(%whole), backend_config={"estimated_cycles":"1500"}
  ROOT %out = (s32[]) tuple(%arg.1)
}

ENTRY %main (p: s32[]) -> (s32[]) {
  %p = s32[] parameter(0)
  %start = (s32[]) tuple(%p)
  ROOT %loop = (s32[]) while(%start), condition=%cond, body=%body
}
"""


def memory(argument=4, output=1, temporary=2, peak=6.0) -> MemoryUse:
    return MemoryUse(argument * GIB, output * GIB, temporary * GIB, 0, 0, int(peak * GIB))


def judged(compiled: Compiled, *, quick=False, arguments=4 * GIB, resident=3 * GIB, trips=10):
    before = Finding("decode", 8, 0, "no", 0, V5E.hbm_bytes, resident, tokens=1000)
    counted = UsefulFlops(Flops(4 * 10**15), 3 * 10**15, 5 * 10**15)
    return judge(
        before, compiled, argument_bytes=arguments, flops=counted,
        devices=4, chip=V5E, trips={} if trips is None else {"": trips}, tokens=10, per_token=3 * GIB,
        quick=quick,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("needed", "verdict"), [(0, "fits"), (900, "fits"), (901, "tight"), (1000, "tight"), (1001, "no")]
)
def test_fit(needed, verdict):
    assert fit_verdict(needed, 1000) == verdict


@pytest.mark.parametrize(("peak", "verdict"), [(11.0, "fits"), (11.5, "tight"), (13.0, "no")])
def test_what_is_resident_counts(peak, verdict):
    """Of 15.75 GiB, 3 are taken: 14.0, 14.5 and 16.0 are needed."""
    found = judged(Compiled(2.0, memory=memory(peak=peak), text=TEXT))
    assert found.fit == verdict
    assert found.needed_bytes == (peak + 3) * GIB
    assert found.limit_bytes == V5E.hbm_bytes


def test_arguments_that_are_not_read_stay_resident():
    found = judged(Compiled(2.0, memory=memory(argument=4), text=TEXT), arguments=6 * GIB)
    assert found.resident_bytes == (3 + 2) * GIB
    assert found.needed_bytes == (6 + 3 + 2) * GIB


def test_figures_of_one_call():
    found = judged(Compiled(2.0, memory=memory(), text=TEXT))
    assert (found.prompts, found.compile_seconds, found.unbounded) == (8, 2.0, False)
    assert found.flops == 10**15
    assert found.least_bytes == (4 + 1 + 2 + 9 * 3) * GIB
    assert found.collectives == {"all-gather": hlo.Traffic(10, 10 * 3 * 2000)}
    assert found.cycle_seconds == pytest.approx(10 * 1500 / 1.5e9)
    assert found.roofline_seconds == pytest.approx(1e15 / 197e12)  # 5.1 s; memory would take 0.04 s
    assert found.tokens_per_second == pytest.approx(1000 / 5.076, rel=1e-3)
    assert (found.useful_share, found.repeated_share) == pytest.approx((3 / 4, 5 / 4))


def test_a_loop_of_unknown_length_is_told():
    found = judged(Compiled(2.0, memory=memory(), text=TEXT), trips=None)
    assert found.unbounded
    assert found.collectives == {"all-gather": hlo.Traffic(1, 3 * 2000)}


def test_without_optimization_neither_cycles_nor_links_count():
    sent = TEXT.replace("bf16[1000]", f"bf16[{10**12}]")  # 60 TB in ten turns: 300 s at 200 GB/s
    slow, quick = (judged(Compiled(2.0, memory=memory(), text=sent), quick=quick) for quick in (False, True))
    assert slow.roofline_seconds == pytest.approx(300)
    assert quick.roofline_seconds == pytest.approx(1e15 / 197e12)
    assert quick.cycle_seconds is None


def test_a_refusal():
    found = judged(Compiled(4.0, needed_bytes=20 * GIB, limit_bytes=V5E.hbm_bytes))
    assert (found.fit, found.needed_bytes, found.compile_seconds) == ("no", 23 * GIB, 4.0)
    assert (found.memory, found.least_bytes, found.roofline_seconds) == (None, None, None)
    assert (found.flops, found.useful_flops, found.repeated_flops) == (10**15, 0.75e15, 1.25e15)
    assert (found.tokens_per_second, found.useful_share, found.repeated_share) == (None, None, None)


def test_least_traffic():
    assert least_traffic(memory()) == 7 * GIB
    assert least_traffic(memory(), 1, GIB) == 7 * GIB
    assert least_traffic(memory(), 100, GIB) == 106 * GIB
