"""Perception of tokens against distributions computed apart, and occlusion against edited pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from padded import predict
from PIL import Image

from mmrl.analysis import perceive, perception, pictures_seen, pieces_of, token_perception, where_it_looks
from mmrl.models import language_model
from mmrl.models.prompts import chat_messages, collate, encode
from mmrl.types import Responses

TOKENS = [40, 300, 5, 77, 12]
_predict = jax.jit(predict, static_argnums=1)


@pytest.fixture(scope="module")
def many(looking, seen_samples, haste):
    """Of prompts of all sizes, groups over two batches, and an empty response beside others."""
    model, params, config = looking
    one, two, without = seen_samples
    samples = [two, one, one, without, one, two]
    responses = [TOKENS[:2], [9, 9, 9], TOKENS, TOKENS, [], "a text"]
    told: list = []
    ask = {"model": model, "config": config, "progress": lambda k, n: told.append((k, n))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perception, "_BATCH", 2)
        found = perceive(params, samples, responses, **ask)
    assert told == [(4, 6), (6, 6)]
    return found


@pytest.fixture(scope="module")
def measured(many):
    """Of `TOKENS`, after the sample with one image."""
    return many[2]


def log_probabilities(looking, problem, images, tokens) -> np.ndarray:
    """log p over the vocabulary at each of ``tokens``, dense and in double precision: [r, v]."""
    model, params, config = looking
    encoded = encode(model.processor, chat_messages(problem), images)
    prompts = jax.tree.map(jnp.asarray, collate([encoded], model.processor, 64, 64))
    ids = jnp.array(tokens)[None, None]
    ones = jnp.ones(ids.shape)
    responses = Responses(ids, ones > 0, ones, 0 * ones, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    with jax.set_mesh(model.mesh):
        hidden = _predict(params, model.config, prompts, responses)[0, 0]
    logits = np.asarray(hidden, float) @ np.asarray(language_model.unembedding(params), float).T
    logits = logits / config.rollout.temperature
    logits += np.asarray(model.policy(1.0).bias, float)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_exact_perception_is_the_divergence_of_the_two_distributions(looking, seen_samples, measured):
    """The corrupted distribution is computed from the corrupted *picture*: that is what the model saw."""
    model, _, config = looking
    sample = seen_samples[0]
    seen, corrupted = pictures_seen(sample, model=model, config=config)
    assert np.array_equal(np.asarray(seen[0]).shape, (84, 56, 3))
    p = log_probabilities(looking, sample.problem, seen, TOKENS)
    q = log_probabilities(looking, sample.problem, corrupted, TOKENS)
    probability = np.exp(p)
    kl = np.where(probability > 0, probability * (p - q), 0.0).sum(axis=-1)
    assert kl.min() > 1e-4
    np.testing.assert_allclose(measured.exact, kl, rtol=1e-3, atol=1e-6)
    rows = np.arange(len(TOKENS))
    np.testing.assert_allclose(measured.logprob, p[rows, TOKENS], atol=1e-4)
    np.testing.assert_allclose(measured.corrupted, q[rows, TOKENS], atol=1e-4)
    entropy = -np.where(probability > 0, probability * p, 0.0).sum(axis=-1)
    np.testing.assert_allclose(measured.entropy, entropy, atol=1e-3)


def test_k3_is_its_formula(measured):
    difference = measured.corrupted.astype(float) - measured.logprob
    expected = np.minimum(np.exp(difference) - difference - 1, 10)
    np.testing.assert_allclose(measured.k3, expected, rtol=1e-3, atol=1e-7)


def test_responses_come_in_order_and_whole(many, looking):
    model, *_ = looking
    assert [len(row.tokens) for row in many[:5]] == [2, 3, 5, 5, 0]
    assert many[2].tokens.tolist() == many[3].tokens.tolist() == TOKENS
    assert many[5].tokens[-1] == model.processor.eos
    assert "".join(many[5].pieces) == "a text"
    assert min(many[0].exact.min(), many[1].exact.min(), many[5].exact.min()) > 0


def test_nothing_is_owed_to_an_image_that_is_not_there(many):
    np.testing.assert_allclose(many[3].exact, 0, atol=1e-5)
    np.testing.assert_array_equal(many[3].logprob, many[3].corrupted)


def test_another_seed_is_another_corruption(looking, seen_samples):
    model, _, config = looking
    (_, first), (_, again), (_, other) = (
        pictures_seen(seen_samples[0], model=model, config=config, seed=seed) for seed in (0, 0, 1)
    )
    assert first[0].tobytes() == again[0].tobytes() != other[0].tobytes()


def test_occlusion_is_the_logprob_lost_with_the_edited_picture(looking, seen_samples, haste):
    model, params, config = looking
    sample = seen_samples[1]
    look = where_it_looks(params, sample, TOKENS, model=model, config=config, image=1)
    assert look.drop.shape == (3, 2, len(TOKENS))
    assert look.side == 28
    seen, _ = pictures_seen(sample, model=model, config=config)
    pixels = np.array(look.picture)
    np.testing.assert_array_equal(pixels, np.asarray(seen[1]))
    pixels[56:84, 28:56] = 0
    rows = np.arange(len(TOKENS))
    whole, hidden = (
        log_probabilities(looking, sample.problem, [seen[0], image], TOKENS)[rows, TOKENS]
        for image in (seen[1], Image.fromarray(pixels))
    )
    np.testing.assert_allclose(look.logprob, whole, atol=1e-4)
    np.testing.assert_allclose(look.drop[2, 1], whole - hidden, atol=2e-4)
    assert np.abs(look.drop).max() > 1e-3


def test_pieces_of_letters_in_several_tokens(looking):
    processor = looking[0].processor
    text = "é 漢字\n$x$ <b> 🙂!"
    tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of([*tokens, processor.eos], processor)
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    for cut in range(len(tokens)):
        rest = tokens[cut:]
        assert "".join(pieces_of(rest, processor)) == processor.tokenizer.decode(rest)


def test_what_no_policy_writes_is_refused(looking, seen_samples):
    model, params, config = looking
    ask = {"model": model, "config": config}
    for token in (model.processor.image_pad, len(model.processor.tokenizer), -1):
        with pytest.raises(ValueError, match=rf"a:0: token {token} of a response is none that this model"):
            token_perception(params, seen_samples[0], [5, token], **ask)
    with pytest.raises(ValueError, match="1 samples, 2 responses"):
        perceive(params, seen_samples[:1], [[1], [2]], **ask)
    assert perceive(params, [], [], **ask) == []
    wrong = dataclasses.replace(config, corruption=dataclasses.replace(config.corruption, method="blur"))
    with pytest.raises(ValueError, match=r"config\.corruption\.method='blur' is unknown"):
        token_perception(params, seen_samples[0], [5], model=model, config=wrong)
    with pytest.raises(ValueError, match="2 images, so none of number 2"):
        where_it_looks(params, seen_samples[1], [5], image=2, **ask)
    with pytest.raises(ValueError, match="side=0"):
        where_it_looks(params, seen_samples[0], [5], side=0, **ask)
