"""Random keys of what is measured again: by the row's name, so that no measurement depends on another."""

import zlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt32

_PURPOSE = 4  # of random keys, apart from those of a run and of `mmrl generate`


def corruption_keys(ids: Sequence[str], seed: int) -> UInt32[np.ndarray, "b k"]:
    """Data of the keys that corrupt the images of the rows called ``ids``: of (seed, purpose, id) alone."""
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSE)
    names = np.array([zlib.crc32(one.encode()) for one in ids], np.uint32)
    return np.asarray(jax.random.key_data(jax.vmap(lambda name: jax.random.fold_in(key, name))(names)))
