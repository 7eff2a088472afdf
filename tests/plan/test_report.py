"""Plans as a table and as JSON, from made-up findings."""

import json
import re
from dataclasses import replace

import pytest

from mmrl.config import Config
from mmrl.plan.aot import MemoryUse
from mmrl.plan.chips import GIB, parse_topology
from mmrl.plan.hlo import Traffic
from mmrl.plan.report import intensity, plan_json, plan_text
from mmrl.plan.search import Attempt, Finding, Plan, Suggestion

LIMIT = 16 * GIB
FITS = Finding(
    "decode", 16, 0, "fits", 9 * GIB, LIMIT, 2 * GIB,
    memory=MemoryUse(4 * GIB, GIB, 3 * GIB, 0, 0, 7 * GIB),
    flops=5e13, least_bytes=2 * 10**12, collectives={"all-reduce": Traffic(1234, 5.5e9)},
    roofline_seconds=2.5, cycle_seconds=3.25, compile_seconds=12.4, useful_flops=4e13,
    repeated_flops=1.2e14, tokens_per_second=31000.0, useful_share=0.25, repeated_share=0.75,
)  # fmt: skip
REFUSED = Finding(
    "update", 128, 8192, "no", 20 * GIB, LIMIT, GIB, flops=7e15, compile_seconds=4.0, unbounded=True,
    rows=48, tokens=262144, computed_over_real=1.5, repeated_over_real=3.25, useful_flops=4e15,
)  # fmt: skip
NOT_COMPILED = replace(REFUSED, program="score", needed_bytes=33 * GIB, flops=None, compile_seconds=0.0)
MESH = {"replica": 1, "data": 1, "fsdp": 4, "expert": 1, "tensor": 4}
CONFIG = replace(Config(), train=replace(Config().train, row_tokens=8192))
PLAN = Plan(parse_topology("v5e:4x4"), MESH, CONFIG, (FITS, NOT_COMPILED, REFUSED), quick=False)


def cells(plan: Plan) -> dict[str, list[str]]:
    """Rows of the table by their titles, which two blanks or the end of the line follow."""
    lines = plan_text("a model", plan).split("\n\n")[1].splitlines()
    parts = [re.split(r"\s{2,}", line.strip()) for line in lines]
    head = lines[0].split()
    return {"": head} | {title: row for title, *row in parts if title != head[0]}


def test_the_table():
    rows = cells(PLAN)
    assert rows[""] == ["decode", "score", "update"]
    assert rows["prompts in one call"] == ["16", "128", "128"]
    assert rows["tokens in it, prompts once"] == ["-", "262,144", "262,144"]
    assert rows["rows computed"] == ["-", "48", "48"]
    assert rows["slots of a row"] == ["-", "8192", "8192"]
    assert rows["slots computed over tokens"] == ["-", "1.5", "1.5"]
    assert rows["with repeated prompts over tokens"] == ["-", "3.25", "3.25"]
    assert rows["verdict"] == ["fits", "does not fit", "does not fit"]
    assert rows["arguments"] == ["4.00", "-", "-"]
    assert rows["outputs"] == ["1.00", "-", "-"]
    assert rows["temporaries"] == ["3.00", "-", "-"]
    assert rows["peak of the program"] == ["7.00", "-", "-"]
    assert rows["resident beside it"] == ["2.00", "1.00", "1.00"]
    assert rows["needed"] == ["9.00", ">33.00", ">20.00"]
    assert rows["needed, % of memory"] == ["56.2", "206.2", "125.0"]
    assert rows["operations, TFLOP on a device"] == ["50", "-", ">7,000"]
    assert rows["useful"] == ["40", "4,000", "4,000"]
    assert rows["useful with repeated prompts"] == ["120", "-", "-"]
    assert rows["real tokens/s"] == ["31,000", "-", "-"]
    assert rows["useful FLOP/s, % of peak"] == ["25", "-", "-"]
    assert rows["with repeated prompts, %"] == ["75", "-", "-"]
    assert rows["least GB moved on a device"] == ["2,000", "-", "-"]
    assert rows["operations per least byte"] == ["25", "-", "-"]
    assert rows["all-reduce, times and GB"] == ["1,234 5.5", "-", "-"]
    assert rows["roofline bound"] == ["2,500", "-", "-"]
    assert rows["compiler's cycle sum"] == ["3,250", "-", "-"]
    assert rows["compiled in, s"] == ["12.4", "-", "4"]


def test_the_head_says_for_what():
    head = plan_text("Qwen2.5-VL-7B", PLAN).split("\n\n")[0]
    assert "Qwen2.5-VL-7B on v5e:4x4: 16 devices of 15.75 GiB" in head
    assert "fsdp 4, expert 1, tensor 4" in head
    assert "config.train.row_tokens=8192" in head
    assert "counted for full lengths; memory is for the longest" in head
    tailed = plan_text("a model", replace(PLAN, lengths="long-tailed")).split("\n\n")[0]
    assert "counted for long-tailed lengths" in tailed


def test_estimates_say_what_they_leave_out():
    full = plan_text("a model", PLAN)
    assert "Neither is a measured time" in full
    assert "leaves out\n  collectives, Pallas kernels" in full
    quick = plan_text("a model", replace(PLAN, quick=True))
    assert "compiled without optimization" in quick
    assert "cycle sum" not in cells(replace(PLAN, quick=True))
    assert "compiler's cycle sum" not in quick


def test_a_rollout_that_does_not_fit_is_told_of_the_tensor_axis():
    hint = "cut over config.mesh.tensor alone"
    assert hint not in plan_text("a model", PLAN)
    refused = replace(PLAN, findings=(replace(REFUSED, program="decode"),))
    assert hint in plan_text("a model", refused)


@pytest.mark.parametrize(
    ("suggestion", "line"),
    [
        (
            Suggestion("rollout.prompt_slots", 32, ((16, "fits"), (32, "fits"), (64, "tight"))),
            "config.rollout.prompt_slots=32 is the largest that fits of those tried"
            " (16 fits, 32 fits, 64 tight)",
        ),
        (
            Suggestion("train.row_tokens", None, ((16, "no"),)),
            "config.train.row_tokens: none that was tried is a clear fit (16 does not fit)",
        ),
    ],
)
def test_suggestions(suggestion, line):
    assert line in plan_text("a model", replace(PLAN, suggestions=(suggestion,)))


ATTEMPTS = (
    Attempt(
        parse_topology("v5e:2x2"), {**MESH, "tensor": 1}, replace(REFUSED, fit="tight", needed_bytes=LIMIT)
    ),
    Attempt(parse_topology("v5e:4x4"), MESH, None),
)


def test_the_search_for_a_slice_is_told():
    found = plan_text("a model", PLAN, ATTEMPTS)
    assert "v5e:2x2       fsdp 4                  update: needs 16.00 of 16.00 GiB (tight)" in found
    assert "v5e:4x4       fsdp 4 tensor 4         all fit" in found
    assert "the smallest slice is v5e:4x4" in found
    assert plan_text("a model", None, ATTEMPTS[:1]).endswith("no slice that was tried holds a model")


def test_json():
    suggestion = Suggestion("rollout.prompt_slots", 32, ((16, "fits"), (32, "fits")))
    made = plan_json("a model", replace(PLAN, suggestions=(suggestion,)), ATTEMPTS)
    read = json.loads(json.dumps(made))
    assert read == made
    assert read["model"] == "a model"
    plan = read["plan"]
    assert (plan["topology"], plan["devices"], plan["mesh"], plan["quick"]) == ("v5e:4x4", 16, MESH, False)
    assert plan["batches"]["train.row_tokens"] == 8192
    assert plan["lengths"] == "full"
    decode, score, update = plan["programs"]
    assert decode["memory"] == {
        "argument": 4 * GIB, "output": GIB, "temporary": 3 * GIB, "alias": 0, "code": 0, "peak": 7 * GIB
    }  # fmt: skip
    assert decode["collectives"] == {"all-reduce": {"count": 1234, "wire_bytes": 5.5e9}}
    assert (score["flops"], update["memory"], update["unbounded"]) == (None, None, True)
    packing = ("row_tokens", "rows", "tokens", "computed_over_real", "repeated_over_real")
    assert [update[name] for name in packing] == [8192, 48, 262144, 1.5, 3.25]
    assert [decode[name] for name in packing] == [0, 0, 0, None, None]
    assert plan["suggestions"] == [
        {
            "key": "rollout.prompt_slots",
            "value": 32,
            "tried": [{"value": 16, "fit": "fits"}, {"value": 32, "fit": "fits"}],
        }
    ]
    assert [(one["topology"], one["failed"] and one["failed"]["fit"]) for one in read["tried"]] == [
        ("v5e:2x2", "tight"),
        ("v5e:4x4", None),
    ]
    assert plan_json("a model", None)["plan"] is None


def test_intensity():
    assert intensity(FITS) == 25
    assert intensity(REFUSED) is None
