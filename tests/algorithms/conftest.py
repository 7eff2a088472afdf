"""Random batches for the tests of algorithms."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, LOGPROB, PERCEPTION, REFERENCE_LOGPROB

SCORES = (LOGPROB, REFERENCE_LOGPROB, CORRUPTED_LOGPROB, PERCEPTION, ENTROPY)


@pytest.fixture
def batch():
    """Arguments of ``prepare`` and live scores [6 4 9]: ragged lengths, an empty response, invalid rows."""
    rng = np.random.default_rng(0)
    b, g, r = 6, 4, 9
    lengths = rng.integers(1, r + 1, (b, g))
    lengths[2, 1] = 0
    valid = np.ones((b, g), bool)
    valid[0, 3] = valid[4, 0] = False
    valid[5, 1:] = False  # a group with a single valid row

    def positive():
        return jnp.asarray(rng.gamma(1.0, 0.7, (b, g, r)), jnp.float32)

    scores = {name: positive() if name in (PERCEPTION, ENTROPY) else -positive() for name in SCORES}
    live = {
        name: value * jnp.asarray(rng.uniform(0.8, 1.2, value.shape), jnp.float32)
        for name, value in scores.items()
    }
    accuracy = rng.integers(0, 2, (b, g)).astype(np.float32)
    accuracy[3] = 1.0  # a group of equal rewards
    arguments = dict(
        rewards=jnp.asarray(accuracy * 0.9 + 0.1 * (accuracy > 0)),
        accuracy=jnp.asarray(accuracy),
        mask=jnp.asarray(np.arange(r) < lengths[..., None]),
        valid=jnp.asarray(valid),
        scores=scores,
        step=3,
        total_steps=10,
    )
    return arguments, live
