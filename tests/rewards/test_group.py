"""Bonuses within a group, against values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.reward import BONUSES, GradedGroup


def bonus(name, accuracy, lengths, max_tokens=1000, **more):
    rows = [
        {"accuracy": float(a), **{key: values[k] for key, values in more.items()}}
        for k, a in enumerate(accuracy)
    ]
    return BONUSES[name].value(rows, GradedGroup(np.array(lengths), max_tokens)).tolist()


def test_brevity():
    assert bonus("brevity", [1, 1, 0, 0], [10, 20, 15, 10]) == pytest.approx([0.5, -0.5, 0.0, 0.0])
    assert bonus("brevity", [1, 0], [20, 30]) == pytest.approx([0.5, -0.5])
    assert bonus("brevity", [1, 1], [20, 20]) == [0.0, 0.0]


def test_cosine_length():
    values = bonus("cosine_length", [1, 1, 1, 0, 0, 0], [0, 500, 1000, 0, 500, 2000])
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.0, -0.25, -0.5])


def test_dynamic_length():
    values = bonus("dynamic_length", [1, 1, 0, 0, 0, 0], [80, 120, 100, 0, 150, 900])
    assert values == pytest.approx([0.0, 0.0, 0.0, -0.5, -0.25, -0.5])
    assert bonus("dynamic_length", [0, 0], [750, 0]) == pytest.approx([0.0, -0.25])


def test_trusted_judge():
    judge = [0.4, 0.6, 0.9, 0.7]
    values = bonus("trusted_judge", [1, 1, 0, 0], [1] * 4, judge=judge)
    assert values == pytest.approx([x * math.exp(0.5 - 0.8) for x in judge])
    assert bonus("trusted_judge", [1, 1, 0, 0], [1] * 4, judge=judge[::-1]) == pytest.approx(judge[::-1])
    assert bonus("trusted_judge", [1, 1], [1] * 2, judge=[1.0, 0.5]) == [0.0, 0.0]
    assert bonus("trusted_judge", [0, 0], [1] * 2, judge=[1.0, 0.5]) == [0.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(BONUSES)),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3000), st.floats(0, 1)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_order_of_a_group_does_not_matter_and_wrong_ones_gain_nothing_by_length(name, rows, random):
    def values(rows):
        right, lengths, judge = zip(*rows, strict=True)
        return bonus(name, right, lengths, judge=judge)

    order = random.sample(range(len(rows)), len(rows))
    found = values(rows)
    assert values([rows[k] for k in order]) == pytest.approx([found[k] for k in order], abs=1e-9)
    assert all(-0.5 <= value <= 1.0 for value in found)
    if name != "trusted_judge":
        assert all(value <= 0.0 for value, (right, _, _) in zip(found, rows, strict=True) if not right)
