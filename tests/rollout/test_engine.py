"""Generation: what a request gets depends on it alone, and its log-probabilities are the scorer's."""

import jax
import jax.numpy as jnp
import numpy as np
import padded
import pytest
from padded import predict
from tiny import make_prompts

from mmrl import packing
from mmrl.algorithms.passes import LOGPROB
from mmrl.kernels.vocab import token_statistics
from mmrl.models import language_model as model
from mmrl.rollout import engine
from mmrl.rollout.generate import generate
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import Stats
from mmrl.train.programs import score_metrics
from mmrl.types import StopReason

ROWS = [("Add 17 and 25.", []), ("What is this?", [(100, 75)]), ("Which?", [(61, 90), (90, 33)])]
KEYS = jax.random.split(jax.random.key(7), 3)
LENGTH = 12


@pytest.fixture(scope="module")
def prompts(policy):
    return make_prompts(policy.processor, ROWS, tokens=72, patches=96)


@pytest.fixture(scope="module")
def bias(policy):
    tokenizer = policy.processor.tokenizer
    return engine.vocabulary_bias(policy.config.vocabulary, len(tokenizer), policy.processor.placeholders)


def _generate(policy, prompts, bias, keys=KEYS, group=4, stop_ids=(), **options):
    sampling = Sampling(**{"max_tokens": LENGTH, "stop_ids": stop_ids, **options})
    made = generate(policy.params, policy.config, prompts, keys, group=group, sampling=sampling, bias=bias)
    return jax.tree.map(jnp.asarray, made)


@pytest.fixture(scope="module")
def responses(policy, prompts, bias):
    return _generate(policy, prompts, bias)


def test_shapes_and_bookkeeping(responses):
    assert responses.tokens.shape == responses.mask.shape == responses.logprob.shape == (3, 4, LENGTH)
    assert responses.mask.all()
    assert responses.valid.all()
    assert (responses.stop == StopReason.LENGTH).all()
    assert len({tuple(row) for row in responses.tokens.reshape(12, -1).tolist()}) == 12


@pytest.mark.parametrize("temperature", [0.7, pytest.param(1.0, marks=pytest.mark.exhaustive)])
def test_sampler_equals_scorer(policy, prompts, bias, responses, temperature):
    if temperature != 1.0:
        responses = _generate(policy, prompts, bias, temperature=temperature)

    @jax.jit
    def score(params):
        hidden = predict(params, policy.config, prompts, responses)
        return token_statistics(
            hidden.reshape(-1, hidden.shape[-1]),
            model.unembedding(params),
            responses.tokens.reshape(-1),
            bias,
            temperature=temperature,
        )["logprob"]

    scored = score(policy.params).reshape(responses.logprob.shape)
    np.testing.assert_allclose(responses.logprob, scored, atol=1e-4)
    assert float(responses.logprob.std()) > 0.1


@pytest.fixture(scope="module")
def whole(policy, prompts, bias):
    """Logprobs of the whole vocabulary at every token of responses, by the scorer."""

    @jax.jit
    def run(params, responses, temperature):
        hidden = predict(params, policy.config, prompts, responses)
        logits = hidden.astype(jnp.float32) @ model.unembedding(params).T + bias
        return jax.nn.log_softmax(logits / temperature, axis=-1)

    return run


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"temperature": 0.7, "top_k": 40, "min_p": 0.1}, {}])
def test_rounding_and_the_cut_are_told_apart(policy, prompts, bias, whole, options):
    """By the metrics of a step, with truncation and without; the mass cut off is added up here once more."""
    responses = _generate(policy, prompts, bias, **options)
    temperature, top_k = options.get("temperature", 1.0), options.get("top_k", len(bias))
    every = np.asarray(whole(policy.params, responses, temperature), np.float64)
    scored = np.take_along_axis(every, np.asarray(responses.tokens)[..., None], axis=-1)[..., 0]
    told = score_metrics({LOGPROB: jnp.asarray(scored, jnp.float32)}, responses)
    ranked = -np.sort(-np.exp(every), axis=-1)[..., :top_k]
    inside = ranked / ranked.sum(axis=-1, keepdims=True)  # of what top-k leaves
    kept = (np.cumsum(inside, axis=-1) - inside < options.get("top_p", 1.0)) & (
        inside >= options.get("min_p", 0.0) * inside[..., :1]
    )
    cut = np.where(bool(options), 1 - (ranked * kept).sum(axis=-1), 0.0)
    assert float(told["sampler/logprob_difference_max"]) < 1e-4
    np.testing.assert_allclose(told["sampler/cut_mass_mean"], cut.mean(), atol=1e-5)
    np.testing.assert_allclose(told["sampler/cut_mass_max"], cut.max(), atol=1e-5)
    assert (cut.mean() > 0.01) == bool(options)
    np.testing.assert_allclose(responses.logprob, scored - np.log1p(-cut), atol=1e-4)


@pytest.mark.exhaustive
def test_company_and_group_size_change_nothing(policy, prompts, bias, responses):
    order = jnp.array([2, 0])
    other = jax.tree.map(lambda a: a[order], prompts)
    again = _generate(policy, other, bias, keys=KEYS[order], group=2)
    np.testing.assert_array_equal(again.tokens, responses.tokens[order, :2])
    np.testing.assert_allclose(again.logprob, responses.logprob[order, :2], atol=1e-4)


def test_keys_and_repetition(policy, prompts, bias, responses):
    compiled = engine.decode._cache_size(), engine.admit._cache_size()
    again = _generate(policy, prompts, bias)
    np.testing.assert_array_equal(again.tokens, responses.tokens)
    other = _generate(policy, prompts, bias, keys=jax.random.split(jax.random.key(8), 3))
    assert (other.tokens != responses.tokens).any(axis=-1).all()
    assert (engine.decode._cache_size(), engine.admit._cache_size()) == compiled


def test_stop_ids_end_a_response(policy, prompts, bias, responses):
    """The same draws as without stopping, up to and with the first stop id; nothing after it."""
    free = np.asarray(responses.tokens)
    stop_ids = (int(free[0, 0, 3]), int(free[1, 2, 0]), int(free[2, 1, LENGTH - 1]))
    stopped = _generate(policy, prompts, bias, stop_ids=stop_ids)
    is_stop = np.isin(free, stop_ids)
    length = np.where(is_stop.any(-1), is_stop.argmax(-1) + 1, LENGTH)
    assert length[1, 2] == 1
    assert length[0, 0] <= 4
    mask = np.arange(LENGTH) < length[..., None]
    np.testing.assert_array_equal(stopped.mask, mask)
    np.testing.assert_array_equal(stopped.tokens, np.where(mask, free, 0))
    np.testing.assert_allclose(stopped.logprob, np.where(mask, responses.logprob, 0), atol=1e-5)
    reason = np.where(is_stop.any(-1), StopReason.EOS, StopReason.LENGTH)
    np.testing.assert_array_equal(stopped.stop, reason)


@pytest.mark.exhaustive
def test_decoding_ends_with_the_last_response(policy, prompts):
    """Every id that may be sampled stops: one step is taken of all that the budget allows."""
    bias = engine.vocabulary_bias(policy.config.vocabulary, 8, (0, 1, 3, 4, 6))
    single = jax.tree.map(lambda a: a[:1], prompts)
    stats = Stats()
    sampling = Sampling(max_tokens=200, stop_ids=(2, 5, 7))
    arguments = (policy.params, policy.config, single, KEYS[:1])
    done = generate(*arguments, group=1, sampling=sampling, bias=bias, chunk=200, stats=stats)
    assert int(done.mask.sum()) == stats.steps == 1
    assert done.stop.tolist() == [[StopReason.EOS]]


def test_banned_ids_are_never_sampled(policy, prompts):
    """All but three ids banned, at a temperature that makes everything likely."""
    vocabulary = policy.config.vocabulary
    bias = engine.vocabulary_bias(vocabulary, 8, (0, 1, 3, 4, 6))
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(bias) == 0), [2, 5, 7])
    tokens = _generate(policy, prompts, bias, temperature=5.0).tokens
    assert set(np.unique(tokens)) == {2, 5, 7}


@pytest.mark.parametrize(("tokens", "count"), [(300, 1), (160, 2), (72, 3)])
def test_packed_prefill_equals_the_padded_form(policy, tokens, count):
    """Prefix and hidden state of each prompt; those that are left out, and idle slots, get zeros."""
    rows = [*ROWS, ("Left out", [(61, 90)]), ("Three small ones", [(56, 56), (84, 56), (28, 84)])]
    prompts = make_prompts(policy.processor, rows, tokens=tokens, patches=96)
    keep = np.array([True, True, True, False, True])
    packed = packing.pack_prompts(jax.tree.map(np.asarray, prompts), keep, policy.config, None)
    assert int(packed.token_rows) == count
    prefix, hidden = engine.prefill(policy.params, policy.config, prompts, packed)
    expected, expected_hidden = jax.jit(padded.prefill, static_argnums=1)(
        policy.params, policy.config, prompts
    )
    np.testing.assert_array_equal(prefix.mask, expected.mask)
    real = np.asarray(prompts.mask) & keep[:, None]
    for found, wanted in zip((*prefix.key, *prefix.value), (*expected.key, *expected.value), strict=True):
        np.testing.assert_allclose(found, np.where(real[..., None, None], wanted, 0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(hidden, np.where(keep[:, None], expected_hidden, 0), rtol=0, atol=2e-5)
