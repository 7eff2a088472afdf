"""The model against transformers as installed, on random small models of many shapes; weights so large that
every mistake shows. Both directions: what transformers saved is read, and what mmrl saved is loaded."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import padded
import pytest
from tiny import make_prompts, read_policy

from mmrl.models import checkpoint
from mmrl.models import language_model as model
from mmrl.models.family import param_specs
from mmrl.models.images import grid_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROWS = [
    ("Add 17 and 25.", []),
    ("What is this?", [(131, 75)]),
    ("Which of the three is larger?", [(61, 120), (33, 90), (28, 28)]),
]
TOLERANCE = 1e-4
SIZES = {
    "tied": {
        "text": {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "sections": [2, 3, 3],
        },
        "vision": {"hidden_size": 32, "num_heads": 2, "window_size": 56, "fullatt_block_indexes": [0]},
        "tied": True,
        "patch": 14,
    },
    "no_full_attention": {
        "text": {
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "sections": [4, 2, 2],
        },
        "vision": {"hidden_size": 40, "num_heads": 2, "window_size": 28, "fullatt_block_indexes": []},
        "tied": False,
        "patch": 14,
    },
    "ragged_window": {
        "text": {
            "hidden_size": 64,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "sections": [1, 1, 2],
        },
        "vision": {"hidden_size": 48, "num_heads": 3, "window_size": 98, "fullatt_block_indexes": [0, 1, 2]},
        "tied": False,
        "patch": 14,
    },
    "small_patches": {
        "text": {
            "hidden_size": 48,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "sections": [4, 4, 4],
        },
        "vision": {"hidden_size": 32, "num_heads": 1, "window_size": 64, "fullatt_block_indexes": [2]},
        "tied": True,
        "patch": 8,
    },
}


def _build(raw, size):
    """A transformers model with the special ids of the fixture's tokenizer and large random weights."""
    text = dict(size["text"])
    sections = text.pop("sections")
    ids = {key: value for key, value in raw.items() if key.endswith("token_id") and "vision_token" not in key}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": raw["vocab_size"],
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": sections},
            **text,
        },
        vision_config={
            "depth": 3,
            "intermediate_size": 52,
            "out_hidden_size": text["hidden_size"],
            "patch_size": size["patch"],
            **size["vision"],
        },
        tie_word_embeddings=size["tied"],
        **ids,
    )
    made = transformers.Qwen2_5_VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in made.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.data = noise * min(0.25, 1.5 / weight[0].numel() ** 0.5)
        else:
            weight.data = 0.1 * noise + (0 if name.endswith("bias") else 1)
    made.set_attn_implementation("eager")
    return made.eval()


@pytest.fixture(params=SIZES, scope="module")
def case(request, fixtures_dir, tmp_path_factory):
    """A model of transformers, the directory it wrote (with the fixture's tokenizer), and mmrl's reading."""
    size, base = SIZES[request.param], fixtures_dir / "qwen2_5_vl"
    directory = tmp_path_factory.mktemp("models") / request.param
    directory.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.json"):
        shutil.copy(base / file, directory)
    raw = json.loads((base / "config.json").read_text())
    theirs = _build(raw, size)
    theirs.save_pretrained(directory)
    preprocessor = json.loads((base / "preprocessor_config.json").read_text()) | {"patch_size": size["patch"]}
    preprocessor |= {"min_pixels": (2 * size["patch"]) ** 2, "image_mean": [0.4, 0.5, 0.6]}
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    policy = read_policy(directory)
    slots = policy.processor.slots
    return theirs, policy, make_prompts(policy.processor, ROWS, tokens=112, patches=-(-448 // slots) * slots)


def _their_pixels(policy, prompts):
    """Patches in the order of the prompt, normalised, each in two equal frames."""
    spec = policy.processor.image
    rows = []
    for b in range(len(ROWS)):
        block = np.asarray(prompts.image_token[b])
        slot = (block[block >= 0][:, None] * 4 + np.arange(4)).reshape(-1)
        rows.append(np.asarray(prompts.images.patches[b])[slot])
    pixels = np.concatenate(rows).reshape(-1, 3, 1, spec.patch**2) / 255
    pixels = (pixels - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    return np.repeat(pixels, 2, axis=2).reshape(len(pixels), -1).astype(np.float32)


def _their_outputs(theirs, policy, prompts):
    """Image features and logits; positions are those of transformers itself."""
    grids = [grid_of(size[::-1], policy.processor.image) for _, sizes in ROWS for size in sizes]
    grid = torch.tensor([[1, *grid] for grid in grids])
    tokens, mask = (torch.tensor(np.asarray(a)).long() for a in (prompts.tokens, prompts.mask))
    pixels = torch.tensor(_their_pixels(policy, prompts))
    with torch.no_grad():
        features = theirs.model.get_image_features(pixels, grid, return_dict=True).pooler_output
        logits = theirs(
            input_ids=tokens,
            attention_mask=mask,
            pixel_values=pixels,
            image_grid_thw=grid,
            mm_token_type_ids=(tokens == policy.processor.image_pad).long(),
            use_cache=False,
        ).logits
    return torch.cat(list(features)).numpy(), logits.numpy()


@partial(jax.jit, static_argnames="config")
def _our_outputs(params, config, prompts):
    x = model.embed_prompts(params, config, prompts)
    hidden, _ = padded.forward(params, config, x[:, None], prompts.position[:, None], prompts.mask[:, None])
    return x, hidden[:, 0] @ model.unembedding(params).T


def test_features_and_logits(case):
    theirs, policy, prompts = case
    x, logits = _our_outputs(policy.params, policy.config, prompts)
    their_features, their_logits = _their_outputs(theirs, policy, prompts)
    np.testing.assert_allclose(x[prompts.image_token >= 0], their_features, atol=TOLERANCE)
    real = np.asarray(prompts.mask)
    assert their_logits[real].std() > 0.5
    np.testing.assert_allclose(np.asarray(logits)[real], their_logits[real], atol=TOLERANCE)


@pytest.mark.parametrize("shard_bytes", [5 * 1024**3, 100_000])
def test_transformers_loads_what_we_save(case, tmp_path, shard_bytes):
    theirs, policy, _ = case
    moved = jax.tree.map(lambda a: a * 1.25, policy.params)
    checkpoint.save(
        moved, param_specs(policy.config), tmp_path / "saved", policy.directory, shard_bytes=shard_bytes
    )
    loaded, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "saved", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.dtype == torch.float32
    saved = dict(loaded.named_parameters())
    for name, weight in theirs.named_parameters():
        assert torch.equal(saved[name], weight * 1.25), name
