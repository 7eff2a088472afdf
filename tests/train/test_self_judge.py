"""The policy's verdict on its own responses: what it is shown, and what becomes of what it says."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_image, shallow

from mmrl.config import SelfJudgeConfig
from mmrl.kernels.vocab import BANNED
from mmrl.mesh import make_mesh
from mmrl.models.family import param_specs
from mmrl.open import OpenModel
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train import self_judge
from mmrl.train.metrics import CompileCounter
from mmrl.train.rollouts import RolloutContext, prompt_keys
from mmrl.train.self_judge import judge_responses
from mmrl.train.stop_signal import StopSignal
from mmrl.types import StopReason

QUESTION = "Is it right? \\boxed{yes} or \\boxed{no}."
BUCKETS = (256, 512)


@pytest.fixture(scope="module")
def model(policy):
    """The fixture model, small enough to be compiled in no time."""
    config = shallow(policy.config)
    mesh = make_mesh({"replica": 1, "data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return OpenModel(policy.directory, policy.processor, config, param_specs(config), mesh)


@pytest.fixture(scope="module")
def config(smoke_config):
    data = replace(smoke_config.data, prompt_buckets=BUCKETS, patch_buckets=(0, 64), overlong="drop")
    reward = replace(smoke_config.reward, self_judge=SelfJudgeConfig(question=QUESTION, max_tokens=4))
    episode = replace(smoke_config.episode, tools=("zoom",))
    return replace(smoke_config, data=data, reward=reward, episode=episode)


def image(seed):
    buffer = io.BytesIO()
    noise_image(56, 56, seed).save(buffer, "PNG")
    return buffer.getvalue()


def samples(count):
    return [Sample(f"test:{k}", f"<image>How many {k}?", "3", images=(image(k),)) for k in range(count)]


def judged(model, config, rows, texts, *, keep=None, params=None, policy=None, stop=None, **more):
    keep = np.ones((len(rows), len(texts[0])), bool) if keep is None else keep
    context = RolloutContext(config, model, policy or model.policy(1.0), stop=stop or StopSignal())
    params = {} if params is None else params
    return judge_responses(context, params, rows, texts, keep, prompt_keys(0, 9, 1, len(rows)), **more)


@pytest.fixture
def played(model, monkeypatch):
    """What was asked, as text, by (number of the batch, place); verdicts are taken from the dict ``says``."""
    asked, says = [], {}

    def play(context, params, questions, keys, *, group, sampling):
        assert (group, sampling.max_tokens, sampling.temperature) == (1, 4, 0.0)
        assert context.config.episode.tools == ()
        prompts, keep = questions.prompts, questions.keep
        assert len(questions.samples) == len(keys) == len(keep) == len(prompts.tokens)
        batch = {}
        for place in np.flatnonzero(keep):
            tokens = prompts.tokens[place][prompts.mask[place]]
            batch[int(place)] = text = model.processor.tokenizer.decode(tokens)
            said = next((verdict for part, verdict in says.items() if part in text), "\\boxed{yes}")
            yield Trajectory(
                int(place),
                0,
                np.arange(2),
                np.ones(2, bool),
                np.zeros(2),
                np.zeros(2),
                None,
                StopReason.EOS,
                said,
            )
        asked.append((prompts, batch))

    monkeypatch.setattr(self_judge, "play", play)
    return asked, says


def test_each_response_is_shown_with_its_problem_and_image(played, model, config):
    asked, _ = played
    texts = [["one", "two"], ["three", "four"], ["five", "six"]]
    rows = [*samples(2), Sample("test:2", "No image?", "3")]
    found = judged(model, config, rows, texts)
    np.testing.assert_array_equal(found, np.ones((3, 2)))
    assert [len(batch) for _, batch in asked] == [3, 3]
    shown = [text for _, batch in asked for text in batch.values()]
    for row, group in zip(rows, texts, strict=True):
        for response in group:
            (text,) = [one for one in shown if f"===\n{response}\n===" in one]
            assert row.problem.removeprefix("<image>") in text
            assert text.count("<|image_pad|>") == 4 * len(row.images)
            assert text.endswith(f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    assert {prompts.tokens.shape for prompts, _ in asked} == {(3, 256)}


def test_verdicts_find_their_responses(played, model, config):
    _, says = played
    says.update({"=\ngood": "\\boxed{yes}", "=\nbad": "So \\boxed{yes}? No: \\boxed{no}"})
    says.update({"=\nodd": "It is.", "=\nmute": "\\boxed{}"})
    texts = [["good a", "bad b", "odd c"], ["mute d", "good e", " "], ["", "bad f", "good g" * 3]]
    keep = np.ones((3, 3), bool)
    keep[2, 2] = False
    found = judged(model, config, samples(3), texts, keep=keep)
    np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0], [0, 0, np.nan]])


def test_a_response_that_does_not_fit_is_not_judged(played, model, config):
    asked, _ = played
    texts = [["short", "long " * 50], ["very long " * 1000, "short too"]]
    found = judged(model, config, samples(2), texts)
    np.testing.assert_array_equal(found, [[1, 1], [np.nan, 1]])
    assert [prompts.tokens.shape for prompts, _ in asked] == [(2, 256), (2, 512)]


def test_a_response_cannot_end_its_quotation(played, model, config):
    """Nothing that it spells out is a special token of the question, or an image of it."""
    asked, _ = played
    tokenizer = model.processor.tokenizer
    special = [str(one) for one in tokenizer.added_tokens_decoder.values() if one.special]
    assert {"<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|endoftext|>"} <= set(special)
    texts = [[f"a{token}b" * 2 for token in [*special, "<<|im_end|>|im_end|>", "<image>"]]]
    judged(model, config, samples(1), [[*texts[0], "plain"]])

    def counts(prompts):
        ids = prompts.tokens[0][prompts.mask[0]]
        return {token: int((ids == tokenizer.convert_tokens_to_ids(token)).sum()) for token in special}

    plain = next(prompts for prompts, batch in asked if "plain" in batch[0])
    assert len(asked) == len(texts[0]) + 1
    assert all(counts(prompts) == counts(plain) for prompts, _ in asked)
    assert any("a<|im_end|>b" in batch[0] for _, batch in asked)


def test_a_notice_leaves_the_rest_unjudged(model, config):
    found = judged(model, config, samples(2), [["a"], ["b"]], stop=StopSignal("SIGTERM"))
    assert np.isnan(found).all()


@pytest.mark.exhaustive
def test_the_policy_itself_judges_and_compiles_once(policy, model, config):
    """By chance among "yes", "no" and "?"; neither company nor another step of the run changes a verdict."""
    tokenizer = model.processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "c", "<|im_end|>"])
    words = dict(zip(ids, ["\\boxed{yes}", "\\boxed{no}", "?", ""], strict=True))

    class Spoken:
        """The tokenizer of a policy that knows three words."""

        def decode(self, tokens, **_):
            return " ".join(words[int(token)] for token in tokens)

        def __call__(self, *arguments, **options):
            return tokenizer(*arguments, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    shapes = jax.tree.map(
        lambda param: param.shape, model.description, is_leaf=lambda leaf: hasattr(leaf, "shape")
    )
    params = jax.tree.map(lambda leaf, shape: leaf[: shape[0]], policy.params, shapes)
    few = model.policy(1.0)
    model = replace(model, processor=replace(model.processor, tokenizer=Spoken()))
    few = replace(few, bias=jnp.full_like(few.bias, BANNED).at[jnp.array(ids)].set(0))
    acting = decoding_weights(params, model.config)
    rows = [replace(sample, problem="How many?", images=()) for sample in samples(2)]
    texts = [[f"response {b} {g}" * (1 + g) for g in range(4)] for b in range(2)]

    def step(texts, keep=None):
        return judged(model, config, rows, texts, keep=keep, params=acting, policy=few, temperature=5.0)

    first = step(texts)
    assert set(np.unique(first)) == {0.0, 1.0}
    with CompileCounter() as compiles:
        np.testing.assert_array_equal(step(texts), first)
        few_kept = np.arange(8).reshape(2, 4) % 2 == 0
        np.testing.assert_array_equal(step(texts, few_kept), np.where(few_kept, first, np.nan))
        step([[text[::-1] for text in group] for group in texts])
    assert compiles.count == 0
