"""A tiny policy to test with: the fixture model, and prompts for it with drawn images."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmrl.models.checkpoint import load
from mmrl.models.config import ModelConfig, VisionConfig
from mmrl.models.family import param_specs, read_config
from mmrl.models.processor import Processor, load_processor
from mmrl.models.prompts import chat_messages, collate, encode
from mmrl.types import Params, Prompts, Responses


@dataclass(frozen=True)
class Policy:
    """A model directory, read."""

    directory: Path
    config: ModelConfig
    params: Params
    processor: Processor


def read_policy(directory: Path) -> Policy:
    """Read config, weights (float32) and processor of a model directory."""
    config = read_config(directory)
    return Policy(directory, config, load(directory, param_specs(config)), load_processor(directory))


def one_layer(vision: VisionConfig) -> VisionConfig:
    """A tower of one layer, which attends over the whole image, and is tapped if the tower is."""
    return replace(vision, layers=1, full_attention_layers=(0,), taps=(0,) if vision.taps else ())


def shallow(config: ModelConfig) -> ModelConfig:
    """Sizes with one layer in each part, of experts if there are some."""
    experts = (0,) if config.experts else ()
    return replace(config, layers=1, expert_layers=experts, vision=one_layer(config.vision))


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image in which every pixel matters."""
    pixels = np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def make_prompts(
    processor: Processor, rows: list[tuple[str, list[tuple[int, int]]]], tokens: int, patches: int
) -> Prompts:
    """Prompts from rows of (text, sizes of its images as (width, height)), in the buckets given."""
    encoded = []
    for text, sizes in rows:
        images = [noise_image(*size, seed=k) for k, size in enumerate(sizes)]
        encoded.append(encode(processor, chat_messages("<image>" * len(images) + text), images))
    return jax.tree.map(jnp.asarray, collate(encoded, processor, tokens, patches))


def make_responses(lengths: list[list[int]], slots: int, vocabulary: int, seed: int = 0) -> Responses:
    """Responses of random tokens, ``lengths[b][g]`` of them real and 0 beyond."""
    length = jnp.array(lengths)
    mask = jnp.arange(slots) < length[..., None]
    tokens = jax.random.randint(jax.random.key(seed), mask.shape, 0, vocabulary)
    return Responses(
        tokens=jnp.where(mask, tokens, 0),
        mask=mask,
        logprob=jnp.zeros(mask.shape),
        log_kept=jnp.zeros(mask.shape),
        stop=jnp.zeros(length.shape, jnp.int32),
        valid=jnp.ones(length.shape, bool),
    )
