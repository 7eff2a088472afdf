"""Packed rows: sequences of any lengths one after another, and who reads whom. `mmrl.packing` makes them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from mmrl.kernels.packed import BlockPairs, Segments
from mmrl.mesh import Axes, shard_map_kernel


@struct.dataclass
class TokenRows:
    """Rows of tokens. ``n`` slots a row; ``k`` targets, of which the first ``count`` are real.

    A *target* is a token that the policy wrote, with the slot whose state predicts it.
    """

    tokens: Int[Array, "*b n"]
    position: Int[Array, "*b n 3"]  # mRoPE
    feature: Int[Array, "*b n"]  # which of the shard's image features stands there; -1 for text
    segments: Segments
    pairs: BlockPairs
    predictor: Int[Array, "*b k"]  # slot whose state predicts the target
    target: Int[Array, "*b k"]  # token id
    # Of the target in the shard's responses, flat ``b g r``; past their end if there is none.
    place: Int[Array, "*b k"]
    count: Int[Array, "*b"]


@struct.dataclass
class PatchRows:
    """Rows of image patches, whole windows of whole images one after another; four slots are one feature."""

    # Place in the shard's patches: those of prompts, flat, then of responses.
    source: Int[Array | np.ndarray, "*b n"]
    position: Int[Array, "*b n 2"]  # (row, column) in its image
    images: Segments  # who reads whom in layers of full attention
    image_pairs: BlockPairs
    windows: Segments  # and in layers of windows
    window_pairs: BlockPairs


def scatter_rows(
    table: Array, place: Int[Array, "d n"], values: Array, axes: Axes, *, add: bool = False
) -> Array:
    """Write values of each shard into its table, or add them; those with a negative place are dropped.

    Args:
      table: leading axes ``d m``, cut by the logical ``axes``.
      place: of each value, which of ``m``.
      values: leading axes ``d n``, cut like the table.
      axes: one for each dimension.
      add: instead of writing over what is there.
    """

    def of_shard(table: Array, place: Array, values: Array) -> Array:
        at = table.at[jnp.where(place < 0, len(table), place)]
        values = values.astype(table.dtype)
        return at.add(values, mode="drop") if add else at.set(values, mode="drop")

    arguments = axes, ("batch", None), axes
    return shard_map_kernel(jax.vmap(of_shard), arguments, like=0, checked=False)(table, place, values)
