"""Images cut into tiles: how many there are, what fits a budget, and the tower that reads them one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import padded
import pytest
from tiny import make_prompts, noise_image

from mmrl import packing
from mmrl.models.config import VisionConfig
from mmrl.models.family import from_hf, param_specs
from mmrl.models.images import pixel_values
from mmrl.models.params import initialise
from mmrl.models.prompts import OverBudget, chat_messages, encode, measure
from mmrl.models.tiles import TileSpec, tile_grid
from mmrl.models.weight_files import short_name
from mmrl.rollout import engine

SPEC = TileSpec(
    tile=84, min_tiles=1, max_tiles=6, patch=14, merge=2, mean=(0.5,) * 3, std=(0.5,) * 3, before=1, after=2
)
TOKENS = 9  # of a tile of three blocks to a side


@pytest.fixture(scope="module")
def processor(policy):
    """The fixture's, with tiles between the tokens for the start and the end of an image."""
    control = policy.processor.control
    spec = replace(SPEC, before=control["<|vision_start|>"], after=control["<|vision_end|>"])
    return replace(policy.processor, image=spec, window=3)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((100, 100), (1, 1)),  # two by two would have four times the tile: over twice the image
        ((130, 130), (2, 2)),
        ((84, 168), (1, 2)),
        ((50, 400), (1, 6)),
        ((400, 50), (6, 1)),
        ((200, 300), (2, 3)),
        ((1, 1), (1, 1)),
    ],
)
def test_the_grid_nearest_in_shape(size, grid):
    assert tile_grid(size, SPEC) == grid


def test_a_thumbnail_follows_several_tiles():
    one, many = SPEC.shown((100, 100)), SPEC.shown((200, 300))
    assert one.grids == ((6, 6),)
    assert many.grids == ((6, 6),) * 7
    np.testing.assert_array_equal(one.tokens(9, 2), [1, *[9] * TOKENS, 2])
    assert many.count(2) == len(many.tokens(9, 2)) == 2 + 7 * TOKENS
    image = noise_image(252, 168)  # three by two tiles, as it is
    patches = SPEC.cut(image, "here")
    assert len(patches) == 7 * 36
    pixels = np.asarray(image)[:14, 84:98].transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(patches[36], pixels)  # first of the second tile
    assert pixel_values(patches, SPEC).shape == (7 * 36, 588)


def test_limits_in_pixels_are_limits_of_tiles():
    area = 84 * 84
    assert (SPEC.min_pixels, SPEC.max_pixels) == (area, 6 * area)
    limited = SPEC.limited(area + 1, 4 * area)
    assert (limited.min_tiles, limited.max_tiles) == (2, 4)
    assert SPEC.limited(3 * area, area - 1) == replace(SPEC, max_tiles=1)


def test_an_image_loses_tiles_until_its_prompt_fits(processor):
    turns, image = chat_messages("<image>What is this?"), noise_image(300, 200)
    whole = encode(processor, turns, [image])
    text = len(whole.tokens) - 7 * TOKENS
    assert measure(processor, turns, [(200, 300)]) == (len(whole.tokens), 7 * 36)
    budget = {"prompt_budget": text + 4 * TOKENS, "patch_budget": 7 * 36}
    with pytest.raises(OverBudget):
        encode(processor, turns, [image], **budget)
    shrunk = encode(processor, turns, [image], overlong="resize", **budget)
    assert len(shrunk.tokens) == text + 3 * TOKENS  # two tiles and a thumbnail: of three, one is too wide
    np.testing.assert_array_equal(shrunk.position[:, 0], np.arange(len(shrunk.tokens)))
    np.testing.assert_array_equal(shrunk.image_token[shrunk.image_token >= 0], np.arange(3 * TOKENS))
    with pytest.raises(OverBudget):
        encode(processor, turns, [image], overlong="resize", prompt_budget=TOKENS)


def test_packed_rows_equal_the_padded_form(policy, processor):
    """Rows that hold no whole number of tiles, prompts of none, one and several images."""
    vision = VisionConfig(
        layers=2,
        width=32,
        heads=2,
        mlp_width=48,
        patch_size=14,
        window_size=84,
        tiles=True,
        activation="gelu",
        frames=1,
        patch_bias=True,
        class_token=True,
        layer_scale=True,
        qk_norm=True,
        connector="projector",
    )
    config = replace(policy.config, family="internvl", layers=1, vision=vision)
    params = initialise(param_specs(config), 0)
    rows = [
        ("Add 1 and 2.", []),
        ("What?", [(200, 90)]),
        ("Which?", [(84, 84), (90, 200)]),
        ("Left", [(9, 9)]),
    ]
    prompts = make_prompts(processor, rows, tokens=96, patches=180)
    keep = np.array([True, True, True, False])
    packed = packing.pack_prompts(jax.tree.map(np.asarray, prompts), keep, config, None)
    assert packed.patches.source.shape[-1] % 36
    prefix, hidden = engine.prefill(params, config, prompts, packed)
    expected, expected_hidden = jax.jit(padded.prefill, static_argnums=1)(params, config, prompts)
    real = np.asarray(prompts.mask) & keep[:, None]
    for found, wanted in zip((*prefix.key, *prefix.value), (*expected.key, *expected.value), strict=True):
        np.testing.assert_allclose(found, np.where(real[..., None, None], wanted, 0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(hidden[:3], expected_hidden[:3], rtol=0, atol=2e-5)
    # Another image elsewhere in the prompt, or another tile, changes what is seen.
    other = replace(prompts.images, patches=prompts.images.patches.at[2, 36:].set(0))
    changed, _ = jax.jit(padded.prefill, static_argnums=1)(params, config, replace(prompts, images=other))
    assert float(jnp.abs(changed.key[0][2] - expected.key[0][2]).max()) > 1e-2


TEXT = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 96,
    "vocab_size": 320,
    "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def internvl(vision=(), **outside):
    parts = {"text_config": TEXT, "vision_config": {**SIZES, **dict(vision)}}
    return from_hf({"model_type": "internvl", **parts, **outside}, {})


def test_tensors_have_the_names_of_the_hub():
    config = internvl({"use_qk_norm": True, "norm_type": "rms_norm"})
    assert config.qk_norm
    assert not config.vision.qkv_bias
    leaves = jax.tree.leaves(param_specs(config), is_leaf=lambda leaf: hasattr(leaf, "hf_names"))
    names = {name for leaf in leaves for name in leaf.hf_names}
    block = "vision_tower.encoder.layer.0"
    assert {
        "language_model.model.layers.0.self_attn.q_norm.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.weight",
        f"{block}.attention.q_norm.weight",
        f"{block}.layernorm_before.weight",
        f"{block}.lambda_2",
    } <= names
    assert f"{block}.attention.q_proj.bias" not in names
    assert short_name("language_model.model.norm.weight") == short_name("model.language_model.norm.weight")


@pytest.mark.parametrize(
    ("vision", "outside", "words"),
    [
        ({"use_mean_pooling": False}, {}, "use_mean_pooling is False"),
        ({"use_absolute_position_embeddings": False}, {}, "use_absolute_position_embeddings is False"),
        ({"hidden_act": "relu"}, {}, "hidden_act is 'relu'"),
        ({"norm_type": "group"}, {}, "norm_type is 'group'"),
        ({"image_size": [448, 224]}, {}, "image_size is"),
        ({"image_size": 70}, {}, "image_size 70"),
        ({}, {"vision_feature_layer": -2}, "vision_feature_layer is -2"),
        ({}, {"downsample_ratio": 0.25}, "downsample_ratio is 0.25"),
        ({}, {"image_seq_length": 64}, "image_seq_length is 64; a tile has 256 tokens"),
        ({}, {"text_config": {**TEXT, "model_type": "qwen3_moe"}}, "model_type is 'qwen3_moe'"),
        ({}, {"text_config": {**TEXT, "rope_scaling": {"rope_type": "yarn"}}}, "rope type 'yarn'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(vision, outside, words):
    with pytest.raises(ValueError, match=words):
        internvl(vision, **outside)
