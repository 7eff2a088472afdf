"""Operations counted on programs whose count is arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from mmrl.plan.flops import Flops, count, innermost

M, K, N, LAYERS = 8, 16, 32, 5
x, w = jnp.ones((M, K)), jnp.ones((K, N))
square, weights = jnp.ones((K, K)), jnp.ones((LAYERS, K, K))


def counted(function, *arguments, **options) -> Flops:
    return count(jax.make_jaxpr(function)(*arguments), **options)


def test_products_with_and_without_a_batch():
    assert counted(jnp.dot, x, w) == Flops(2 * M * K * N)
    q, k = jnp.ones((3, 7, 4, 6)), jnp.ones((3, 9, 4, 6))
    assert counted(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), q, k).total == 2 * 3 * 4 * 7 * 9 * 6
    assert counted(lambda x: jnp.sin(x) + 1, x) == Flops(0)


def test_convolution():
    image, kernel = jnp.ones((2, 10, 10, 3)), jnp.ones((4, 5, 3, 7))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert counted(convolve, image, kernel).total == 2 * (2 * 7 * 6 * 7) * (4 * 5 * 3)


def layers(x, weights, block):
    return jax.lax.scan(lambda x, w: (block(x, w), None), x, weights)[0]


def block(x, w):
    return jnp.tanh(x @ w)


def test_a_scan_counts_its_length_and_unrolling_changes_nothing():
    one = 2 * M * K * K
    assert counted(lambda x, w: layers(x, w, block), x, weights).total == LAYERS * one

    def unrolled(x, weights):
        for w in weights:
            x = block(x, w)
        return x

    assert counted(unrolled, x, weights).total == LAYERS * one


def test_a_gradient_is_three_times_the_forward_pass_and_four_with_recomputation():
    one = 2 * M * K * K
    plain = counted(jax.grad(lambda x, w: layers(x, w, block).sum(), argnums=(0, 1)), x, weights)
    again = counted(jax.grad(lambda x, w: layers(x, w, jax.checkpoint(block)).sum(), (0, 1)), x, weights)
    assert plain.total == 3 * LAYERS * one
    assert again.total == 4 * LAYERS * one


def test_custom_derivatives_and_jit_count_what_they_call():
    @jax.custom_vjp
    def custom(x, w):
        return x @ w

    custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    assert counted(jax.jit(custom), x, w).total == 2 * M * K * N
    assert counted(jax.grad(lambda x, w: custom(x, w).sum(), (0, 1)), x, w).total == 3 * 2 * M * K * N

    @jax.custom_jvp
    def tangent(x, w):
        return x @ w

    tangent.defjvp(lambda primals, tangents: (tangent(*primals), tangents[0] @ primals[1]))
    assert counted(tangent, x, w).total == 2 * M * K * N


def test_the_costlier_branch_counts_as_often_as_said():
    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: (x @ w) @ w.T, lambda: x)

    assert counted(branch, x, w).total == 2 * 2 * M * K * N
    assert counted(branch, x, w, expensive_fraction=0.25).total == M * K * N
    in_loop = lambda x, w: jax.lax.fori_loop(0, 8, lambda _, x: branch(x, w), x)  # noqa: E731
    assert counted(in_loop, x, w, expensive_fraction=0.25).total == 8 * M * K * N


def test_a_branch_by_platform_is_the_one_that_runs():
    def by_platform(x, w):
        return jax.lax.platform_dependent(x, tpu=lambda x: x @ w, default=lambda x: (x @ w) @ w.T @ w)

    assert counted(by_platform, x, w).total == 2 * M * K * N
    assert counted(by_platform, x, w, platform="cpu").total == 3 * 2 * M * K * N


def test_a_loop_of_unknown_length_says_so():
    def loop(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x @ x, x)

    one = 2 * K * K * K
    assert counted(loop, square) == Flops(one, unbounded=True)
    assert counted(loop, square, trips={"": 11}) == Flops(11 * one)
    assert counted(loop, square, trips={"elsewhere": 11}) == Flops(one, unbounded=True)
    counts_only = jax.make_jaxpr(lambda: jax.lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0))()
    assert count(counts_only) == Flops(0)


def scoped(name, times, body, x):
    with jax.named_scope(name):
        return jax.lax.fori_loop(0, times, lambda _, x: body(x), x)


def nested(x, n, m):
    """A product in a loop, and one in a loop inside that one, in a scan and a scope without a number."""

    def inside(x):
        with jax.named_scope("layer"):
            return jax.lax.scan(lambda x, _: (jax.jit(product)(x), None), x @ x, length=7)[0]

    def product(x):
        return scoped("inner", m, lambda x: x @ x, x)

    return scoped("outer", n, inside, x)


@pytest.mark.parametrize(
    ("trips", "times", "known"),
    [
        ({"outer": 3, "inner": 5}, 3 * (1 + 7 * 5), True),
        ({"outer": 3, "inner": 2.5}, 3 * (1 + 7 * 2.5), True),
        ({"outer": 3, "": 2}, 3 * (1 + 7 * 2), True),
        ({"": 2}, 2 * (1 + 7 * 2), True),
        ({"outer": 3}, 3 * (1 + 7), False),  # the scope of a loop is not that of the loops in it
        ({"inner": 5}, 1 + 7 * 5, False),
        ({}, 1 + 7, False),
    ],
)
def test_loops_run_as_often_as_their_scopes_say(trips, times, known):
    one = 2 * K * K * K
    assert counted(nested, square, 1, 1, trips=trips) == Flops(round(one * times), unbounded=not known)


def test_a_loop_of_a_gradient_has_the_scope_of_its_function():
    @jax.custom_vjp
    def power(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    def forward(x, n):
        out = power(x, n)
        return out, (out, n)

    def backward(saved, given):
        out, n = saved
        return jax.lax.fori_loop(0, n, lambda _, x: x @ out @ x, given), None

    power.defvjp(forward, backward)

    def loss(x, n):
        with jax.named_scope("power"):
            return jax.checkpoint(power)(x, n).sum()

    one = 2 * K * K * K
    found = counted(jax.value_and_grad(loss), square, 1, trips={"power": 5})
    assert found == Flops(5 * (1 + 1 + 2) * one)  # forward, again for the gradient, and twice


def test_the_innermost_of_the_names_that_are_given():
    trips = {"rows": 2, "pairs": 3}
    assert innermost(trips, "a/rows/b/transpose(jvp(pairs))/c") == 3
    assert innermost(trips, "pairs/rows") == 2
    assert innermost(trips, "a/b") is None
    assert innermost({**trips, "": 4}, "a/b") == 4
    assert innermost({}, "a/rows") is None


def test_a_shard_map_counts_all_devices():
    mesh = AbstractMesh((4, 2, 3), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def partial(x, w):
        return jax.shard_map(
            lambda x, w: jax.lax.psum(x @ w, "fsdp"),
            mesh=mesh,
            in_specs=(PartitionSpec("data", "fsdp"), PartitionSpec("fsdp", None)),
            out_specs=PartitionSpec("data", None),
            axis_names={"data", "fsdp"},
        )(x, w)

    assert counted(partial, x, w).total == 2 * M * K * N


def kernel(x, w, out):
    out[...] = x[...] @ w[...]


@pytest.mark.parametrize("stated", [None, 12345])
def test_a_kernel_counts_its_stated_cost_or_its_grid(stated):
    cost = stated and pl.CostEstimate(flops=stated, bytes_accessed=0, transcendentals=0)
    call = pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[pl.BlockSpec((M // 4, K), lambda i: (i, 0)), pl.BlockSpec((K, N), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((M // 4, N), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((M, N), jnp.float32),
        cost_estimate=cost,
    )
    assert counted(call, x, w).total == (stated or 2 * M * K * N)


@pytest.mark.parametrize(
    ("trips", "times", "known"), [({"pairs": 3}, 3, True), ({"": 5}, 5, True), ({"rows": 3}, 1, False)]
)
def test_a_grid_whose_size_is_data_counts_by_its_scope(trips, times, known):
    def call(n, x, w):
        with jax.named_scope("pairs"):
            return pl.pallas_call(
                kernel,
                grid=(2, n),
                in_specs=[pl.BlockSpec(shape, lambda i, j: (0, 0)) for shape in ((M, K), (K, N))],
                out_specs=pl.BlockSpec((M, N), lambda i, j: (0, 0)),
                out_shape=jax.ShapeDtypeStruct((M, N), jnp.float32),
            )(x, w)

    one = 2 * M * K * N
    assert counted(call, 1, x, w, trips=trips) == Flops(2 * times * one, unbounded=not known)


def test_ragged_products_count_each_row_once():
    def gradients(x, w):
        return jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, np.array([3, 5], np.int32)), x, w)[1](x @ w[0])

    assert counted(gradients, x, jnp.ones((2, K, N))) == Flops((1 + 1 + 2) * 2 * M * K * N)
