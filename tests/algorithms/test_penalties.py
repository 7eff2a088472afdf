"""Penalties: order of weights, quantile and limit; which rows count."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms import penalties, schedules
from mmrl.algorithms.algorithm import Algorithm, loss, prepare
from mmrl.algorithms.passes import ENTROPY, LOGPROB, PERCEPTION
from mmrl.algorithms.reductions import sequence_mean, token_mean

ONE = schedules.constant(1.0)


def mean_of(term, *, mask, live, scores=None, accuracy=None, reduction=token_mean):
    """The mean that the log shows for the term, and the loss it gives alone."""
    mask = jnp.asarray(mask)
    algorithm = Algorithm(
        advantage=lambda e: jnp.zeros_like(e.rewards)[..., None], penalties=(term,), reduction=reduction
    )
    rows = mask.shape[:2]
    targets = prepare(
        algorithm,
        rewards=jnp.zeros(rows),
        accuracy=jnp.zeros(rows) if accuracy is None else jnp.asarray(accuracy, jnp.float32),
        mask=mask,
        valid=jnp.ones(rows, bool),
        scores={LOGPROB: jnp.zeros(mask.shape)} | (scores or {}),
        step=0,
        total_steps=1,
    )
    value, metrics = loss(algorithm, targets, {LOGPROB: jnp.zeros(mask.shape)} | live)
    return float(metrics[term.name]), float(value)


def test_perception_is_maximised_and_logged_as_it_is():
    kl = jnp.asarray(np.arange(1.0, 7.0).reshape(1, 2, 3), jnp.float32)
    mean, value = mean_of(
        penalties.perception_kl(ONE, "exact"), mask=np.ones((1, 2, 3), bool), live={PERCEPTION: kl}
    )
    assert mean == pytest.approx(3.5)
    assert value == pytest.approx(-3.5)


def test_apply_modes_weigh_rows_without_changing_the_denominator():
    kl = jnp.ones((1, 2, 4))
    for mode, expected in (("all", 1.0), ("correct", 0.5), ("weighted", 0.6)):
        term = penalties.perception_kl(ONE, "exact", apply_to=mode, incorrect_weight=0.2)
        mean, _ = mean_of(term, mask=np.ones((1, 2, 4), bool), live={PERCEPTION: kl}, accuracy=[[1, 0]])
        assert mean == pytest.approx(expected)


def test_weight_comes_before_quantile_and_quantile_before_limit():
    kl = jnp.array([[[0.1, 0.2, 0.3, 0.4, 8.0]]])
    term = penalties.perception_kl(
        ONE, "exact", apply_to="weighted", incorrect_weight=0.5, top_fraction=0.5, limit=1.0
    )
    mean, _ = mean_of(term, mask=np.ones((1, 1, 5), bool), live={PERCEPTION: kl})
    assert mean == pytest.approx((0.15 + 0.2 + 1.0) / 5)


def test_imitation_averages_over_the_tokens_of_correct_responses():
    logprob = -jnp.asarray(np.arange(1.0, 7.0).reshape(1, 2, 3), jnp.float32)
    mask = np.array([[[1, 1, 0], [1, 1, 1]]], bool)
    mean, value = mean_of(penalties.imitation(ONE), mask=mask, live={LOGPROB: logprob}, accuracy=[[1, 0]])
    assert mean == value == pytest.approx(1.5)
    mean, _ = mean_of(penalties.imitation(ONE), mask=mask, live={LOGPROB: logprob}, accuracy=[[0, 0]])
    assert mean == 0.0


def test_sampled_and_full_entropy_are_different_terms():
    mask = np.ones((1, 1, 2), bool)
    live = {LOGPROB: -jnp.array([[[1.0, 3.0]]]), ENTROPY: jnp.array([[[0.5, 0.7]]])}
    assert mean_of(penalties.sampled_entropy(ONE), mask=mask, live=live)[0] == pytest.approx(2.0)
    assert mean_of(penalties.entropy(ONE), mask=mask, live=live)[0] == pytest.approx(0.6)
    assert penalties.sampled_entropy(ONE).name != penalties.entropy(ONE).name


def test_top_quantile_keeps_all_ties():
    values = jnp.array([[1.0, 2.0, 2.0, 0.0, 9.0]])
    kept = penalties.top_quantile(values, jnp.array([[True, True, True, True, False]]), 0.5)
    np.testing.assert_array_equal(kept, [[False, True, True, False, False]])


@pytest.mark.parametrize("make", [penalties.reference_kl, penalties.perception_kl])
def test_an_unknown_estimator_is_named(make):
    with pytest.raises(ValueError, match="k4"):
        make(ONE, "k4")


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (penalties.sampled_entropy(ONE), 15 / 4),
        (penalties.imitation(ONE), 15 / 4),
        (penalties.perception_kl(ONE, "exact"), (0.5 + 3.0) / 2),
    ],
    ids=["sampled_entropy", "imitation", "perception_kl"],
)
def test_entropy_and_imitation_average_over_tokens_even_where_the_algorithm_does_not(term, expected):
    mask = np.array([[[1, 0, 0], [1, 1, 1]]], bool)
    live = {
        LOGPROB: -jnp.array([[[0.0, 9, 9], [4, 5, 6]]]),
        PERCEPTION: jnp.array([[[0.5, 9, 9], [1, 2, 6]]]),
    }
    mean, _ = mean_of(term, mask=mask, live=live, accuracy=[[1, 1]], reduction=sequence_mean)
    assert mean == pytest.approx(expected)
