"""The host's part of a rollout: an episode is played once, to its end, and the same whatever else is decoded.

Each random episode is first played alone, in one slot; so it has to be wherever it is played.
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from padded import predict
from scripted import OBSERVATION_PATCHES, assert_same, make_world, play, shape_of

from mmrl.kernels.vocab import BANNED, token_statistics
from mmrl.models import language_model as model
from mmrl.rollout import engine
from mmrl.rollout.episodes import Request
from mmrl.rollout.generate import to_responses
from mmrl.rollout.sampling import Sampling
from mmrl.train.metrics import CompileCounter
from mmrl.types import StopReason

SHAPE = shape_of(3, 1, chunk=3)  # of most tests, so that little is compiled


@pytest.fixture(scope="module")
def world(policy):
    """Programs are compiled in haste: there are many, and they are small."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield make_world(policy)
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def alone(world):
    """An episode played alone, by prompt and seed; each is played once."""
    return cache(lambda prompt, seed: play(world, [(prompt, [seed])], shape_of(1, 1))[0, 0])


def random_groups(rng, count):
    """Groups of one to five members; an episode keeps to its prompt."""
    groups = rng.integers(0, 4, count).tolist()
    return [(prompt, (prompt + 4 * rng.integers(0, 12, rng.integers(1, 6))).tolist()) for prompt in groups]


more = partial(pytest.param, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("prompt_slots", "slots", "chunk", "smallest", "compacts", "turns"),
    [
        (3, 2, 5, 20, True, 3),
        more(3, 2, 5, 20, False, 8),
        more(3, 1, 3, 256, False, 8),
        more(5, 1, 16, 256, True, 8),
        more(2, 3, 40, 50, True, 8),
        more(1, 4, 3, 30, True, 8),
        more(4, 5, 7, 9, False, 8),
        more(4, 5, 7, 9, True, 8),
    ],
)
def test_the_rest_of_the_batch_changes_nothing(
    world, alone, monkeypatch, prompt_slots, slots, chunk, smallest, compacts, turns
):
    """Nor do the cuts into chunks, the growth of the cache, compaction, and when tools answer."""
    monkeypatch.setattr(engine, "_SMALLEST_CACHE", smallest)
    rng = np.random.default_rng([prompt_slots, slots])
    shape = replace(shape_of(prompt_slots, slots, chunk), compacts=compacts)
    for turn in range(turns):
        groups = random_groups(rng, 1 + turn)
        played = play(world, groups, shape, late=0.01 * (turn % 3))
        for g, (prompt, seeds) in enumerate(groups):
            for m, seed in enumerate(seeds):
                assert_same(played[g, m], alone(prompt, seed), f"group {g} {m}: prompt {prompt}, seed {seed}")


@pytest.mark.exhaustive
def test_nothing_is_compiled_twice(world):
    """Other requests of the same shapes: other lengths, options, observations, numbers of members."""
    rng = np.random.default_rng(5)
    for _ in range(3):  # few groups meet all that may happen
        play(world, random_groups(rng, 12), SHAPE)
    with CompileCounter() as compiles:
        play(world, random_groups(rng, 12), SHAPE)
    assert compiles.count == 0


def speaker(sampling, *observations):
    """Episodes that write and read in turn."""

    def episode(world, seed, turns):
        turns.append((yield Request(sampling)))
        for number in observations:
            turns.append((yield Request(sampling, observation=world.seen[number])))
        return {}

    return episode


def test_a_prompt_is_copied_to_free_slots(world):
    """Two prompt slots get free at once, while five members wait for the prompt of the third."""
    groups = [(0, [0]), (1, [1]), (2, [2, 3, 4, 5, 6, 7])]
    episode = speaker(Sampling(max_tokens=6))
    played = play(world, groups, SHAPE, episode=episode)
    for (g, m), one in played.items():
        (prompt, seeds) = groups[g]
        expected = play(world, [(prompt, [seeds[m]])], shape_of(1, 1), episode=episode)[0, 0]
        assert_same(one, expected, f"group {g}, member {m}")


@pytest.mark.parametrize("shape", [shape_of(1, 1), SHAPE], ids=["alone", "in company"])
def test_where_turns_end(world, shape):
    """By brute force, from what is written without a stop."""
    processor = world.policy.processor
    groups = [(0, [1, 2, 3]), (1, [4, 5])]
    free = play(world, groups, shape, episode=speaker(Sampling(max_tokens=30)))
    reasons = set()
    for (g, m), one in free.items():
        tokens = one.turns[0].tokens
        texts = [processor.tokenizer.decode(tokens[:n], skip_special_tokens=True) for n in range(31)]
        strings = tuple(texts[n + 3][len(texts[n]) :] for n in (4, 11) if texts[n + 3] > texts[n])
        for chosen in (
            ((), ()),
            (strings, ()),
            (strings, tokens[6:8]),
            ((), tokens[16:17]),
            (strings[:1], tokens[6:7]),
        ):
            sampling = Sampling(max_tokens=20, stop_strings=chosen[0], stop_ids=chosen[1])
            played = play(world, [groups[g]], shape, episode=speaker(sampling))[0, m].turns[0]
            by_string = [n for n in range(21) if any(one in texts[n] for one in chosen[0])]
            by_id = [n for n in range(1, 21) if tokens[n - 1] in chosen[1]]
            end = min([*by_string, *by_id, 20])
            stop = StopReason.EOS if end in by_id else StopReason.LENGTH
            stop = StopReason.STRING if end in by_string else stop
            assert (played.tokens, played.stop) == (tokens[:end], stop)
            reasons.add(stop)
    assert reasons == {StopReason.STRING, StopReason.EOS, StopReason.LENGTH}


@pytest.mark.parametrize("spare", [0, 1])
def test_an_observation_needs_room_for_itself_and_a_token(world, spare):
    seen = world.seen[3]
    shape = shape_of(1, 1)
    sampling = Sampling(max_tokens=shape.max_tokens - len(seen.tokens) - spare)
    (played,) = play(world, [(1, [0])], shape, episode=speaker(sampling, 3)).values()
    one = played.trajectory
    assert one.stop == StopReason.LENGTH
    if spare:
        assert [len(turn.tokens) for turn in played.turns] == [sampling.max_tokens, 1]
        assert [turn.left for turn in played.turns] == [len(seen.tokens) + 1, 0]
        assert len(one.tokens) == shape.max_tokens
        np.testing.assert_array_equal(one.tokens[sampling.max_tokens : -1], seen.tokens)
        assert one.written.sum() == sampling.max_tokens + 1
    else:
        assert len(played.turns) == 1
        assert one.written.all()
        assert len(one.tokens) == sampling.max_tokens


def test_errors(world):
    def untold(world, seed, turns):
        turns.append((yield Request(Sampling(max_tokens=1))))
        yield Request(Sampling(max_tokens=1))

    with pytest.raises(ValueError, match="needs an observation"):
        play(world, [(0, [0])], shape_of(1, 1), episode=untold)
    small = replace(shape_of(1, 1), observation=8)
    with pytest.raises(ValueError, match="over the rollout's budget of 8 and 32"):
        play(world, [(0, [0])], small, episode=speaker(Sampling(max_tokens=2), 1))


def test_a_second_context_is_a_prompt_like_others(world):
    """What is written there is what a first turn is; what is trained on is the first context."""
    sampling = Sampling(max_tokens=7, temperature=0)

    def twice(world, seed, turns):
        turns.append((yield Request(Sampling(max_tokens=9))))
        turns.append((yield Request(sampling, prompt=world.others[0])))
        return {"turns": 2.0}

    (played,) = play(world, [(1, [3])], shape_of(1, 1), episode=twice).values()
    (first,) = play(world, [(1, [3])], shape_of(1, 1), episode=speaker(Sampling(max_tokens=9))).values()
    (other,) = play(world, [(3, [3])], shape_of(1, 1), episode=speaker(sampling)).values()
    assert played.turns[1].tokens == other.turns[0].tokens
    assert played.turns[0].tokens == first.turns[0].tokens == tuple(played.trajectory.tokens)
    assert played.trajectory.facts == {"turns": 2.0}


DRAWN = [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (0.7, 0.6)]  # temperature, top_p


def test_what_was_sampled_is_what_is_scored(world):
    """Log-probabilities and entropies, of turns before and after texts and images were read."""

    def episode(world, seed, turns):
        temperature, top_p = DRAWN[seed]
        return speaker(Sampling(9, temperature, top_p), 1, 3)(world, seed, turns)

    groups = [(1, [0, 1, 2, 3]), (2, [3, 2, 1, 0])]
    played = play(world, groups, SHAPE, episode=episode, entropy=True)
    trajectories = [one.trajectory for one in played.values()]
    prompts = jax.tree.map(
        lambda *rows: jnp.concatenate(rows), *(world.prompts[number] for number, _ in groups)
    )
    patches = prompts.images.patches.shape[-1]
    responses = jax.tree.map(
        jnp.asarray, to_responses(trajectories, 2, 4, 96, 2 * OBSERVATION_PATCHES, patches)
    )
    with pytest.raises(ValueError, match="has read something"):
        to_responses(trajectories, 2, 4, 96)
    policy = world.policy

    @jax.jit
    def logits_of(params):
        hidden = predict(params, policy.config, prompts, responses)
        logits = jnp.einsum("bgrd,vd->bgrv", hidden, model.unembedding(params)) + world.bias
        flat = hidden.reshape(-1, hidden.shape[-1]), model.unembedding(params), responses.tokens.reshape(-1)
        scored = [token_statistics(*flat, world.bias, temperature=one) for one in (1.0, 0.7)]
        return logits, [one["logprob"].reshape(responses.tokens.shape) for one in scored]

    logits, scored = jax.device_get(logits_of(policy.params))
    for one in trajectories:
        slot, count, written = (one.group, one.member), len(one.tokens), one.written
        temperature, top_p = DRAWN[groups[one.group][1][one.member]]
        whole = np.exp(logits[slot][:count].astype(np.float64) / temperature)
        whole /= whole.sum(-1, keepdims=True)
        ranked = -np.sort(-whole, axis=-1)
        least = np.take_along_axis(ranked, (ranked.cumsum(-1) < top_p - 1e-9).sum(-1, keepdims=True), -1)
        kept = np.where(whole >= least, whole, 0) if top_p < 1 else whole
        kept /= kept.sum(-1, keepdims=True)
        assert written.sum() == 27
        assert one.position is not None
        own = np.log(np.take_along_axis(kept, one.tokens[:, None], -1)[:, 0][written])
        np.testing.assert_allclose(one.logprob[written], own, atol=1e-4)
        spread = -(kept * np.log(np.where(kept > 0, kept, 1))).sum(-1)
        np.testing.assert_allclose(one.entropy[written], spread[written], atol=1e-4)
        assert (one.logprob[~written] == 0).all()
        if top_p == 1:
            score = scored[DRAWN.index((temperature, 1.0))][slot][:count]
            np.testing.assert_allclose(one.logprob[written], score[written], atol=1e-4)
    masks = np.stack([responses.mask, responses.observed.real])
    np.testing.assert_array_equal(masks.sum((2, 3)), [[4 * 27] * 2, [4 * len(trajectories[0].tokens)] * 2])


def test_placeholders_are_banned(policy):
    """They, and the rows of the table that the tokenizer does not know; nothing else."""
    processor, vocabulary = policy.processor, policy.config.vocabulary
    bias = engine.vocabulary_bias(vocabulary, len(processor.tokenizer), processor.placeholders)
    banned = {processor.image_pad, *processor.placeholders, *range(len(processor.tokenizer), vocabulary)}
    assert set(np.flatnonzero(np.asarray(bias)).tolist()) == banned
    np.testing.assert_array_equal(np.unique(np.asarray(bias)), np.float32([BANNED, 0]))
