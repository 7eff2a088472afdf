"""Schedules of the learning rate."""

import numpy as np

from mmrl.config import OptimizerConfig
from mmrl.train.optimizer import learning_rate


def rates(updates=10, **options):
    schedule = learning_rate(OptimizerConfig(learning_rate=1.0, **options), updates)
    return [round(float(schedule(step)), 6) for step in range(updates)]


def test_schedules():
    assert rates() == [1.0] * 10
    assert rates(warmup_updates=4)[:6] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = rates(schedule="cosine")
    np.testing.assert_allclose(cosine, [0.5 * (1 + np.cos(np.pi * k / 10)) for k in range(10)], atol=1e-6)
