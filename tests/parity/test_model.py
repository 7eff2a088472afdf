"""The model against stored float32 references of transformers, for every model directory at hand."""

import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import padded
import pytest
from PIL import Image
from references import conversations
from safetensors.numpy import load_file
from tiny import read_policy

from mmrl.kernels.vocab import token_statistics
from mmrl.models import checkpoint
from mmrl.models import language_model as model
from mmrl.models.family import FAMILIES, param_specs
from mmrl.models.prompts import collate, encode
from mmrl.models.weight_files import short_name
from mmrl.rollout.generate import generate
from mmrl.rollout.sampling import Sampling

FIXTURES = Path(os.environ.get("MMRL_FIXTURES_DIR", Path(__file__).parent.parent / "data" / "fixtures"))
TOLERANCE = 1e-4  # transformers' eager and fused attention differ by up to 1.4e-5


def _directories():
    configs = sorted(FIXTURES.glob("*/config.json"))
    return [c.parent for c in configs if json.loads(c.read_text())["model_type"] in FAMILIES]


def _cases(directory):
    index = json.loads((directory / "ref" / "index.json").read_text())
    return {name: case for name, case in index.items() if not name.startswith("_")}


CASES = [(d, name) for d in _directories() for name in _cases(d)]
IDS = [f"{d.name}-{name}" for d, name in CASES]


@pytest.fixture(scope="module")
def policies():
    return {directory: read_policy(directory) for directory in _directories()}


@pytest.fixture(scope="module")
def prompts(policies):
    """Prompts of each case, those of a model padded alike: cases of one row and of three, two programs."""
    made = {}
    for directory, policy in policies.items():
        encoded = {name: _encode(policy, case) for name, case in _cases(directory).items()}
        rows = [row for rows in encoded.values() for row in rows]
        patches = _multiple(max(len(row.patches) for row in rows), policy.processor)
        # A case of one long row is a program more, which keeps those of the others small.
        common = sorted(len(row.tokens) for row in rows)[-1 if policy.processor.sees else -2]
        for name, rows in encoded.items():
            tokens = 3 + max(common, *(len(row.tokens) for row in rows))
            batch = collate(rows, policy.processor, tokens, patches)
            made[directory, name] = jax.tree.map(jnp.asarray, batch)
    return made


def _multiple(patches, processor):
    return -(-patches // processor.slots) * processor.slots


def _encode(policy, case):
    rows = []
    for conversation, names in conversations(case, policy.processor):
        images = [Image.open(FIXTURES / "images" / f"{name}.png") for name in names]
        rows.append(encode(policy.processor, conversation, images))
    return rows


@partial(jax.jit, static_argnames="config")
def _forward(params, config, prompts):
    """Features at the image tokens, logits everywhere, and statistics of the next token."""
    x = model.embed_prompts(params, config, prompts)
    hidden, _ = padded.forward(params, config, x[:, None], prompts.position[:, None], prompts.mask[:, None])
    hidden, table = hidden[:, 0], model.unembedding(params)
    targets = jnp.roll(prompts.tokens, -1, axis=1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    bias = jnp.zeros(config.vocabulary)
    statistics = token_statistics(flat, table, targets.reshape(-1), bias, entropy=True, chunk=64)
    statistics = {name: value.reshape(targets.shape) for name, value in statistics.items()}
    return x, hidden @ table.T, statistics


def _close(ours, reference):
    np.testing.assert_allclose(ours, reference, atol=TOLERANCE, rtol=0)


def test_there_are_models():
    assert CASES


@pytest.mark.parametrize(("directory", "name"), CASES, ids=IDS)
def test_features_logits_and_statistics(policies, prompts, directory, name):
    policy, batch = policies[directory], prompts[directory, name]
    reference = np.load(directory / "ref" / f"{name}.npz")
    x, logits, statistics = jax.tree.map(np.asarray, _forward(policy.params, policy.config, batch))
    at_image = np.asarray(batch.image_token) >= 0
    if "inputs_embeds_at_image_tokens" in reference:
        _close(x[at_image], reference["inputs_embeds_at_image_tokens"])
    elif "image_embeds" in reference:
        added = reference["deepstack_embeds"] if policy.config.vision.taps else []
        _close(x[at_image], np.concatenate([reference["image_embeds"], *added], axis=-1))
    else:
        assert not at_image.any()
    for row, mask in enumerate(reference["attention_mask"].astype(bool)):
        length = mask.sum()
        assert np.asarray(batch.mask)[row].sum() == length
        if "logits" in reference:
            _close(logits[row, :length], reference["logits"][row][mask])
        else:
            _close(logits[row, length - 8 : length], reference["logits_last8"][row])
        _close(statistics["entropy"][row, :length], reference["entropy"][row][mask])
        next_logprob = reference["next_logprobs"][row][mask[:-1] & mask[1:]]
        _close(statistics["logprob"][row, : length - 1], next_logprob)


def _greedy():
    """Cases with greedy tokens; in packed rows two images show what one does not."""
    for directory, name in CASES:
        if "greedy_ids" in _cases(directory)[name]["arrays"]:
            cheap = (directory.name, name) == ("qwen3_vl", "two_images")
            marks = () if cheap else pytest.mark.exhaustive
            yield pytest.param(directory, name, id=f"{directory.name}-{name}", marks=marks)


@pytest.mark.parametrize(("directory", "name"), _greedy())
def test_greedy_tokens(policies, prompts, directory, name):
    policy, batch = policies[directory], prompts[directory, name]
    reference = np.load(directory / "ref" / f"{name}.npz")
    rows, count = reference["greedy_ids"].shape
    responses = generate(
        policy.params,
        policy.config,
        batch,
        jax.random.split(jax.random.key(0), rows),
        group=1,
        sampling=Sampling(max_tokens=count, temperature=0),
        bias=jnp.zeros(policy.config.vocabulary),
    )
    np.testing.assert_array_equal(responses.tokens[:, 0], reference["greedy_ids"])
    _close(responses.logprob[:, 0], reference["greedy_logprobs"])


def _gradients():
    """Models with stored gradients, and how their layers are recomputed."""
    for directory in _directories():
        index = json.loads((directory / "ref" / "index.json").read_text())
        for remat in ("full", "none", "dots") if any(name.startswith("_grad") for name in index) else ():
            cheap = remat == "full" and directory.name in ("qwen2_5_vl", "qwen3_vl_moe")
            marks = () if cheap else pytest.mark.exhaustive
            yield pytest.param(directory, remat, id=f"{remat}-{directory.name}", marks=marks)


@pytest.mark.parametrize(("directory", "remat"), _gradients())
def test_gradients(policies, prompts, tmp_path, directory, remat):
    index = json.loads((directory / "ref" / "index.json").read_text())
    case = "one_square" if "one_square" in index else "text_only"
    policy, batch, stored = policies[directory], prompts[directory, case], index[f"_grad_{case}"]
    config = policy.config.__class__(**{**vars(policy.config), "remat": remat})

    def loss(params):
        length = batch.mask[0].sum()
        _, _, statistics = _forward(params, config, batch)
        index = jnp.arange(batch.tokens.shape[1])
        last = (index < length - 1) & (index >= length - 17)  # the last 16 next-token log-probabilities
        return -jnp.where(last, statistics["logprob"][0], 0).sum() / 16

    value, gradient = jax.value_and_grad(loss)(policy.params)
    assert float(value) == pytest.approx(stored["loss"], abs=TOLERANCE)
    checkpoint.save(gradient, param_specs(config), tmp_path / "gradient", base=directory)
    ours = load_file(tmp_path / "gradient" / "model.safetensors")
    theirs = {short_name(name): value for name, value in stored["grads"].items()}
    assert {short_name(name) for name in ours} == set(theirs)
    for name, array in ours.items():
        norm, projection = theirs[short_name(name)]
        if array.ndim == 3:  # of experts: transformers 5 holds them the other way round than the hub's files
            array = np.swapaxes(array, 1, 2)
        flat = array.astype(np.float64).reshape(-1)
        found = [np.linalg.norm(flat), flat @ np.cos(np.arange(flat.size))]
        np.testing.assert_allclose(
            found, [norm, projection], rtol=0, atol=TOLERANCE * norm + 1e-7, err_msg=name
        )
