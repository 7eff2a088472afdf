"""Mixtures of experts against a loop over dense experts, however tokens lie and devices share the work."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_on
from jax.sharding import NamedSharding

from mmrl.kernels.ragged import grouped_outer, grouped_transposed, ragged_products
from mmrl.mesh import ACTIVATIONS, AXES, DECODING, WEIGHTS, make_mesh, spec
from mmrl.models import experts as experts_module
from mmrl.models.config import Experts
from mmrl.models.experts import balance_loss, expert_mlp, route, router_metrics
from mmrl.models.layers import gated_mlp
from mmrl.plan.aot import environment

EXPERTS = Experts(count=8, per_token=3, width=12)
FIXTURES = Path(__file__).parent.parent / "data" / "fixtures"
B, N, D = 8, 6, 16
BETWEEN = ("batch", "tokens", None)


def draw(seed=0, dtype=jnp.float32, rows=B):
    """States, weights and which tokens are real."""
    keys = iter(jax.random.split(jax.random.key(seed), 6))
    e, f = EXPERTS.count, EXPERTS.width
    normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.float32)  # noqa: E731
    weights = {
        "router": normal(D, e),
        "gate_up": jnp.stack([normal(e, D, f) / 4, normal(e, D, f) / 4], axis=1),
        "down": normal(e, f, D) / 4,
    }
    x = normal(rows, N, D).astype(dtype)
    return x, weights, jax.random.uniform(next(keys), (rows, N)) < 0.8


def dense_twin(x, weights, real):
    """Every expert computes every token; those that were not chosen have weight zero."""
    probability = jax.nn.softmax(x.astype(jnp.float32) @ weights["router"], axis=-1)
    top, index = jax.lax.top_k(probability, EXPERTS.per_token)
    share = jnp.zeros_like(probability)
    share = jnp.put_along_axis(share, index, top / top.sum(-1, keepdims=True), axis=-1, inplace=False)
    y = 0
    for e in range(EXPERTS.count):
        gate, up = weights["gate_up"][e]
        one = {"gate": gate, "up": up, "down": weights["down"][e]}
        y += gated_mlp(x, one) * share[..., e : e + 1].astype(x.dtype)
    return jnp.where(real[..., None], y, 0), (probability, share > 0)


@jax.jit
def ours(x, weights, real):
    return expert_mlp(x, weights, EXPERTS, real, BETWEEN)


def gradients(function, x, weights, real):
    """Value and gradients of a sum that weighs every output differently, and of the balance loss."""
    slope = jax.random.normal(jax.random.key(9), x.shape)

    def loss(x, weights):
        y, statistics = function(x, weights, real)
        extra = balance_loss(statistics, statistics)
        return jnp.sum(y * slope) + 10 * extra, (y, statistics)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, weights)


def assert_near(found, expected, tolerance=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, expected)


def with_statistics(x, weights, real):
    y, (probability, chosen) = dense_twin(x, weights, real)
    masked = lambda a: jnp.where(real[..., None], a, 0).sum(1)  # noqa: E731
    entropy = -(probability * jnp.log(probability)).sum(-1, keepdims=True)
    sums = (real.sum(1).astype(jnp.float32), masked(chosen).astype(jnp.float32), masked(probability))
    return y, experts_module.RouterStatistics(*sums, masked(entropy)[:, 0])


@pytest.fixture
def small_passes(monkeypatch):
    """Passes of few rows, so that there are several."""
    monkeypatch.setattr(experts_module, "_rows_of_pass", lambda rows, part: 32)
    ours.clear_cache()
    yield
    ours.clear_cache()


def test_equals_a_loop_over_dense_experts():
    assert_near(gradients(ours, *draw()), gradients(with_statistics, *draw()))


def test_equals_transformers():
    """Two layers by transformers' classes, and its load-balancing loss, in which some tokens do not count."""
    with np.load(FIXTURES / "qwen3_vl_moe_experts.npz") as file:
        stored = {name: jnp.asarray(array) for name, array in file.items()}
    found = []
    for layer in ("0", "1"):
        of_layer = {name[2:]: array for name, array in stored.items() if name.startswith(f"{layer}/")}
        weights = {name: of_layer[name] for name in ("router", "down")}
        weights["gate_up"] = jnp.stack([of_layer["gate"], of_layer["up"]], axis=1)
        index, share, _ = jax.jit(route, static_argnums=2)(
            of_layer["x"], weights["router"], EXPERTS, jnp.full((2, 10), True)
        )
        np.testing.assert_array_equal(index, of_layer["index"])
        assert_near(share, of_layer["share"], 1e-6)
        assert_near(ours(of_layer["x"], weights, jnp.full((2, 10), True))[0], of_layer["y"])
        y, statistics = ours(of_layer["x"], weights, stored["real"])
        assert_near(y, of_layer["y"] * stored["real"][..., None])
        found.append(statistics)
    both = jax.tree.map(lambda *layers: jnp.stack(layers), *found)
    assert_near(balance_loss(both, both), stored["balance_loss"], 1e-6)


def test_passes_change_nothing(small_passes):
    """Several passes, the last one not full."""
    assert_near(gradients(ours, *draw()), gradients(with_statistics, *draw()))


def test_experts_without_tokens():
    """All tokens choose the same three experts, so that five have none."""
    x, weights, real = draw()
    weights["router"] = weights["router"].at[:, 3:].set(0).at[0, :3].add(30.0)
    x = x.at[..., 0].set(1.0)
    found = gradients(ours, x, weights, real)
    assert_near(found, gradients(with_statistics, x, weights, real))
    assert not np.any(found[1][1]["gate_up"][3:])


@pytest.mark.exhaustive
def test_nothing_is_real():
    x, weights, real = draw()
    (_, (y, statistics)), slopes = gradients(ours, x, weights, jnp.zeros_like(real))
    assert not np.any(y)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((statistics, slopes)))


def test_order_of_tokens_changes_no_result():
    """To the last bit; and what else is in the batch moves it by rounding only."""
    x, weights, real = draw()
    order = np.random.default_rng(0).permutation(B * N)
    shuffle = lambda a: a.reshape(B * N, -1)[order].reshape(a.shape)  # noqa: E731
    y = ours(x, weights, real)[0]
    np.testing.assert_array_equal(ours(shuffle(x), weights, shuffle(real))[0], shuffle(y))
    np.testing.assert_allclose(ours(x[:1], weights, real[:1])[0], y[:1], atol=1e-6)


def test_routing_is_in_float32():
    """Of bfloat16 states, as of the same numbers in float32."""
    x, weights, real = draw(dtype=jnp.bfloat16)
    low = route(x, weights["router"], EXPERTS, real)
    high = route(x.astype(jnp.float32), weights["router"], EXPERTS, real)
    jax.tree.map(np.testing.assert_array_equal, low, high)
    y = ours(x, weights, real)[0]
    assert y.dtype == jnp.bfloat16
    expected = dense_twin(x.astype(jnp.float32), weights, real)[0]
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03)


def test_balance_loss_is_linear_in_parts_of_a_batch():
    x, weights, real = draw()
    whole = ours(x, weights, real)[1]
    halves = [jax.tree.map(lambda a, i=i: a[i : i + 4], whole) for i in (0, 4)]
    np.testing.assert_allclose(
        sum(balance_loss(half, whole) for half in halves), balance_loss(whole, whole), rtol=1e-6
    )
    even = jax.tree.map(jnp.ones_like, whole)._replace(
        tokens=jnp.full(B, 8.0), chosen=jnp.full((B, 8), 3.0), probability=jnp.ones((B, 8))
    )
    np.testing.assert_allclose(balance_loss(even, even), EXPERTS.per_token, rtol=1e-6)


def test_metrics_of_the_log():
    stacked = experts_module.RouterStatistics(
        tokens=jnp.array([[2.0], [2.0]]),
        chosen=jnp.array([[[2.0, 2, 0, 0]], [[1.0, 1, 1, 1]]]),
        probability=jnp.full((2, 1, 4), 0.5),
        entropy=jnp.array([[1.0], [3.0]]),
    )
    assert router_metrics(stacked) == {"router/load_max": 1.5, "router/entropy": 1.0, "router/balance": 2.0}


def test_kernels_of_gradients():
    """Those that TPUs run, interpreted: groups that are empty, that share blocks, and rows in none."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((700, 40), (700, 24), (6, 1, 24, 40))
    slope, rows, matrices = (jax.random.normal(*each) for each in zip(keys, shapes, strict=True))
    sizes = jnp.array([130, 0, 300, 1, 9, 200])
    expected = jax.vjp(lambda *moving: ragged_products(*moving, sizes)[0], rows, matrices)[1](slope)
    assert not np.any(expected[0][640:])
    of_rows = grouped_transposed(slope, matrices[:, 0], sizes, interpret=True)
    assert_near(of_rows[:640], expected[0][:640], 1e-4)
    assert_near(grouped_outer(rows, slope, sizes, interpret=True), expected[1][:, 0], 1e-4)


DEVICES = 8
# replica, data, fsdp, expert, tensor. The last cuts nothing: 8 divides neither hidden units nor tokens.
MESHES = [(1, 1, 2, 2, 2), (2, 1, 1, 4, 1), (1, 1, 1, 8, 1), (1, 2, 1, 1, 4), (1, 1, 1, 1, 8)]
AXES_OF = {
    "router": ("expert_embed", None),
    "gate_up": ("experts", None, "expert_embed", "mlp"),
    "down": ("experts", "mlp", "expert_embed"),
}


@pytest.mark.slow
def test_on_eight_devices():
    """The count of devices is fixed once jax has run, so a child runs the tests below; here of one mesh."""
    run_on(DEVICES, __file__, "-k", "mesh and 1x1x2x2x2")


@pytest.mark.exhaustive
def test_others_on_eight_devices():
    run_on(DEVICES, __file__, "-k", "mesh")


@pytest.fixture(params=MESHES, ids=lambda shape: "x".join(map(str, shape)))
def mesh(request):
    if jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices: runs in the child of test_on_eight_devices")
    return make_mesh(dict(zip(AXES, request.param, strict=True)))


def placed(mesh, x, weights, real, rules):
    """Arrays on a mesh, the weights by ``rules``."""

    def put(array, axes, rules):
        return jax.device_put(array, NamedSharding(mesh, spec(axes, array.shape, rules, dict(mesh.shape))))

    cut = {name: put(weights[name], axes, rules) for name, axes in AXES_OF.items()}
    return put(x, BETWEEN, ACTIVATIONS), cut, put(real, BETWEEN[:2], ACTIVATIONS)


@pytest.mark.parametrize("rows", [8, 3])  # 3 are cut over no axis
def test_a_mesh_changes_no_gradient(mesh, rows):
    arrays = draw(rows=rows)
    expected = gradients(ours, *arrays)
    with jax.set_mesh(mesh):
        found = gradients(ours, *placed(mesh, *arrays, WEIGHTS))
    assert_near(found, expected)


def test_a_mesh_and_passes_change_no_gradient(mesh, small_passes):
    """All tokens go to the experts of one device, so that it has many passes and others none."""
    x, weights, real = draw()
    weights["router"] = weights["router"].at[0, :3].add(30.0)
    x = x.at[..., 0].set(1.0)
    expected = gradients(with_statistics, x, weights, real)
    with jax.set_mesh(mesh):
        found = gradients(ours, *placed(mesh, x, weights, real, WEIGHTS))
    assert_near(found, expected)


def test_a_mesh_changes_no_decoding(mesh):
    """Weights as they lie while sampling, a token a row."""
    x, weights, real = draw()
    x, real = x[:, :1], real[:, :1]
    expected = ours(x, weights, real)
    with jax.set_mesh(mesh):
        found = ours(*placed(mesh, x, weights, real, DECODING))
    assert_near(found, expected)


_COMPILE = """
import json
import re
import sys
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from mmrl.mesh import ACTIVATIONS, DECODING, WEIGHTS, batch_shards, constrain, spec
from mmrl.models.config import Experts
from mmrl.models.experts import expert_mlp
from mmrl.plan import aot
from mmrl.plan.chips import parse_topology

topology, sizes, program = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
mesh = aot.device_mesh(parse_topology(topology), sizes)
experts, width, training = Experts(128, 8, 768), 2048, program == "train"  # as 30B-A3B
rules, dtype = (WEIGHTS, jnp.float32) if training else (DECODING, jnp.bfloat16)
shapes = {"router": (width, 128), "gate_up": (128, 2, width, 768), "down": (128, 768, width)}
wide = {
    "router": ("expert_embed", None),
    "gate_up": ("experts", None, "expert_embed", "mlp"),
    "down": ("experts", "mlp", "expert_embed"),
}


def array(shape, axes, rules, dtype):
    where = NamedSharding(mesh, spec(axes, shape, rules, dict(mesh.shape)))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


weights = {name: array(shapes[name], axes, rules, dtype) for name, axes in wide.items()}
b, n, axes = batch_shards(mesh), 4096 if training else 64, ("batch", "tokens" if training else None, None)
x = array((b, n, width), axes, ACTIVATIONS, jnp.bfloat16)
real = array((b, n), axes[:2], ACTIVATIONS, jnp.bool_)


def forward(x, weights, real):
    return expert_mlp(x, weights, experts, real, axes)


def gradients(x, weights, real, slope):
    y, pull_back = jax.vjp(lambda *moving: forward(*moving, real)[0], x, weights)
    of_x, of_weights = pull_back(slope)
    return y, of_x, {name: constrain(of_weights[name], *wide[name], rules=rules) for name in wide}


with jax.set_mesh(mesh):
    function, arrays = (gradients, (x, weights, real, x)) if training else (forward, (x, weights, real))
    compiled = aot.compile_for_tpu(jax.jit(function).trace(*arrays))
print(f"{topology}, {program}: {compiled.memory.temporary / 2**20:.0f} MiB of temporaries")
assert compiled.memory.temporary < (3.5 * 2**30 if training else 2**25)
assert "convolution-base-dilated" not in compiled.text, "no product of all rows with every matrix"
gathered = [tuple(map(int, shape.split(","))) for shape in re.findall(
    r"= [a-z0-9]+\\[([\\d,]+)\\]\\S* all-gather(?:-start)?\\(", compiled.text
)]
assert gathered, "tokens are"
moved = [shape for shape in gathered if shape[0] != 1]
assert bool(moved) == (training and sizes.get("fsdp", 1) > 1), moved  # weights, over fsdp alone
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]")
@pytest.mark.parametrize(
    ("topology", "sizes", "program"),
    [
        ("v5e:2x2", {"expert": 4}, "train"),
        ("v5p:2x2x1", {"fsdp": 2, "expert": 2}, "train"),
        ("v6e:2x2", {"expert": 2, "tensor": 2}, "train"),
        ("v6e:2x2", {"expert": 2, "tensor": 2}, "decode"),
    ],
)
def test_compiles_for_tpu(topology, sizes, program):
    """Memory of the size of a device's share, and no device gathers experts that are not its own."""
    child = subprocess.run(
        [sys.executable, "-c", _COMPILE, topology, json.dumps(sizes), program],
        env=os.environ | environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout[-4000:] + child.stderr[-4000:]
