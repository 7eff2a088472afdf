"""Features of images that lie in packed rows of patches, and the rows of tokens that show them.

Images are encoded first, row by row; their features are held whole until rows of tokens take them, their
width cut over ``tensor``. Each step is a `jax.shard_map`: cut by the compiler itself, they came out wrong
(jax 0.10.2).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from mmrl.mesh import constrain, shard_map_kernel
from mmrl.models.config import ModelConfig
from mmrl.models.rows import PatchRows, TokenRows, scatter_rows
from mmrl.models.vision_tower import encode_rows
from mmrl.types import Params

_AXES = ("batch", None, "features")


def take_row(rows: Any, m: Int[Array, ""]) -> Any:
    """Row ``m`` of each shard."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, m, 0, keepdims=False), rows)


def encode_row(
    params: Params, config: ModelConfig, patches: UInt8[Array, "d f c"], rows: PatchRows
) -> Float[Array, "d m w"]:
    """Features of one row of patches of each shard; ``patches`` are all that each has."""
    taken = jnp.take_along_axis(patches, rows.source[..., None], axis=1)
    return encode_rows(params, config, taken, rows)


def image_features(
    params: Params,
    config: ModelConfig,
    patches: UInt8[Array, "d f c"],
    rows: PatchRows,
    count: Int[Array, ""],
) -> Float[Array, "d m w"]:
    """Features of all images of each shard, one row of patches after another; zeros where no row is.

    ``rows`` have leading axes ``r d``; the first ``count`` of them are computed.
    """
    most, shards, n = rows.source.shape
    size = n // config.token_patches
    empty = constrain(jnp.zeros((shards, most * size, config.feature_width), config.dtype), *_AXES)
    if not patches.shape[1]:
        return empty
    put = partial(jax.lax.dynamic_update_slice_in_dim, axis=1)

    def add(m: Array, features: Array) -> Array:
        made = encode_row(params, config, patches, take_row(rows, m)).astype(features.dtype)
        made = constrain(made, "batch", None, None)
        return shard_map_kernel(put, (_AXES, _AXES, ()), like=0, checked=False)(features, made, m * size)

    with jax.named_scope("patch_rows"):
        return jax.lax.fori_loop(0, count, add, empty)


def features_of(features: Float[Array, "d m w"], rows: TokenRows) -> Float[Array, "d n w"]:
    """The features of images at the slots of a row; of a slot of text, any."""

    def take(features: Array, place: Array) -> Array:
        return jnp.take_along_axis(features, jnp.maximum(place, 0)[..., None], axis=1)

    found = shard_map_kernel(take, (_AXES, ("batch", None)), like=0, checked=False)(features, rows.feature)
    return constrain(found, "batch", None, None)


def features_of_row(features: Float[Array, "d m w"], m: Int[Array, ""], size: int) -> Float[Array, "d k w"]:
    """The features, or their gradients, of row ``m`` of patches, which has ``size`` of them."""
    take = partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1)
    found = shard_map_kernel(take, (_AXES, ()), like=0, checked=False)(features, m * size)
    return constrain(found, "batch", None, None)


def add_to_features(
    features: Float[Array, "d m w"], place: Int[Array, "d n"], values: Float[Array, "d n w"]
) -> Float[Array, "d m w"]:
    """Add values at their places; those with a negative place are dropped."""
    return scatter_rows(features, place, constrain(values, "batch", None, None), _AXES, add=True)
