"""Batches to imitate: solutions as responses, turns replayed."""

import numpy as np
import pytest

from mmrl.data.pipeline import PromptFormat, solution_tokens
from mmrl.models.processor import load_processor
from mmrl.rollout.episodes import single_turn, with_tools
from mmrl.rollout.replay import at_once, replay
from mmrl.rollout.sampling import Sampling
from mmrl.train.sft import demonstrations
from mmrl.types import StopReason

FORM = PromptFormat(prompt_buckets=(64, 128), patch_buckets=(64, 256))
ZOOM = ["<zoom>0 0 50 100</zoom>", "It is 7."]


def one_turn(sample):
    return single_turn(Sampling(max_tokens=64))


@pytest.fixture(scope="module")
def processor(fixtures_dir):
    return load_processor(fixtures_dir / "qwen2_5_vl")


def test_responses(make_source, processor):
    texts = ["two", "a longer answer of several words", "word " * 80]
    source = make_source(["A", "<image>B", "C"], solution=texts)
    batches = demonstrations(source, processor, FORM, episode=one_turn, max_tokens=32, seed=0, batch_size=3)
    batch = next(batches)
    responses = batch.responses
    assert responses.tokens.shape == responses.mask.shape == (3, 1, 32)
    assert responses.observed is None
    written = responses.mask.any(axis=(1, 2))
    assert (responses.stop[written] == StopReason.EOS).all()
    for k, sample in enumerate(batch.samples):
        ids = responses.tokens[k, 0][responses.mask[k, 0]]
        assert written[k] == (sample.solution in texts[:2])
        if written[k]:
            assert ids[-1] == processor.eos
            assert processor.tokenizer.decode(ids[:-1]) == sample.solution
    assert written.sum() == 2
    assert [one.id for one in batch.skipped] == ["rows.jsonl:2"]
    want = next(batches)
    batches.seek(1)
    np.testing.assert_array_equal(next(batches).responses.tokens, want.responses.tokens)


def zooming(source, processor, form=FORM, **options):
    """Batches of one row, in which an image may be looked at."""

    def episode(sample):
        sampling = Sampling(max_tokens=64)
        return with_tools(processor, sample.images, sampling, observation_tokens=64, observation_patches=64)

    settings = {"max_tokens": 96, "observation_patches": 64, "seed": 0, "batch_size": 1, **options}
    return demonstrations(source, processor, form, episode=episode, **settings)


def test_turns_go_before_the_solution(make_source, processor):
    source = make_source(["<image>A", "<image>B"], solution=["two", "two"], turns=[ZOOM, []])
    batches = zooming(source, processor, batch_size=2)
    batch = next(batches)
    responses, order = batch.responses, [sample.answer for sample in batch.samples]
    played, plain = order.index("0"), order.index("1")
    episode = with_tools(processor, source[0].images, Sampling(max_tokens=64))
    ((_, want),) = replay(episode, ZOOM, processor, at_once)
    count, slots = len(want.tokens), len(want.patches)
    seen = responses.observed
    np.testing.assert_array_equal(responses.tokens[played, 0, :count], want.tokens)
    np.testing.assert_array_equal(responses.mask[played, 0, :count], want.written)
    np.testing.assert_array_equal(seen.position[played, 0, :count], want.position)
    np.testing.assert_array_equal(seen.image_token[played, 0, :count], want.image_token)
    np.testing.assert_array_equal(seen.images.patches[played, 0, :slots], want.patches)
    np.testing.assert_array_equal(seen.images.image[played, 0, :slots], want.patch_image)
    assert (seen.real.sum(axis=-1)[played, 0], slots > 0) == (count, True)
    ids = responses.tokens[plain, 0][responses.mask[plain, 0]]
    np.testing.assert_array_equal(ids, solution_tokens(source[1], processor))
    np.testing.assert_array_equal(seen.real[plain], responses.mask[plain])
    assert (seen.images.image[plain] == -1).all()
    assert batch.facts[played]["images"] == 1.0
    assert batch.facts[plain] == {}


def test_turns_that_are_no_episode(make_source, processor):
    plain = demonstrations(
        make_source(["<image>A"], turns=[ZOOM]),
        processor,
        FORM,
        episode=one_turn,
        max_tokens=96,
        seed=0,
        batch_size=1,
    )
    (skipped,) = next(plain).skipped
    assert "the episode ends after 1 of the script's 2 turns" in skipped.reason
    (skipped,) = next(zooming(make_source(["<image>A"], turns=[ZOOM[:1]]), processor)).skipped
    assert "the episode goes on after the 1 turns" in skipped.reason


@pytest.mark.parametrize(("turn", "most"), [("word " * 80, 200), ("word " * 30, 40)])
def test_overlong_turns_skip_their_row(make_source, processor, turn, most):
    """A turn longer than a turn may be, or turns whose episode is longer than a response may be."""
    source = make_source(["<image>A", "<image>B"], turns=[[ZOOM[0], turn], ["Yes."]])
    batch = next(zooming(source, processor, max_tokens=most, batch_size=2))
    assert [one.id for one in batch.skipped] == ["rows.jsonl:0"]
    order = [sample.id for sample in batch.samples]
    assert batch.responses.mask.any(axis=(1, 2)).tolist() == [name == "rows.jsonl:1" for name in order]
    strict = PromptFormat((64,), (64,), overlong="error")
    with pytest.raises(ValueError, match=r"rows\.jsonl:0"):
        next(zooming(make_source(["<image>A"], turns=[[ZOOM[0], turn]]), processor, strict, max_tokens=most))
