"""A tiny model to measure with, opened as a run's would be, and samples for it."""

import dataclasses

import jax
import pytest
from tiny import noise_image

from mmrl.analysis.perception import png
from mmrl.config import Config, CorruptionConfig, DataConfig, RolloutConfig, TrainConfig
from mmrl.open import open_model
from mmrl.sample import Sample


@pytest.fixture(scope="module")
def haste():
    """Programs are compiled in haste: they run for seconds."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def looking_config() -> Config:
    """How prompts are made and corrupted; the temperature is not 1, which might be forgotten."""
    return Config(
        data=DataConfig(prompt_buckets=(64,), patch_buckets=(64,)),
        corruption=CorruptionConfig("patch_black", 0.5),
        rollout=RolloutConfig(group=2, max_tokens=8, temperature=0.7),
        train=TrainConfig(row_tokens=256),
    )


@pytest.fixture(scope="session")
def looking(looking_config, fixtures_dir):
    """What `perceive` asks for: the model, its weights and the config."""
    model = open_model(looking_config, fixtures_dir / "qwen2_5_vl")
    return model, model.load(), looking_config


@pytest.fixture(scope="session")
def seen_samples() -> list[Sample]:
    """Samples with one image, with two, and with none."""
    pictures = [png(noise_image(56, 84, seed=k)) for k in range(3)]
    one = Sample("a:0", "<image>What is it?", "1", images=(pictures[0],))
    two = Sample("a:1", "<image>Which?<image>", "2", images=tuple(pictures[1:]))
    return [one, two, dataclasses.replace(one, id="a:2", problem="Why?", images=())]
