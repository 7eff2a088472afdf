"""Learning rates: warmup, end, and errors."""

import pytest

from mmrl.algorithms import schedules


def test_no_warmup_starts_at_the_peak():
    assert float(schedules.constant_with_warmup(1e-6, 0)(0)) == pytest.approx(1e-6)
    assert float(schedules.cosine_with_warmup(1e-6, 0, 10)(0)) == pytest.approx(1e-6)


def test_cosine_ends_at_its_final_fraction_and_stays():
    schedule = schedules.cosine_with_warmup(2.0, 4, 20, 0.25)
    assert [float(schedule(step)) for step in (0, 2, 4)] == pytest.approx([0.0, 1.0, 2.0])
    assert [float(schedule(step)) for step in (12, 20, 50)] == pytest.approx([1.25, 0.5, 0.5])


def test_warmup_must_leave_steps():
    with pytest.raises(ValueError, match="warmup"):
        schedules.cosine_with_warmup(1.0, 10, 10)
    with pytest.raises(ValueError, match="warmup"):
        schedules.constant_with_warmup(1.0, -1)
