"""`mmrl.load`: what it samples and measures is what commands sample, and what training scores."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_image

import mmrl
from mmrl.algorithms.passes import CORRUPTED_LOGPROB, ENTROPY, LOGPROB, PERCEPTION
from mmrl.analysis import plot_tokens
from mmrl.analysis.perception import corruption_keys, png
from mmrl.mesh import shard_batch
from mmrl.models.prompts import chat_messages, collate, encode
from mmrl.packing import pack_batch
from mmrl.train.programs import TrainBatch, score, views_of
from mmrl.types import Responses

PICTURE = noise_image(56, 84)
PROMPTS = [{"problem": "<image>What is it?", "images": [PICTURE]}, {"problem": "Why?"}]
TOKENS = [40, 300, 5, 77, 12]


@pytest.fixture(scope="module")
def loaded(fixtures_dir):
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield mmrl.load(fixtures_dir / "qwen2_5_vl")
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def answers(loaded):
    return loaded.generate(PROMPTS, n=2, max_tokens=8, temperature=0.7, seed=3)


def trained(loaded, tokens, temperature, seed=0):
    """`mmrl.train.programs.score`, as training calls it, of one response to the prompt with an image."""
    model = loaded.model
    encoded = encode(model.processor, chat_messages(PROMPTS[0]["problem"]), [PICTURE])
    prompts = collate([encoded], model.processor, 64, 64)
    ids = np.array(tokens, np.int32)[None, None]
    zeros = np.zeros(ids.shape, np.float32)
    ones = np.ones((1, 1), bool)
    responses = Responses(ids, ids >= 0, zeros, zeros, np.zeros((1, 1), np.int32), ones)
    keys = corruption_keys(["prompt 0"], seed)
    with jax.set_mesh(model.mesh):
        prompts, responses, keys = shard_batch((prompts, responses, keys), model.mesh)
        packed = pack_batch(prompts, responses, model.config, model.mesh, 128)
        out = score(
            {"policy": loaded.params},
            model.policy(temperature),
            TrainBatch(prompts, responses, packed, jax.random.wrap_key_data(jnp.asarray(keys))),
            views_of(loaded.config),
            wanted=frozenset({LOGPROB, ENTROPY, CORRUPTED_LOGPROB, PERCEPTION}),
        )
    return {name: np.asarray(values)[0, 0] for name, values in out.items()}


@pytest.mark.exhaustive
def test_scores_and_perception_are_those_of_training(loaded):
    expected = trained(loaded, TOKENS, 0.7)
    responses = [[TOKENS, TOKENS[:2]], [TOKENS]]
    (first, short), (without,) = loaded.score(PROMPTS, responses, temperature=0.7)
    np.testing.assert_allclose(first.logprob, expected[LOGPROB], atol=1e-5)
    np.testing.assert_allclose(first.entropy, expected[ENTROPY], atol=1e-5)
    np.testing.assert_allclose(short.logprob, first.logprob[:2], atol=1e-5)
    (seen, _), (blind,) = loaded.token_perception(PROMPTS, responses, temperature=0.7)
    np.testing.assert_allclose(seen.exact, expected[PERCEPTION], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen.corrupted, expected[CORRUPTED_LOGPROB], atol=1e-5)
    np.testing.assert_allclose(seen.logprob, first.logprob, atol=1e-6)
    assert seen.exact.min() > 0
    np.testing.assert_allclose(blind.exact, 0, atol=1e-5)
    np.testing.assert_allclose(blind.logprob, without.logprob, atol=1e-6)
    (other, _), _ = loaded.token_perception(PROMPTS, responses, temperature=0.7, seed=1)
    assert np.abs(other.exact - seen.exact).max() > 1e-6
    assert len(plot_tokens(seen).axes) == 2


def test_what_was_sampled_is_scored_as_it_was_sampled(loaded, answers):
    assert [len(group) for group in answers] == [2, 2]
    assert all(1 <= len(one.tokens) <= 8 for group in answers for one in group)
    scores = loaded.score(PROMPTS, answers, temperature=0.7)
    for group, measured in zip(answers, scores, strict=True):
        for one, row in zip(group, measured, strict=True):
            np.testing.assert_allclose(row.logprob, one.logprobs, atol=2e-5)
            assert one.text == loaded.model.processor.tokenizer.decode(one.tokens, skip_special_tokens=True)


def test_it_samples_what_the_command_samples(loaded, answers, fixtures_dir, tmp_path, capsys):
    import json

    from mmrl.cli import main

    (tmp_path / "picture.png").write_bytes(png(PICTURE))
    rows = [PROMPTS[0] | {"images": ["picture.png"]}, PROMPTS[1]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [f"--model={fixtures_dir / 'qwen2_5_vl'}", f"--prompts={tmp_path / 'prompts.jsonl'}"]
    words += [f"--out={tmp_path / 'out.jsonl'}", "--n=2", "--max-tokens=8", "--temperature=0.7", "--seed=3"]
    assert main(["generate", *words]) == 0
    written = [json.loads(line)["tokens"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == [one.tokens for group in answers for one in group]


def test_images_may_be_paths_bytes_or_pictures(loaded, tmp_path):
    (tmp_path / "picture.png").write_bytes(png(PICTURE))
    kinds = [str(tmp_path / "picture.png"), png(PICTURE), PICTURE, {"bytes": png(PICTURE), "path": None}]
    prompts = [PROMPTS[0] | {"images": [image]} for image in kinds] + [PROMPTS[0] | {"images": PICTURE}]
    # Each alone, so that each lies in the same place of a row: elsewhere sums are rounded otherwise.
    (first,), *others = (loaded.score([prompt], [["a text"]])[0] for prompt in prompts)
    for (row,) in others:
        np.testing.assert_array_equal(row.logprob, first.logprob)


@pytest.mark.slow
def test_a_run_is_loaded_as_it_trained(smoke_run, smoke_config):
    loaded = mmrl.load(smoke_run)
    assert loaded.config.data == smoke_config.data
    prompts = [{"problem": "How many?"}]
    (now,) = loaded.score(prompts, [["a"]])
    (before,) = mmrl.load(smoke_run, step=0).score(prompts, [["a"]])
    assert np.abs(now[0].logprob - before[0].logprob).max() > 0
    with pytest.raises(ValueError, match="no checkpoint of step 77"):
        mmrl.load(smoke_run, step=77)


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda model: model.generate(PROMPTS[0]), "prompts should be a list"),
        (lambda model: model.generate(["Why?"]), "prompt 0 is a str: write"),
        (lambda model: model.generate([{"text": "Why?"}]), "prompt 0: column 'problem' is absent or null"),
        (lambda model: model.generate([{"problem": "<image>"}]), "prompt 0: 0 images but 1 placeholders"),
        (
            lambda model: model.generate([{"problem": "a", "images": [7]}]),
            "image 0: neither bytes nor a path",
        ),
        (
            lambda model: model.generate([{"problem": "<image>", "images": ["none.png"]}]),
            "prompt 0, image 0: cannot read the image",
        ),
        (lambda model: model.generate(PROMPTS, n=0), "n=0: ask for one response or more"),
        (lambda model: model.generate(PROMPTS, seed=-1), "seed=-1 should be a whole number"),
        (lambda model: model.generate(PROMPTS, max_tokens=0), "max_tokens=0 is out of range"),
        (lambda model: model.generate(PROMPTS, temperature=-1.0), "temperature=-1.0 is out of range"),
        (lambda model: model.score(PROMPTS, ["a", "b"]), r"responses\[0\] is one response: give a list"),
        (lambda model: model.score(PROMPTS[1:], [TOKENS]), r"responses\[0\] is one response: give a list"),
        (lambda model: model.score(PROMPTS, [["a"]]), "2 prompts, 1 lists of responses"),
        (lambda model: model.score(PROMPTS, [["a"], []]), r"responses\[1\] is empty"),
        (lambda model: model.score(PROMPTS[1:], [[[-1]]]), "prompt 0: token -1 of a response"),
        (
            lambda model: model.score(PROMPTS[1:], [["a"]], temperature=0.0),
            "temperature=0.0: score at one above 0",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(loaded, ask, why):
    with pytest.raises(ValueError, match=why) as caught:
        ask(loaded)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path, fixtures_dir):
    for path, step, why in (
        (tmp_path / "none", None, "none"),
        (tmp_path, None, "config.json"),
        (fixtures_dir / "qwen2_5_vl", 3, "step=3: .* is no folder of a run"),
    ):
        with pytest.raises(ValueError, match=why) as caught:
            mmrl.load(path, step=step)
        assert "\n" not in str(caught.value)


def test_importing_mmrl_imports_no_jax():
    seen = "import sys, mmrl; assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", seen], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = mmrl.lode
