"""What the TPU compiler says of programs that fit and that do not."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from mmrl.plan import aot
from mmrl.plan.chips import GIB, TPUS, parse_topology

needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")


def compile_in_a_process(script: str) -> dict:
    """Run a script that prints one JSON object, with no TPU in sight."""
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | aot.environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(20.13G) exceeds available HBM (15.75G).",
            (20.13, 15.75),
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: memory (1.50T) exceeds available HBM (95.74G).",
            (1536, 95.74),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G.",
            (17.5, 15.75),
        ),
    ],
)
def test_a_refusal_for_memory_is_read(message, sizes):
    assert aot.memory_refusal(message) == pytest.approx([size * GIB for size in sizes], rel=1e-6)


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack",
        "INVALID_ARGUMENT: No such compile option: 'xla_foo'",
    ],
)
def test_other_refusals_are_not_taken_for_it(message):
    assert aot.memory_refusal(message) is None


def test_replica_is_the_number_of_slices():
    with pytest.raises(ValueError, match=r"replica is 4, but v6e:4x4\*2 has 2 slice\(s\); set replica to 2"):
        aot.device_mesh(parse_topology("v6e:4x4*2"), {"replica": 4, "fsdp": -1})


FITS_AND_DOES_NOT = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from mmrl.plan import aot, chips

def program(text, sizes, side):
    mesh = aot.device_mesh(chips.parse_topology(text), sizes)
    sharding = NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))
    x = jax.ShapeDtypeStruct((side, side), jnp.bfloat16, sharding=sharding)
    return mesh, jax.jit(lambda x: (x + 1) @ x, donate_argnums=0).trace(x)

def record(compiled):
    return {"fits": bool(compiled.text), "needed": compiled.needed_bytes, "limit": compiled.limit_bytes,
            "memory": compiled.memory and vars(compiled.memory), "text": compiled.text[:9]}

found = {"small": record(aot.compile_for_tpu(program("v5e:2x2", {"fsdp": -1}, 1024)[1])),
         "large": record(aot.compile_for_tpu(program("v5e:2x2", {"fsdp": -1}, 200_000)[1]))}
mesh, traced = program("v6e:4x4*2", {"fsdp": -1, "tensor": 4}, 1024)
found["slices"] = [[device.slice_index for device in row.flat] for row in mesh.devices]
found["shape"] = dict(mesh.shape)
found["lowered"] = record(aot.compile_for_tpu(traced.lower(lowering_platforms=("tpu",))))
try:
    aot.compile_for_tpu(traced, {"xla_no_such_option": "1"})
except jax.errors.JaxRuntimeError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


@needs_libtpu
def test_the_compilers_verdict():
    found = compile_in_a_process(FITS_AND_DOES_NOT)
    small, large = found["small"], found["large"]
    assert small["fits"]
    assert small["text"] == "HloModule"
    assert (
        small["memory"]["argument"] == small["memory"]["output"] == small["memory"]["alias"] == 1024 * 256 * 2
    )
    assert small["memory"]["peak"] >= 1024 * 1024 * 2  # the second operand, gathered
    assert not large["fits"]
    assert large["limit"] == pytest.approx(TPUS["v5e"].hbm_bytes, rel=1e-3)
    assert large["needed"] >= 200_000**2 * 2
    assert large["memory"] is None
    assert found["shape"] == {"replica": 2, "data": 1, "fsdp": 4, "expert": 1, "tensor": 4}
    assert found["slices"] == [[0] * 16, [1] * 16]
    assert found["lowered"]["fits"]
    assert "xla_no_such_option" in found["error"]
