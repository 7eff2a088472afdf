"""Episodes of a batch of prompts."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.algorithms.passes import CORRUPTED_LOGPROB, LOGPROB
from mmrl.config import resolve
from mmrl.data import pipeline
from mmrl.experiment import load
from mmrl.kernels.vocab import BANNED
from mmrl.mesh import shard_batch
from mmrl.models.prompts import text_ids
from mmrl.models.tiny_model import write_model
from mmrl.open import open_model, open_source, prompt_format
from mmrl.packing import pack_batch
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.generate import to_responses
from mmrl.rollout.sampling import Sampling
from mmrl.tasks.zoom_world import BOXES, model_spec, write_data, zoom_call
from mmrl.train import programs
from mmrl.train.rollouts import (
    RolloutContext,
    observation_slots,
    play,
    prompt_keys,
    tool_pool,
)

VISION = {"depth": 1, "fullatt_block_indexes": [0]}
ZOOM = Path(__file__).parents[2] / "experiments" / "zoom.py"


def test_keys_depend_on_their_address_alone():
    data = prompt_keys(0, 1, 2, 4)
    np.testing.assert_array_equal(prompt_keys(0, 1, 2, 2, start=2), data[2:])
    others = [prompt_keys(1, 1, 2, 4), prompt_keys(0, 2, 2, 4), prompt_keys(0, 1, 3, 4)]
    assert all((other != data).any(axis=-1).all() for other in others)


@pytest.mark.exhaustive
def test_sampler_equals_scorer_where_episodes_zoom(tmp_path):
    """Real episodes of an untrained policy whose few words are whole calls, so that it zooms by chance."""
    config = resolve(load(f"{ZOOM}:smoke", ["--config.model.unroll=1"]))
    calls = [zoom_call(cell) for cell in BOXES]
    known = model_spec()
    known = replace(known, texts=(*known.texts, *calls), words=r"<zoom>[^<]*</zoom>|" + known.words)
    write_model(tmp_path / "model", 0, known, num_hidden_layers=2, vision_config=VISION)
    write_data(tmp_path, 0, cold_start=1, train=4, heldout=1)
    model = open_model(config, tmp_path / "model")
    source = open_source(config, str(tmp_path / "train.parquet"), tmp_path, model, key="data.train")
    batch = next(pipeline.prompts([source], model.processor, prompt_format(config), seed=0, batch_size=4))
    texts = [text_ids(model.processor, text) for text in (*calls, "rows", "<zoom>")]
    assert all(len(one) == 1 for one in texts)
    ids = [one[0] for one in texts] + [model.processor.eos]
    uneven = replace(config, episode=replace(config.episode, observation_patches=20))
    with pytest.raises(ValueError, match="observation_patches=20 is not a multiple of 16"):
        open_model(uneven, tmp_path / "model")
    policy = model.policy(1.0)
    words = jnp.full_like(policy.bias, BANNED).at[jnp.array(ids)].set(0)
    policy, params = replace(policy, bias=words), model.load()
    with tool_pool(config) as tools:
        played = list(
            play(
                RolloutContext(config, model, policy, tools),
                decoding_weights(params, model.config),
                batch,
                prompt_keys(0, 0, 1, 4),
                group=4,
                sampling=Sampling(max_tokens=config.rollout.max_tokens),
            )
        )
    assert sum(one.facts.get("images", 0.0) for one in played) >= 8
    width = batch.prompts.images.patches.shape[-1]
    responses = to_responses(played, 4, 4, config.rollout.max_tokens, observation_slots(config), width)
    corruption_keys = jax.random.wrap_key_data(jnp.asarray(prompt_keys(0, 1, 1, 4)))
    asked, written = shard_batch((batch.prompts, responses), model.mesh)
    packed = pack_batch(asked, written, model.config, model.mesh, 256)
    scored = programs.score(
        {"policy": params},
        policy,
        programs.TrainBatch(asked, written, packed, corruption_keys),
        {"corrupted": programs.ImageCorruption("patch_black", 0.6)},
        wanted=frozenset({LOGPROB, CORRUPTED_LOGPROB}),
    )
    difference = np.abs(responses.logprob - scored[LOGPROB])[responses.mask]
    assert difference.max() < 1e-4
    assert responses.logprob[responses.mask].std() > 0.1
    looked = (responses.observed.images.image >= 0).any(axis=-1)
    after = responses.mask & (np.cumsum(responses.observed.image_token >= 0, axis=-1) > 0)
    assert (after.any(axis=-1) == looked).all()
    assert np.abs(scored[CORRUPTED_LOGPROB] - scored[LOGPROB])[after].max() > 1e-3


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"temperature": -1.0}, {"max_tokens": 0}, {"min_p": 1.0}])
def test_sampling_refuses(wrong):
    with pytest.raises(ValueError, match=f"rollout.{next(iter(wrong))}"):
        Sampling(**{"max_tokens": 4, **wrong})
