"""Ragged products: the rows of an array, sorted into groups, each times the matrix of its group.

``m`` rows, ``e`` groups, inputs ``i`` and outputs ``o`` of a matrix. Group sizes are data; what lies past the
last group is in no product. On TPU all products are grouped-matrix kernels, whose work is that of the blocks
of rows which lie in groups: forward the compiler's, backward the library's, because the compiler would copy
the matrices for one gradient, and for the other multiply all rows with each group's mask. Elsewhere every row
meets every matrix, which is right but no faster than that.
"""

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
def ragged_product(
    rows: Float[Array, "m i"], matrices: Float[Array, "e i o"], sizes: Int[Array, "e"]
) -> Float[Array, "m o"]:
    """The first ``sizes[0]`` rows times the first matrix, the next by the second, and so on; then zeros."""
    return _masked(jax.lax.ragged_dot(rows, matrices, sizes), sizes)


def _forward(rows: Array, matrices: Array, sizes: Array) -> tuple[Array, tuple]:
    return ragged_product(rows, matrices, sizes), (rows, matrices, sizes)


def _backward(residuals: tuple, slope: Float[Array, "m o"]) -> tuple[Array, Array, None]:
    of_rows, of_matrices = jax.lax.platform_dependent(
        slope, *residuals, tpu=grouped_gradients, default=_plain_gradients
    )
    return _masked(of_rows, residuals[2]), of_matrices, None


ragged_product.defvjp(_forward, _backward)


def _masked(out: Float[Array, "m o"], sizes: Int[Array, "e"]) -> Float[Array, "m o"]:
    """``out`` with zeros past the last group, where the kernels of a TPU write nothing."""
    return jnp.where((jnp.arange(out.shape[0]) < sizes.sum())[:, None], out, 0)


def _plain_gradients(slope: Array, rows: Array, matrices: Array, sizes: Array) -> tuple[Array, Array]:
    product = jax.lax.ragged_dot_general
    return product(slope, matrices, sizes, _BY_TRANSPOSED), product(rows, slope, sizes, _ROWS_BY_ROWS)


def grouped_gradients(
    slope: Float[Array, "m o"],
    rows: Float[Array, "m i"],
    matrices: Float[Array, "e i o"],
    sizes: Int[Array, "e"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "m i"], Float[Array, "e i o"]]:
    """Gradients of rows and matrices by the TPU kernels; of rows in no group, anything.

    ``interpret`` runs the kernels as plain JAX.
    """
    (groups, inputs, outputs), count = matrices.shape, len(rows)
    block = _block(count, groups)
    slope, rows = (jnp.pad(x, ((0, -count % block), (0, 0))) for x in (slope, rows))
    # The largest tiles with which the vector memory of a v5e has room for each array twice. Those of matrices
    # have all outputs, if they can: they are then read once for all blocks of a group.
    tiles = (block, _tile(outputs, 2048), _tile(inputs, 768))
    of_rows = gmm(slope, matrices, sizes, rows.dtype, tiles, transpose_rhs=True, interpret=interpret)
    tiles = (block, _tile(inputs, 512), _tile(outputs, 1024))
    of_matrices = tgmm(rows.T, slope, sizes, matrices.dtype, tiles, interpret=interpret)
    return of_rows[:count], of_matrices


def _block(rows: int, groups: int) -> int:
    """Rows of a block, about half of a group's: a block that several groups share is computed for each."""
    half = rows // (2 * groups)
    return next((block for block in (512, 256) if block <= half), 128)


def _tile(size: int, most: int) -> int:
    """The whole ``size``, or the largest multiple of 128 up to ``most`` that divides it."""
    if size <= most:
        return size
    return next((tile for tile in range(most, 127, -128) if size % tile == 0), most)
