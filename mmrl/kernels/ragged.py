"""Ragged products: the rows of an array, sorted into groups, each times the matrices of its group.

``m`` rows, ``e`` groups of ``c`` matrices, with ``i`` inputs and ``o`` outputs. Group sizes are data; what
lies past the last group is in no product. On TPU all products are grouped-matrix kernels, whose work is that
of the blocks of rows which lie in groups: forward the compiler's, backward the library's, as the compiler
would copy the matrices for one gradient, and for the other multiply all rows with each group's mask.
Elsewhere every row meets every matrix, which is right but no faster than that.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm
from jaxtyping import Array, Float, Int

_BY_TRANSPOSED = jax.lax.RaggedDotDimensionNumbers(  # x @ w.T
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)
_ROWS_BY_ROWS = jax.lax.RaggedDotDimensionNumbers(  # x.T @ y, group by group
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


@jax.custom_vjp
def ragged_products(
    rows: Float[Array, "m i"], matrices: Float[Array, "e c i o"], sizes: Int[Array, "e"]
) -> tuple[Float[Array, "m o"], ...]:
    """Products of each row with the ``c`` matrices of its group, ``sizes`` rows to a group; then zeros."""
    return tuple(_product(rows, matrices, sizes, k) for k in range(matrices.shape[1]))


def _forward(rows: Array, matrices: Array, sizes: Array) -> tuple[tuple[Array, ...], tuple]:
    return ragged_products(rows, matrices, sizes), (rows, matrices, sizes)


def _backward(residuals: tuple, slopes: tuple[Float[Array, "m o"], ...]) -> tuple[Array, Array, None]:
    rows, matrices, sizes = residuals
    of_rows = [_by_transposed(slope, matrices, sizes, k) for k, slope in enumerate(slopes)]
    of_matrices = [
        jax.lax.platform_dependent(rows, slope, sizes, tpu=grouped_outer, default=_plain_outer)
        for slope in slopes
    ]
    return sum(of_rows[1:], of_rows[0]), jnp.stack(of_matrices, axis=1), None


ragged_products.defvjp(_forward, _backward)


def _product(rows: Array, matrices: Array, sizes: Array, k: int) -> Float[Array, "m o"]:
    """Products with the matrices number ``k``."""

    def grouped(rows: Array, matrices: Array, sizes: Array) -> Array:
        return jax.lax.ragged_dot(rows, *_as_groups(matrices, sizes, k))

    def plain(rows: Array, matrices: Array, sizes: Array) -> Array:
        return jax.lax.ragged_dot(rows, matrices[:, k], sizes)

    out = jax.lax.platform_dependent(rows, matrices, sizes, tpu=grouped, default=plain)
    return _masked(out, sizes)


def _by_transposed(slope: Array, matrices: Array, sizes: Array, k: int) -> Float[Array, "m i"]:
    """Products with the transposed matrices number ``k``."""

    def grouped(slope: Array, matrices: Array, sizes: Array) -> Array:
        return grouped_transposed(slope, *_as_groups(matrices, sizes, k))

    def plain(slope: Array, matrices: Array, sizes: Array) -> Array:
        return jax.lax.ragged_dot_general(slope, matrices[:, k], sizes, _BY_TRANSPOSED)

    out = jax.lax.platform_dependent(slope, matrices, sizes, tpu=grouped, default=plain)
    return _masked(out, sizes)


def _as_groups(matrices: Array, sizes: Array, k: int) -> tuple[Array, Array]:
    """All matrices as groups of their own, empty but for number ``k`` of each: a slice would be a copy."""
    flat = matrices.reshape(-1, *matrices.shape[2:])
    return flat, jnp.zeros(matrices.shape[:2], sizes.dtype).at[:, k].set(sizes).reshape(-1)


def _masked(out: Float[Array, "m o"], sizes: Int[Array, "e"]) -> Float[Array, "m o"]:
    """``out`` with zeros past the last group, where the kernels of a TPU write nothing."""
    return jnp.where((jnp.arange(len(out)) < sizes.sum())[:, None], out, 0)


def _plain_outer(rows: Array, slope: Array, sizes: Array) -> Float[Array, "e i o"]:
    return jax.lax.ragged_dot_general(rows, slope, sizes, _ROWS_BY_ROWS)


# Tiles are the largest with which the vector memory of a v5e has room for each array twice.


def grouped_transposed(
    slope: Float[Array, "m o"],
    matrices: Float[Array, "e i o"],
    sizes: Int[Array, "e"],
    *,
    interpret: bool = False,
) -> Float[Array, "m i"]:
    """``slope @ w.T`` with the matrix ``w`` of each row's group, by the TPU kernel; of no group's, anything.

    ``interpret`` runs the kernel as plain JAX.
    """
    groups, inputs, outputs = matrices.shape
    count, block = len(slope), _block(len(slope), groups)
    # A tile has all outputs, if it can: it is then read once for all blocks of a group.
    product = partial(gmm, tiling=(block, _tile(outputs, 2048), _tile(inputs, 768)), interpret=interpret)
    return product(_padded(slope, block), matrices, sizes, slope.dtype, transpose_rhs=True)[:count]


def grouped_outer(
    rows: Float[Array, "m i"], slope: Float[Array, "m o"], sizes: Int[Array, "e"], *, interpret: bool = False
) -> Float[Array, "e i o"]:
    """``rows.T @ slope`` of each group, by the TPU kernel; ``interpret`` runs it as plain JAX."""
    block = _block(len(rows), len(sizes))
    tiles = (block, _tile(rows.shape[1], 512), _tile(slope.shape[1], 1024))
    rows, slope = (_padded(x, block) for x in (rows, slope))
    return tgmm(rows.T, slope, sizes, rows.dtype, tiles, interpret=interpret)


def _padded(x: Float[Array, "m k"], block: int) -> Float[Array, "_ k"]:
    return jnp.pad(x, ((0, -len(x) % block), (0, 0)))


def _block(rows: int, groups: int) -> int:
    """Rows of a block, about half of a group's: a block that several groups share is computed for each."""
    half = rows // (2 * groups)
    return next((block for block in (512, 256) if block <= half), 128)


def _tile(size: int, most: int) -> int:
    """The whole ``size``, or the largest multiple of 128 up to ``most`` that divides it."""
    if size <= most:
        return size
    return next((tile for tile in range(most, 127, -128) if size % tile == 0), most)
