"""One model, many ways to call it: batches, padding, groups and caches change neither value nor gradient."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import padded
import pytest
from padded import predict
from tiny import make_prompts, make_responses

from mmrl.kernels.vocab import token_statistics
from mmrl.models import language_model as model
from mmrl.models.config import empty_cache
from mmrl.types import Images

ROWS = [
    ("Add 17 and 25.", []),
    ("What is this?", [(100, 75)]),
    ("Which of the two is larger, the first or the second?", [(61, 120), (90, 33)]),
]
LENGTHS = [[5, 3, 1], [4, 5, 2], [1, 5, 4]]

prefill = jax.jit(padded.prefill, static_argnames="config")


@pytest.fixture(scope="module")
def prompts(policy):
    return make_prompts(policy.processor, ROWS, tokens=80, patches=96)


@pytest.fixture(scope="module")
def responses(policy):
    return make_responses(LENGTHS, slots=5, vocabulary=1800)


@partial(jax.jit, static_argnames="config")
def _loss_and_gradient(params, config, prompts, responses):
    """Sum of log-probabilities, weighed differently for each token of each prompt, and its gradient."""

    def loss(params):
        hidden = predict(params, config, prompts, responses)
        statistics = token_statistics(
            hidden.reshape(-1, hidden.shape[-1]),
            model.unembedding(params),
            responses.tokens.reshape(-1),
            jnp.zeros(config.vocabulary),
        )
        logprob = statistics["logprob"].reshape(responses.tokens.shape)
        weight = jnp.cos(responses.tokens.astype(jnp.float32))
        total = jnp.where(responses.mask, weight * logprob, 0).sum()
        return total / 10, logprob

    (value, logprob), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, jnp.where(responses.mask, logprob, 0), gradient


def _same_gradient(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.exhaustive
def test_group_equals_repeated_prompt(policy, prompts, responses):
    """The shared prefix is an economy: the prompt's gradient is the sum over its group."""
    shared = _loss_and_gradient(policy.params, policy.config, prompts, responses)
    repeated_prompts = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=0), prompts)
    apart = jax.tree.map(lambda a: a.reshape(9, 1, *a.shape[2:]), responses)
    repeated = _loss_and_gradient(policy.params, policy.config, repeated_prompts, apart)
    assert float(shared[0]) == pytest.approx(float(repeated[0]), abs=1e-5)
    np.testing.assert_allclose(shared[1], repeated[1].reshape(shared[1].shape), atol=1e-5)
    _same_gradient(shared[2], repeated[2])
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(shared[2]["vision"]))


@pytest.mark.exhaustive
def test_batch_equals_rows_alone(policy, prompts):
    """Rows with no, one and two images; each alone in the smallest bucket that holds it."""
    prefix, hidden = prefill(policy.params, policy.config, prompts)
    for row, patches in enumerate((0, 64, 96)):
        text, sizes = ROWS[row]
        length = int(prompts.mask[row].sum())
        alone = make_prompts(policy.processor, [(text, sizes)], length, max(patches, 16))
        alone_prefix, alone_hidden = prefill(policy.params, policy.config, alone)
        np.testing.assert_allclose(hidden[row], alone_hidden[0], atol=5e-5)
        for shared, own in zip(prefix.key + prefix.value, alone_prefix.key + alone_prefix.value, strict=True):
            np.testing.assert_allclose(shared[row, :length], own[0], atol=5e-5)


def test_padding_is_never_read(policy, prompts):
    """Whatever stands in padding, the last real hidden state is the same to the bit."""
    _, before = prefill(policy.params, policy.config, prompts)
    empty = prompts.images.image < 0
    dirty = prompts.replace(
        tokens=jnp.where(prompts.mask, prompts.tokens, 77),
        position=jnp.where(prompts.mask[..., None], prompts.position, 999),
        images=Images(
            patches=jnp.where(empty[..., None], jnp.uint8(200), prompts.images.patches),
            position=jnp.where(empty[..., None], 13, prompts.images.position),
            image=prompts.images.image,
        ),
    )
    _, after = prefill(policy.params, policy.config, dirty)
    np.testing.assert_array_equal(before, after)


def test_images_matter_and_only_their_own(policy, prompts):
    _, before = prefill(policy.params, policy.config, prompts)
    patches = prompts.images.patches
    changed = prompts.replace(images=prompts.images.replace(patches=patches.at[1].set(255 - patches[1])))
    _, after = prefill(policy.params, policy.config, changed)
    assert jnp.abs(after[1] - before[1]).max() > 0.1
    np.testing.assert_array_equal(after[jnp.array([0, 2])], before[jnp.array([0, 2])])


def test_text_alone_is_the_same_program(policy, prompts):
    compiled = prefill._cache_size()
    prefill(policy.params, policy.config, prompts)
    first = prefill._cache_size()
    prefill(policy.params, policy.config, make_prompts(policy.processor, [("Hi", [])] * 3, 80, 96))
    assert prefill._cache_size() == first
    assert first - compiled <= 1


@pytest.mark.parametrize(
    "chunks", [[2, 3], *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ([1] * 5, [5]))]
)
def test_cache_equals_teacher_forcing(policy, prompts, responses, chunks):
    """Responses of unequal lengths grow in chunks; ones that end inside a chunk take no further slots."""
    params, config = policy.params, policy.config
    b, g, r = responses.tokens.shape
    prefix, _ = prefill(params, config, prompts)
    position = model.response_position(prompts, jnp.broadcast_to(jnp.arange(r), (b, g, r)))
    x = model.embed(params, config, responses.tokens)
    extend = jax.jit(lambda *args: model.extend(*args), static_argnums=1)
    cache = empty_cache(config, b, g, r, jnp.float32)
    whole = extend(params, config, x, position, responses.mask, prefix, cache)[0]
    parts, start = [], 0
    for size in chunks:
        cut = slice(start, start + size)
        part, cache = extend(
            params, config, x[:, :, cut], position[:, :, cut], responses.mask[:, :, cut], prefix, cache
        )[:2]
        parts.append(part)
        start += size
    np.testing.assert_array_equal(cache.length, LENGTHS)
    real = responses.mask[..., None]
    np.testing.assert_allclose(
        jnp.where(real, jnp.concatenate(parts, axis=2), 0), jnp.where(real, whole, 0), atol=2e-5
    )


def test_cache_continues_after_unequal_lengths(policy, prompts, responses):
    """A second turn begins where each response ended, not after its padding."""
    params, config = policy.params, policy.config
    prefix, _ = prefill(params, config, prompts)
    b, g, r = responses.tokens.shape
    turn = make_responses([[2, 2, 2]] * 3, slots=2, vocabulary=1800, seed=5)
    extend = jax.jit(lambda *args: model.extend(*args)[:2], static_argnums=1)

    def run(tokens, index, mask, cache):
        x = model.embed(params, config, tokens)
        return extend(params, config, x, model.response_position(prompts, index), mask, prefix, cache)[:2]

    every = jnp.broadcast_to(jnp.arange(r), (b, g, r))
    cache = empty_cache(config, b, g, r + 2, jnp.float32)
    _, cache = run(responses.tokens, every, responses.mask, cache)
    index = cache.length[..., None] + jnp.arange(2)
    hidden, cache = run(turn.tokens, index, turn.mask, cache)
    np.testing.assert_array_equal(cache.length, jnp.array(LENGTHS) + 2)
    row, member = 0, 1  # three tokens, then two
    joined = jnp.concatenate([responses.tokens[row, member, :3], turn.tokens[row, member]])
    tokens = jnp.zeros((b, g, r), jnp.int32).at[row, member].set(joined)
    empty = empty_cache(config, b, g, r, jnp.float32)
    whole, _ = run(tokens, every, jnp.ones((b, g, r), bool), empty)
    np.testing.assert_allclose(hidden[row, member], whole[row, member, 3:], atol=2e-5)


@pytest.mark.exhaustive
def test_flash_attention_changes_nothing(policy, prompts, responses):
    """The kernels for TPU, interpreted, in both towers: logprobs and the gradient of every weight."""
    plain = _loss_and_gradient(policy.params, policy.config, prompts, responses)
    flash = replace(policy.config, attention="interpreted")
    value, logprob, gradient = _loss_and_gradient(policy.params, flash, prompts, responses)
    np.testing.assert_allclose(value, plain[0], rtol=1e-5)
    np.testing.assert_allclose(logprob, plain[1], atol=2e-5)
    _same_gradient(gradient, plain[2])
