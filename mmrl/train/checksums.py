"""Checksums of arrays and of JSON."""

import hashlib
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32


def checksums(tree: Any) -> dict[str, int]:
    """A number for each array of ``tree``, by its path: the same however it is cut over devices.

    Each element's bits are mixed with its index, and the results summed modulo 2^32. So one changed element
    is always seen, and several are but for one case in 2^32.
    """
    paths, leaves = zip(*_by_path(tree).items(), strict=True)
    place = leaves[0].sharding
    whole = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None
    return dict(zip(paths, np.asarray(_sums(leaves, whole)).tolist(), strict=True))


def shapes(tree: Any) -> dict[str, str]:
    """Type and shape of each array of ``tree``, by its path."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in _by_path(tree).items()}


def digest(content: Any) -> str:
    """SHA-256 of JSON, however its keys are ordered."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@partial(jax.jit, static_argnames="place")
def _sums(leaves: tuple[Array, ...], place: NamedSharding | None) -> UInt32[Array, "leaves"]:
    sums = jnp.stack([_mixed(leaf).sum(dtype=jnp.uint32) for leaf in leaves])
    return sums if place is None else jax.lax.with_sharding_constraint(sums, place)


def _mixed(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The finaliser of MurmurHash3 (public domain, A. Appleby) over bits + index times the golden ratio."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        steps = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index += steps * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    h = bits + index * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
