"""The host's part of a rollout: an episode is played once, to its end, and the same in any company.

Each random episode is first played alone, in one lane of one column; so it has to be wherever it is played.
"""

from functools import cache, partial

import jax
import numpy as np
import pytest
from scripted import assert_same, make_world, play, shape_of

from mmrl.rollout import shape as shapes


@pytest.fixture(scope="module")
def world(policy):
    """Programs are compiled in haste: there are many, and they are small."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield make_world(policy)
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def alone(world):
    """An episode played alone, by prompt and seed; each is played once."""
    return cache(lambda prompt, seed: play(world, [(prompt, [seed])], shape_of(1, 1))[0, 0])


def random_groups(rng, count):
    """Groups of one to five members; an episode keeps to its prompt."""
    groups = rng.integers(0, 4, count).tolist()
    return [(prompt, (prompt + 4 * rng.integers(0, 12, rng.integers(1, 6))).tolist()) for prompt in groups]


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("lanes", "columns", "chunk", "smallest"),
    [
        (3, 1, 3, 50),
        slow(3, 2, 5, 20),
        slow(5, 1, 16, 256),
        slow(2, 3, 40, 50),
        slow(1, 4, 3, 30),
        slow(4, 5, 7, 9),
    ],
)
def test_company_changes_nothing(world, alone, monkeypatch, lanes, columns, chunk, smallest):
    """Nor do the cuts into chunks, the growth of the cache, and when tools answer."""
    monkeypatch.setattr(shapes, "_SMALLEST", smallest)
    rng = np.random.default_rng([lanes, columns])
    for turn in range(8):
        groups = random_groups(rng, 1 + turn)
        played = play(world, groups, shape_of(lanes, columns, chunk), late=0.01 * (turn % 3))
        for g, (prompt, seeds) in enumerate(groups):
            for m, seed in enumerate(seeds):
                assert_same(played[g, m], alone(prompt, seed), f"group {g} {m}: prompt {prompt}, seed {seed}")
