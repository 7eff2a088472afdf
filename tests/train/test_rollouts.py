"""Episodes of a batch of prompts, and dynamic sampling: which groups make up a batch."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.config import resolve
from mmrl.data import pipeline
from mmrl.data.shapes_model import write_model
from mmrl.data.zoom_world import BOXES, world, write_zoom_world, zoom_call
from mmrl.experiment import load
from mmrl.kernels.vocab import BANNED
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.generate import gather
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import Stats
from mmrl.sample import Sample
from mmrl.train import programs
from mmrl.train.assemble import open_model, open_source, prompt_format
from mmrl.train.rollouts import (
    Experience,
    collect,
    describe,
    observed_slots,
    play,
    prompt_keys,
    tool_pool,
)
from mmrl.types import Images, Prompts, Responses

VISION = {"depth": 1, "fullatt_block_indexes": [0]}
ZOOM = Path(__file__).parents[2] / "experiments" / "zoom.py"

ROWS = 3


def experience(number: int, tokens: int = 4) -> Experience:
    """Three groups of two; every array says which batch and row it belongs to. Row 2 has no image."""
    tag = number * 10 + np.arange(ROWS)
    image = np.broadcast_to(np.array([0, 0, -1])[:, None], (ROWS, 4))
    return Experience(
        samples=[Sample(id=f"{number}:{row}", problem="", answer="") for row in range(ROWS)],
        prompts=Prompts(
            tokens=np.broadcast_to(tag[:, None], (ROWS, tokens)),
            mask=np.ones((ROWS, tokens), bool),
            position=np.zeros((ROWS, tokens, 3), np.int32),
            next_position=tag,
            image_token=np.full((ROWS, tokens), -1, np.int32),
            images=Images(
                patches=np.zeros((ROWS, 4, 12), np.uint8),
                position=np.zeros((ROWS, 4, 2), np.int32),
                image=image,
            ),
        ),
        responses=Responses(
            tokens=np.broadcast_to(tag[:, None, None], (ROWS, 2, 5)),
            mask=np.ones((ROWS, 2, 5), bool),
            logprob=np.zeros((ROWS, 2, 5), np.float32),
            stop=np.ones((ROWS, 2), np.int32),
            valid=np.ones((ROWS, 2), bool),
        ),
        texts=[[f"{number}:{row}"] * 2 for row in range(ROWS)],
        rewards=np.broadcast_to(tag[:, None], (ROWS, 2)).astype(np.float32),
        components={"accuracy": np.zeros((ROWS, 2), np.float32)},
    )


def kept_rows(*rows):
    return lambda made: np.isin([int(sample.id[-1]) for sample in made.samples], rows)


def test_one_batch_stays_as_it_is():
    chosen, metrics = collect(experience, kept_rows(0, 2), prompts=ROWS, max_batches=1)
    assert [sample.id for sample in chosen.samples] == ["0:0", "0:1", "0:2"]
    np.testing.assert_array_equal(chosen.prompts.next_position, [0, 1, 2])
    assert metrics == {"rollout/batches": 1.0, "rollout/kept_groups": 2 / 3}


def test_draws_until_full():
    chosen, metrics = collect(experience, kept_rows(1), prompts=ROWS, max_batches=10)
    assert [sample.id for sample in chosen.samples] == ["0:1", "1:1", "2:1"]
    np.testing.assert_array_equal(chosen.rewards[:, 0], [1, 11, 21])
    np.testing.assert_array_equal(chosen.responses.tokens[:, 0, 0], [1, 11, 21])
    assert [row[0] for row in chosen.texts] == ["0:1", "1:1", "2:1"]
    assert metrics["rollout/batches"] == 3


def test_stops_at_the_bound_and_fills_up():
    chosen, metrics = collect(experience, kept_rows(), prompts=ROWS, max_batches=2)
    assert metrics == {"rollout/batches": 2.0, "rollout/kept_groups": 0.0}
    assert [sample.id for sample in chosen.samples] == ["0:0", "0:1", "0:2"]


def test_buckets_of_different_batches_are_joined():
    chosen, _ = collect(lambda n: experience(n, tokens=4 + 2 * n), kept_rows(0), prompts=2, max_batches=2)
    assert chosen.prompts.tokens.shape == (2, 6)
    np.testing.assert_array_equal(chosen.prompts.mask.sum(axis=1), [4, 6])
    assert (np.asarray(chosen.prompts.image_token) == -1).all()


def test_metrics_leave_out_invalid_rows():
    made = experience(0)
    valid = np.array([[True, False], [True, True], [True, True]])
    rewards = np.array([[1.0, 9.0], [0.0, 1.0], [0.5, 0.5]], np.float32)
    made = replace(made, rewards=rewards, responses=replace(made.responses, valid=valid))
    values = describe(made)
    assert values["reward/mean"] == pytest.approx(3 / 5)
    assert values["reward/invalid"] == pytest.approx(1 / 6)
    assert values["reward/equal_groups"] == pytest.approx(2 / 3)
    assert values["padding/patches"] == pytest.approx(1 / 3)


def test_keys_depend_on_their_address_alone():
    data = jax.random.key_data(prompt_keys(0, 1, 2, 4))
    np.testing.assert_array_equal(jax.random.key_data(prompt_keys(0, 1, 2, 2, start=2)), data[2:])
    others = [prompt_keys(1, 1, 2, 4), prompt_keys(0, 2, 2, 4), prompt_keys(0, 1, 3, 4)]
    assert all((jax.random.key_data(other) != data).any(axis=-1).all() for other in others)


def test_sampler_equals_scorer_where_episodes_zoom(tmp_path):
    """Real episodes of an untrained policy whose few words are whole calls, so that it zooms by chance."""
    config = resolve(load(f"{ZOOM}:smoke", ["--config.model.unroll=1"]))
    calls = [zoom_call(cell) for cell in BOXES]
    known = world()
    known = replace(known, texts=(*known.texts, *calls), words=r"<zoom>[^<]*</zoom>|" + known.words)
    write_model(tmp_path / "model", 0, known, num_hidden_layers=2, vision_config=VISION)
    write_zoom_world(tmp_path, 0, cold_start=1, train=4, heldout=1)
    model = open_model(config, tmp_path / "model")
    source = open_source(config, str(tmp_path / "train.parquet"), tmp_path, model, key="data.train")
    batch = next(pipeline.prompts(source, model.processor, prompt_format(config), seed=0, batch_size=4))
    ids = model.processor.tokenizer([*calls, "rows", "<zoom>", "<|im_end|>"])["input_ids"]
    assert all(len(one) == 1 for one in ids)
    uneven = replace(config, episode=replace(config.episode, observation_patches=20))
    with pytest.raises(ValueError, match="observation_patches=20 is not a multiple of 16"):
        open_model(uneven, tmp_path / "model")
    policy = model.policy(1.0)
    words = jnp.full_like(policy.bias, BANNED).at[jnp.array(ids)[:, 0]].set(0)
    policy, params = replace(policy, bias=words), model.load()
    with tool_pool(config) as tools:
        played = list(
            play(
                decoding_weights(params, model.config),
                policy,
                model,
                batch.samples,
                batch.prompts,
                prompt_keys(0, 0, 1, 4),
                group=4,
                sampling=Sampling(max_tokens=config.rollout.max_tokens),
                config=config,
                stats=Stats(),
                tools=tools,
            )
        )
    assert sum(one.facts.get("images", 0.0) for one in played) >= 8
    width = batch.prompts.images.patches.shape[-1]
    responses = gather(played, 4, 4, config.rollout.max_tokens, observed_slots(config), width)
    scored = programs.score(
        params,
        policy,
        jax.tree.map(jnp.asarray, programs.Batch(batch.prompts, responses, prompt_keys(0, 1, 1, 4))),
        programs.ImageCorruption("patch_black", 0.6),
        wanted=frozenset({"corrupted"}),
        micro_batches=1,
    )
    difference = np.abs(responses.logprob - scored["logprob"])[responses.mask]
    assert difference.max() < 1e-4
    assert responses.logprob[responses.mask].std() > 0.1
    looked = (responses.observed.images.image >= 0).any(axis=-1)
    after = responses.mask & (np.cumsum(responses.observed.image_token >= 0, axis=-1) > 0)
    assert (after.any(axis=-1) == looked).all()
    assert np.abs(scored["corrupted"] - scored["logprob"])[after].max() > 1e-3


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"temperature": -1.0}, {"max_tokens": 0}, {"min_p": 1.0}])
def test_sampling_refuses(wrong):
    with pytest.raises(ValueError, match=f"rollout.{next(iter(wrong))}"):
        Sampling(**{"max_tokens": 4, **wrong})
