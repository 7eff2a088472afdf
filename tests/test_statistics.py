import numpy as np
import pytest
from scipy import stats

from mmrl.statistics import bootstrap_interval, mean_interval


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(size=7)
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(found, (values.mean(), low, high, 7))
    np.testing.assert_allclose(found.half, (high - low) / 2)


def test_it_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = [(found := mean_interval(rng.normal(2.0, 3.0, 5))).low <= 2.0 <= found.high for _ in range(2000)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)
    held = []
    for _ in range(200):
        found = bootstrap_interval(rng.binomial(8, 0.6, 100) / 8, rng, draws=300)
        held.append(found.low <= 0.6 <= found.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.05)


def test_few_values():
    assert mean_interval(np.array([])).n == 0
    one = mean_interval(np.array([0.5]))
    assert one.mean == 0.5
    assert np.isnan([one.low, one.high]).all()
    same = bootstrap_interval(np.full(9, 0.25), np.random.default_rng(0))
    assert tuple(same) == (0.25, 0.25, 0.25, 9)
    assert bootstrap_interval(np.array([]), np.random.default_rng(0)).n == 0
