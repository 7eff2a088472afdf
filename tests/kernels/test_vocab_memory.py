"""What the TPU compiler says of the vocabulary statistics at full size: memory, and collectives."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from mmrl.plan.aot import environment

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu (pip install jax[tpu])"
    ),
]

GIB = 2**30
COMPILE = """
import json, re, sys
from functools import partial
import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mmrl.kernels.vocab import token_statistics

kl, chunk = sys.argv[1] == "perception", int(sys.argv[2])
tokens, vocabulary, width = 65_536, 152_064, 3_584
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x2").devices
grid = mesh_utils.create_device_mesh((2, 4), devices=list(devices), allow_split_physical_axes=True)
mesh = Mesh(grid, ("data", "tensor"))


def array(shape, dtype, axis):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(axis)))


def statistics(hidden, corrupted, table, ids, bias):
    asked = dict(corrupted_hidden=corrupted, perception=True, corrupted_gradient=True) if kl else {}
    options = dict(chunk=chunk, vocab_axis="tensor", token_axes=("data",))
    return token_statistics(hidden, table, ids, bias, **asked, **options)[sys.argv[1]]


specs = (P("data"), P("data"), P("tensor"), P("data"), P("tensor"))
spread = jax.shard_map(statistics, mesh=mesh, in_specs=specs, out_specs=P("data"))
states = array((tokens, width), jnp.bfloat16, "data")
table = array((vocabulary, width), jnp.bfloat16, "tensor")
ids, bias = array((tokens,), jnp.int32, "data"), array((vocabulary,), jnp.float32, "tensor")
loss = jax.value_and_grad(lambda *a: spread(*a).mean(), argnums=(0, 1, 2) if kl else (0, 2))
with jax.set_mesh(mesh):
    compiled = jax.jit(loss).lower(states, states, table, ids, bias).compile()

lines, name = {}, ""
for line in compiled.as_text().splitlines():
    head = re.match(r"(?:ENTRY )?%?([\\w.-]+) \\(.*\\{$", line)
    name = head[1] if head else name
    lines.setdefault(name, []).append(line)
blocks = {name: "\\n".join(of_block) for name, of_block in lines.items()}


def reached(name):
    called = re.findall(r"(?:body|condition|calls|to_apply)=%?([\\w.-]+)", blocks[name])
    return {name}.union(*map(reached, called))


def collectives(block):
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\\(", block)
    return [kind + " " + re.sub(r"\\{[^}]*\\}", "", shapes) for shapes, kind in found]


bodies = [body for block in blocks.values() for body in re.findall(r"body=%?([\\w.-]+)", block)]
looped = set().union(*map(reached, bodies))
found = {name: collectives(block) for name, block in blocks.items()}
print(json.dumps({
    "temp": compiled.memory_analysis().temp_size_in_bytes,
    "loops": len(bodies),
    "in_loops": [one for name in looped for one in found[name]],
    "collectives": sorted(one for name in found if name not in looped for one in found[name]),
}))
"""


@pytest.fixture(scope="module")
def compiled():
    def run(statistic, chunk):
        child = subprocess.run(
            [sys.executable, "-c", COMPILE, statistic, str(chunk)],
            env=os.environ | environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert child.returncode == 0, child.stderr[-3000:]
        return json.loads(child.stdout.splitlines()[-1])

    return {
        ("logprob", 1024): run("logprob", 1024),
        **{("perception", chunk): run("perception", chunk) for chunk in (4096, 1024, 256)},
    }


def test_memory(compiled):
    """65,536 tokens x 152,064 entries on 8 chips, 2 of data x 4 of tensor: 40 GB of logits, if held."""
    logprob, perception = compiled["logprob", 1024]["temp"], compiled["perception", 1024]["temp"]
    assert perception <= 0.9 * GIB
    assert perception <= 1.6 * logprob
    assert compiled["perception", 256]["temp"] < perception < compiled["perception", 4096]["temp"]


def test_collectives_do_not_grow_with_the_chunks(compiled):
    found = [compiled["perception", chunk] for chunk in (4096, 1024, 256)]
    assert all(one["loops"] == 2 for one in found)
    assert all(one["in_loops"] == [] for one in found)
    assert found[0]["collectives"] == found[1]["collectives"] == found[2]["collectives"]
    shapes = " ".join(found[0]["collectives"])
    assert shapes.count("bf16[32768,3584]") == 2  # the gradients of both branches, over tensor
    assert shapes.count("bf16[38016,3584]") == 1  # that of the table, over data
