"""Token filter and trajectory shaping over a whole batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms import weights
from mmrl.algorithms.experience import Experience
from mmrl.algorithms.passes import ENTROPY, PERCEPTION


def experience(mask, scores) -> Experience:
    mask = jnp.asarray(mask)
    return Experience(
        rewards=jnp.zeros(mask.shape[:2]),
        accuracy=jnp.zeros(mask.shape[:2]),
        mask=mask,
        valid=jnp.any(mask, axis=-1),
        scores={name: jnp.asarray(score, jnp.float32) for name, score in scores.items()},
        step=jnp.int32(0),
        total_steps=1,
    )


def test_top_fraction_keeps_the_largest_and_the_earlier_of_equals():
    values = jnp.array([[0.0, 3.0, 1.0, 3.0, 9.0], [2.0, 2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    mask = jnp.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    kept = weights.top_fraction(values, mask, 0.4)
    np.testing.assert_array_equal(kept, [[0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("keep", [0.1, 0.2, 0.4, 0.5, 1.0])
def test_kept_count_is_the_ceiling(keep):
    tokens = np.arange(200)
    exact = [-(-n * round(keep * 10) // 10) for n in tokens]
    np.testing.assert_array_equal(weights.kept_count(jnp.asarray(tokens), keep), exact)


def test_union_of_both_filters():
    data = experience(
        np.ones((1, 1, 5), bool),
        {PERCEPTION: [[[5.0, 0, 0, 0, 0]]], ENTROPY: [[[0, 0, 0, 0, 5.0]]]},
    )
    needs = frozenset({PERCEPTION})
    both = weights.token_filter(weights.dependency_exact, 0.2, 0.2, needs)
    entropy_alone = weights.token_filter(None, 0.0, 0.2, frozenset())
    np.testing.assert_array_equal(both.value(data)[0, 0], [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(entropy_alone.value(data)[0, 0], [0, 0, 0, 0, 1])
    assert both.needs == {PERCEPTION, ENTROPY}
    assert entropy_alone.needs == {ENTROPY}


def test_shaping_has_mean_one_and_follows_the_dependency():
    rng = np.random.default_rng(1)
    mask = np.ones((5, 3, 4), bool)
    mask[2, 1] = False
    data = experience(mask, {PERCEPTION: rng.gamma(1.0, 1.0, mask.shape)})
    weight = weights.trajectory_shaping(weights.dependency_exact, 0.9, frozenset({PERCEPTION}))
    factors = np.asarray(weight.value(data))[..., 0]
    means = np.asarray(data.scores[PERCEPTION]).mean(axis=-1)
    counted = mask.any(axis=-1)
    assert factors[counted].mean() == pytest.approx(1.0, rel=1e-6)
    assert factors[counted].min() == pytest.approx(0.9, rel=1e-6)
    order = np.argsort(means[counted])
    assert np.all(np.diff(factors[counted][order]) > 0)


@pytest.mark.parametrize("case", ["equal", "single", "none"])
def test_shaping_without_a_range_changes_nothing(case):
    mask = np.zeros((2, 2, 3), bool)
    mask[: {"equal": 2, "single": 1, "none": 0}[case], 0] = True
    data = experience(mask, {PERCEPTION: np.full(mask.shape, 0.7)})
    weight = weights.trajectory_shaping(weights.dependency_exact, 0.9, frozenset({PERCEPTION}))
    np.testing.assert_array_equal(weight.value(data), 1.0)
