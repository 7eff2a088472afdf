"""Ragged products: the rows of an array, sorted into groups, each times the matrix of its group.

``m`` rows, ``e`` groups, inputs ``i`` and outputs ``o`` of a matrix. Group sizes are data; what lies past the
last group is in no product. On TPU both directions are grouped-matrix kernels, whose work is that of the
blocks of rows which lie in groups. Elsewhere every row meets every matrix, which is right but no faster than
that.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm
from jaxtyping import Array, Float, Int

# Of rows, inputs and outputs, in one step of the TPU kernel: what fits the vector memory of a v5e.
_TILES = (512, 512, 1024)

_ROWS_BY_ROWS = jax.lax.RaggedDotDimensionNumbers(  # x.T @ y, group by group
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
_BY_TRANSPOSED = jax.lax.RaggedDotDimensionNumbers(  # x @ w.T
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


@jax.custom_vjp
def ragged_product(
    rows: Float[Array, "m i"], matrices: Float[Array, "e i o"], sizes: Int[Array, "e"]
) -> Float[Array, "m o"]:
    """The first ``sizes[0]`` rows times the first matrix, the next by the second, and so on; then zeros."""
    return _masked(jax.lax.ragged_dot(rows, matrices, sizes), sizes)


def _forward(rows: Array, matrices: Array, sizes: Array) -> tuple[Array, tuple]:
    return ragged_product(rows, matrices, sizes), (rows, matrices, sizes)


def _backward(residuals: tuple, slope: Float[Array, "m o"]) -> tuple[Array, Array, None]:
    rows, matrices, sizes = residuals
    of_rows = _masked(jax.lax.ragged_dot_general(slope, matrices, sizes, _BY_TRANSPOSED), sizes)
    # The compiler for TPU would make of the second one a product of all rows with each group's mask.
    of_matrices = jax.lax.platform_dependent(rows, slope, sizes, tpu=grouped_outer, default=_plain_outer)
    return of_rows, of_matrices, None


def _masked(out: Float[Array, "m o"], sizes: Int[Array, "e"]) -> Float[Array, "m o"]:
    """``out`` with zeros past the last group, where the kernels of a TPU write nothing."""
    return jnp.where((jnp.arange(out.shape[0]) < sizes.sum())[:, None], out, 0)


def _plain_outer(x: Float[Array, "m i"], y: Float[Array, "m o"], sizes: Int[Array, "e"]) -> Array:
    return jax.lax.ragged_dot_general(x, y, sizes, _ROWS_BY_ROWS)


def grouped_outer(
    x: Float[Array, "m i"], y: Float[Array, "m o"], sizes: Int[Array, "e"], *, interpret: bool = False
) -> Float[Array, "e i o"]:
    """``x.T @ y`` of the rows of each group, by the TPU kernel; ``interpret`` runs it as plain JAX."""
    block, *tiles = (min(tile, size) for tile, size in zip(_TILES, (*x.shape, y.shape[1]), strict=True))
    x, y = (jnp.pad(rows, ((0, -rows.shape[0] % block), (0, 0))) for rows in (x, y))
    return tgmm(x.T, y, sizes, x.dtype, (block, *tiles), interpret=interpret)


ragged_product.defvjp(_forward, _backward)
