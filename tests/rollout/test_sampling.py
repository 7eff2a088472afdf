"""Draws follow the distribution stated, and their log-probabilities are that distribution's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from mmrl.kernels.vocab import BANNED
from mmrl.rollout.sampling import Sampling, sample, sampling_arrays, truncate

PROBABILITY = np.array([0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02, 0.0])
LOGITS = jnp.where(PROBABILITY > 0, jnp.log(jnp.maximum(PROBABILITY, 1e-9)), BANNED) + 3.0
DRAWS = 20_000


def _options(sampling, rows=1):
    return jax.tree.map(jnp.asarray, sampling_arrays([sampling] * rows, 0))


def _draw(sampling):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    logits = jnp.broadcast_to(LOGITS, (DRAWS, LOGITS.size))
    return sample(keys, logits, _options(sampling, DRAWS), entropy=True)


def _kept(**options):
    shuffled = jnp.array([5, 2, 7, 0, 3, 1, 6, 4])  # rank must not depend on the id
    kept = truncate(LOGITS[shuffled][None], _options(Sampling(1, **options)))[0] > BANNED / 2
    return sorted(int(i) for i in shuffled[kept])


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"top_k": 1}, [0]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 99}, [0, 1, 2, 3, 4, 5, 6]),
        ({"top_p": 0.01}, [0]),
        ({"top_p": 0.29}, [0]),
        ({"top_p": 0.31}, [0, 1]),
        ({"top_p": 0.74}, [0, 1, 2]),
        ({"top_p": 0.76}, [0, 1, 2, 3]),
        ({"min_p": 0.5}, [0, 1, 2]),
        ({"min_p": 0.9}, [0]),
        ({"min_p": 0.05}, [0, 1, 2, 3, 4, 5, 6]),
        # After top-k the rest is renormalised (0.4, 0.33, 0.27) before top-p is taken.
        ({"top_k": 3, "top_p": 0.7}, [0, 1]),
        ({"top_k": 3, "top_p": 0.75, "min_p": 0.9}, [0]),
    ],
)
def test_support(options, support):
    assert _kept(**options) == support


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 4},
        {"top_p": 0.8, "temperature": 0.8},
        {"min_p": 0.3},
    ],
)
def test_distribution_and_logprobs(options):
    tokens, logprob, log_kept, entropy = _draw(Sampling(1, **options))
    tempered = PROBABILITY ** (1 / options.get("temperature", 1.0))
    tempered /= tempered.sum()
    support = np.asarray(
        truncate(LOGITS[None] / options.get("temperature", 1.0), _options(Sampling(1, **options)))[0]
        > BANNED / 2
    )
    expected = np.where(support, tempered, 0)
    expected /= expected.sum()
    counts = np.bincount(tokens, minlength=expected.size)
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], DRAWS * expected[expected > 0]).pvalue > 1e-3
    np.testing.assert_allclose(logprob, np.log(expected[np.asarray(tokens)]), atol=1e-5)
    np.testing.assert_allclose(log_kept, np.log(tempered[support].sum()), atol=1e-6)
    np.testing.assert_allclose(logprob + log_kept, np.log(tempered[np.asarray(tokens)]), atol=1e-5)
    inside = expected[expected > 0]
    np.testing.assert_allclose(entropy, -(inside * np.log(inside)).sum(), atol=1e-5)


def test_temperature_zero_takes_the_likeliest():
    tokens, logprob, log_kept, _ = _draw(Sampling(1, temperature=0, top_p=0.5))
    assert not log_kept.any()
    assert set(tokens.tolist()) == {0}
    np.testing.assert_allclose(logprob, np.log(0.3), atol=1e-5)


@pytest.mark.exhaustive
def test_a_row_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(1), 6)
    logits = jax.random.normal(jax.random.key(2), (6, 50))
    tokens, *_ = sample(keys, logits, _options(Sampling(1), 6))
    order = jnp.array([4, 0, 2])
    again, *_ = sample(keys[order], logits[order], _options(Sampling(1), 3))
    np.testing.assert_array_equal(again, tokens[order])


def test_each_row_has_options_of_its_own():
    """Rows with different options give what each of them gives among its like."""
    choices = [Sampling(1), Sampling(1, temperature=0), Sampling(1, 0.5, top_k=2), Sampling(1, top_p=0.6)]
    keys = jax.random.split(jax.random.key(3), 40)
    logits = jax.random.normal(jax.random.key(4), (40, 30)) * 2
    rows = [choices[row % 4] for row in range(40)]
    tokens, logprob, log_kept, _ = sample(keys, logits, jax.tree.map(jnp.asarray, sampling_arrays(rows, 0)))
    for number, choice in enumerate(choices):
        alone, its, kept, _ = sample(keys, logits, _options(choice, 40))
        mine = np.arange(40) % 4 == number
        np.testing.assert_array_equal(tokens[mine], alone[mine])
        np.testing.assert_allclose(logprob[mine], its[mine], atol=1e-6)
        np.testing.assert_allclose(log_kept[mine], kept[mine], atol=1e-6)
        assert bool((kept < 0).all()) == (choice in choices[2:])


def test_stop_ids_beyond_the_room():
    with pytest.raises(ValueError, match="3 stop ids; there is room for 2"):
        sampling_arrays([Sampling(1, stop_ids=(1, 2, 3))], 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_strings", ("",)),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.0),
        ("min_p", -0.1),
    ],
)
def test_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"rollout\.{name}="):
        Sampling(**{"max_tokens": 1, name: value})
