"""Greedy responses, and where they end, against transformers: its stored tokens, and live where torch is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmrl.models.prompts import collate, encode
from mmrl.rollout.generate import generate
from mmrl.rollout.sampling import Sampling
from mmrl.types import StopReason

CASES = ("text_only", "one_square", "two_images")  # no image, one, two
COUNT = 32


@pytest.fixture(scope="module")
def stored(policy):
    return {name: np.load(policy.directory / "ref" / f"{name}.npz") for name in CASES}


@pytest.fixture(scope="module")
def respond(policy, fixtures_dir):
    """Greedy responses to the three cases in one batch, two at once: tokens and reason of each."""
    index = json.loads((policy.directory / "ref" / "index.json").read_text())
    processor = policy.processor

    def encoded(name):
        images = [Image.open(fixtures_dir / "images" / f"{image}.png") for image in index[name]["images"]]
        return encode(processor, index[name]["conversations"][0], images)

    rows = [encoded(name) for name in CASES]
    patches = -(-max(len(row.patches) for row in rows) // processor.slots) * processor.slots
    prompts = collate(rows, processor, max(len(row.tokens) for row in rows), patches)

    def run(**stops):
        made = generate(
            policy.params,
            policy.config,
            prompts,
            jax.random.split(jax.random.key(0), len(CASES)),
            group=1,
            sampling=Sampling(max_tokens=COUNT, temperature=0, **stops),
            bias=jnp.zeros(policy.config.vocabulary),
            text=processor.tokenizer.decode,
            prompt_slots=2,
        )
        lengths = made.mask.sum(-1)[:, 0]
        return {
            name: (made.tokens[b, 0, : lengths[b]].tolist(), int(made.stop[b, 0]))
            for b, name in enumerate(CASES)
        }

    return run


def stop_ids(stored):
    """An id that ends each case early, late, or at the very first token."""
    found = {name: stored[name]["greedy_ids"][0].tolist() for name in CASES}
    return (found["text_only"][20], found["one_square"][0], found["two_images"][8])


def stop_strings(policy, stored):
    """A string of two or three tokens out of each case."""
    pairs = zip(CASES, (25, 5, 13), (28, 8, 15), strict=True)
    decode = policy.processor.tokenizer.decode
    return tuple(decode(stored[name]["greedy_ids"][0][start:end]) for name, start, end in pairs)


def test_all_tokens(stored, respond):
    for name, (tokens, stop) in respond().items():
        assert tokens == stored[name]["greedy_ids"][0].tolist()
        assert stop == StopReason.LENGTH


def test_stop_ids(stored, respond):
    ids = stop_ids(stored)
    ends = set()
    for name, (tokens, stop) in respond(stop_ids=ids).items():
        free = stored[name]["greedy_ids"][0].tolist()
        end = next((n + 1 for n, token in enumerate(free) if token in ids), COUNT)
        assert tokens == free[:end]
        assert stop == StopReason.EOS
        ends.add(end)
    assert 1 in ends
    assert len(ends) == 3


def test_stop_strings(policy, stored, respond):
    strings = stop_strings(policy, stored)
    for name, (tokens, stop) in respond(stop_strings=strings).items():
        free = stored[name]["greedy_ids"][0].tolist()
        texts = [policy.processor.tokenizer.decode(free[:n]) for n in range(COUNT + 1)]
        end = next(n for n, text in enumerate(texts) if any(string in text for string in strings))
        assert 1 < end < COUNT
        assert (tokens, stop) == (free[:end], StopReason.STRING)


@pytest.mark.parametrize("kind", ["none", "ids", "strings"])
def test_live(policy, stored, respond, kind):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        policy.directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    theirs.generation_config = transformers.GenerationConfig(pad_token_id=policy.processor.pad)
    stops = {
        "none": {},
        "ids": {"stop_ids": stop_ids(stored)},
        "strings": {"stop_strings": stop_strings(policy, stored)},
    }[kind]
    options = {
        "none": {},
        "ids": {"eos_token_id": list(stop_ids(stored))},
        "strings": {
            "stop_strings": list(stop_strings(policy, stored)),
            "tokenizer": policy.processor.tokenizer,
        },
    }[kind]
    for name, (tokens, _) in respond(**stops).items():
        given = {
            key: torch.tensor(stored[name][key])
            for key in ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
            if key in stored[name]
        }
        with torch.no_grad():
            made = theirs.generate(**given, max_new_tokens=COUNT, do_sample=False, **options)
        assert tokens == made[0, given["input_ids"].shape[1] :].tolist()
