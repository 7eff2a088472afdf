"""The overlong penalty."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms.reward_shaping import soft_overlong


def test_it_falls_linearly_over_the_cache():
    lengths = jnp.array([0, 60, 61, 80, 100, 130])
    expected = [0.0, 0.0, -1 / 40, -0.5, -1.0, -1.0]
    np.testing.assert_allclose(soft_overlong(100, 40)(lengths), expected, rtol=1e-6)


@pytest.mark.parametrize(("length", "cache"), [(100, 0), (100, 100), (100, -5)])
def test_an_impossible_cache_is_an_error(length, cache):
    with pytest.raises(ValueError, match="cache"):
        soft_overlong(length, cache)
