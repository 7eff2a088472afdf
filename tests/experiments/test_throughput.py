"""The benchmark of the reward pool: what it draws is varied and known to be right or wrong."""

import random

import pytest

from experiments.rewards import throughput
from mmrl.rewards.math import equal


@pytest.mark.exhaustive
def test_fifty_gradings():
    figures = throughput.measure(count=50, workers=2)
    asked = throughput.requests(50, seed=0)
    boxed = [response.partition("\\boxed{")[2][:-1] for _, response in asked]
    assert (figures.count, figures.distinct, figures.invalid) == (50, 50, 0)
    assert figures.right == sum(
        equal(answer, sample.answer) for answer, (sample, _) in zip(boxed, asked, strict=True)
    )
    assert 0 < figures.longest_s < throughput.DEADLINE_S


def test_every_kind_is_right_and_wrong_as_it_says():
    draw = random.Random(1)
    for kind in throughput.KINDS:
        answer, same, other = kind(draw)
        assert equal(answer, same), kind.__name__
        assert not equal(answer, other), kind.__name__


def test_pairs_are_distinct():
    asked = throughput.requests(3000, seed=0)
    assert len({(sample.answer, response) for sample, response in asked}) > 2900
    assert asked == throughput.requests(3000, seed=0) != throughput.requests(3000, seed=1)
