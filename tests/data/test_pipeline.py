"""Batches: order, state, dropping, padding; and the look through a data set before a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.data.pipeline import (
    PromptFormat,
    check_demonstration,
    evaluation,
    prompts,
    solution_tokens,
    solutions,
)
from mmrl.data.sources import read
from mmrl.models.processor import load_processor
from mmrl.models.prompts import encode, messages
from mmrl.rollout.episodes import single_turn, with_tools
from mmrl.rollout.replay import at_once, replay
from mmrl.rollout.sampling import Sampling
from mmrl.types import StopReason

FORM = PromptFormat(prompt_buckets=(64, 128), patch_buckets=(64, 256))
LONG = "<image>" + "word and more words " * 60
ZOOM = ["<zoom>0 0 50 100</zoom>", "It is 7."]


def one_turn(sample):
    return single_turn(Sampling(max_tokens=64))


@pytest.fixture(scope="module")
def processor():
    return load_processor(Path(__file__).parent / "fixtures" / "qwen2_5_vl")


@pytest.fixture
def make(tmp_path):
    """A source of the given problems, each "<image>" a small picture of its own."""

    def build(problems, **columns):
        lines = []
        for k, problem in enumerate(problems):
            names = []
            for j in range(problem.count("<image>")):
                names.append(f"{k}-{j}.png")
                Image.new("RGB", (60 + k, 50), (k, j, 0)).save(tmp_path / names[-1])
            row = {"problem": problem, "answer": str(k), "images": names}
            lines.append(json.dumps(row | {name: cells[k] for name, cells in columns.items()}))
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        return read(tmp_path / "rows.jsonl")

    return build


def _answers(batches, count):
    return [[sample.answer for sample in next(batches).samples] for _ in range(count)]


def test_rows_are_encoded_as_alone(make, processor):
    source = make(["<image>One", "Two", "<image><image>Three"])
    batch = next(prompts(source, processor, FORM, seed=0, batch_size=3, shuffle=False))
    assert [s.answer for s in batch.samples] == ["0", "1", "2"]
    assert batch.keep.all()
    assert batch.dropped == 0
    for b in range(3):
        alone = encode(processor, messages(source[b].problem), source[b].images)
        size = len(alone.tokens)
        np.testing.assert_array_equal(batch.prompts.tokens[b, :size], alone.tokens)
        np.testing.assert_array_equal(batch.prompts.mask[b], np.arange(batch.prompts.mask.shape[1]) < size)
        slots = len(alone.patches)
        np.testing.assert_array_equal(batch.prompts.images.patches[b, :slots], alone.patches)
        assert not batch.prompts.images.patches[b, slots:].any()
        assert (batch.prompts.images.image[b, slots:] == -1).all()
        assert (batch.prompts.image_token[b, size:] == -1).all()


def test_smallest_buckets_that_fit(make, processor):
    source = make(["One", "<image>" * 5 + "word and more words " * 8])
    batches = prompts(source, processor, FORM, seed=0, batch_size=1, shuffle=False)
    shapes = [
        (b.prompts.tokens.shape[1], b.prompts.images.image.shape[1]) for b in (next(batches), next(batches))
    ]
    assert shapes == [(64, 64), (128, 256)]


def test_every_epoch_holds_every_row_in_its_own_order(make, processor):
    source = make([f"Row {k}" for k in range(6)])
    batches = _answers(prompts(source, processor, FORM, seed=1, batch_size=4), 6)
    rows = [answer for batch in batches for answer in batch]
    epochs = [rows[k : k + 6] for k in range(0, 24, 6)]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_is_a_function_of_the_seed(make, processor):
    source = make([f"Row {k}" for k in range(8)])
    orders = [_answers(prompts(source, processor, FORM, seed=s, batch_size=4), 4) for s in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_short_source_fills_a_batch_by_repeating(make, processor):
    batch = next(prompts(make(["Only"]), processor, FORM, seed=0, batch_size=3))
    assert [s.answer for s in batch.samples] == ["0"] * 3


@pytest.mark.parametrize("before", [0, 1, 2, 3, 5])
def test_restored_state_gives_the_following_batches(make, processor, before):
    """6 rows by 4: the third batch ends an epoch, the others do not; rows are dropped on the way."""
    source = make(["<image>A", "B", LONG, "C", "D", "<image>E"])
    new = lambda: prompts(source, processor, FORM, seed=5, batch_size=4)  # noqa: E731
    first = new()
    for _ in range(before):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = [next(first) for _ in range(4)]
    second = new()
    next(second)
    second.set_state(state)
    for want in expected:
        got = next(second)
        assert got.samples == want.samples
        assert got.dropped == want.dropped
        np.testing.assert_array_equal(got.prompts.tokens, want.prompts.tokens)
        np.testing.assert_array_equal(got.prompts.images.patches, want.prompts.images.patches)


def test_overlong_prompts_are_dropped_and_counted(make, processor):
    source = make(["A", LONG, "B", LONG])
    batches = prompts(source, processor, FORM, seed=0, batch_size=2, shuffle=False)
    first, second = next(batches), next(batches)
    assert [s.answer for s in first.samples] == ["0", "2"]
    assert (first.dropped, second.dropped) == (1, 2)


def test_overlong_error(make, processor):
    form = PromptFormat(FORM.prompt_buckets, FORM.patch_buckets, overlong="error")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the prompt has \d+ tokens"):
        next(prompts(make(["A", LONG]), processor, form, seed=0, batch_size=2, shuffle=False))


def test_overlong_resize(make, processor):
    source = make(["<image><image><image>"])
    form = PromptFormat((38,), (48,), overlong="resize")
    batch = next(prompts(source, processor, form, seed=0, batch_size=1))
    assert (batch.prompts.image_token[0] >= 0).sum() == 3
    form = PromptFormat((38,), (48,))
    with pytest.raises(ValueError, match="all 1 prompts are over budget"):
        next(prompts(source, processor, form, seed=0, batch_size=1))


def test_every_prompt_over_budget(make, processor):
    with pytest.raises(ValueError, match="all 2 prompts are over budget"):
        next(prompts(make([LONG, LONG]), processor, FORM, seed=0, batch_size=2))
    with pytest.raises(ValueError, match="all 2 prompts are over budget"):
        list(evaluation(make([LONG, LONG]), processor, FORM, batch_size=2))


def test_evaluation_sees_every_row_once(make, processor):
    source = make(["A", "B", LONG, "C", "D", "E"])
    batches = list(evaluation(source, processor, FORM, batch_size=3))
    assert [[s.answer for s in b.samples] for b in batches] == [["0", "1", "3"], ["4", "5", "4"]]
    assert [b.keep.tolist() for b in batches] == [[True] * 3, [True, True, False]]
    assert [b.dropped for b in batches] == [1, 0]
    assert batches[1].prompts.tokens.shape[0] == 3


def test_evaluation_smaller_than_a_batch(make, processor):
    (batch,) = evaluation(make(["A"]), processor, FORM, batch_size=3)
    assert batch.keep.tolist() == [True, False, False]
    assert [s.answer for s in batch.samples] == ["0"] * 3


def test_solutions(make, processor):
    texts = ["two", "a longer answer of several words", "word " * 80]
    source = make(["A", "<image>B", "C"], solution=texts)
    batches = solutions(
        source, processor, FORM, episode=one_turn, response_buckets=(32, 64), seed=0, batch_size=2
    )
    batch = next(batches)
    responses = batch.responses
    assert responses.tokens.shape == responses.mask.shape == (2, 1, 32)
    assert responses.observed is None
    assert responses.valid.all()
    assert (responses.stop == StopReason.EOS).all()
    for k, sample in enumerate(batch.samples):
        ids = responses.tokens[k, 0][responses.mask[k, 0]]
        assert ids[-1] == processor.eos
        assert processor.tokenizer.decode(ids[:-1]) == sample.solution
        assert sample.solution in texts[:2]
    assert sum(next(batches).dropped for _ in range(3)) > 0
    state = batches.get_state()
    want = next(batches)
    batches.set_state(state)
    np.testing.assert_array_equal(next(batches).responses.tokens, want.responses.tokens)


def zooming(source, processor, form=FORM, **options):
    """Batches of one row, in which an image may be looked at."""

    def episode(sample):
        sampling = Sampling(max_tokens=64)
        return with_tools(processor, sample.images, sampling, observation_tokens=64, observation_patches=64)

    settings = {"response_buckets": (96,), "observation_patches": 64, "seed": 0, "batch_size": 1, **options}
    return solutions(source, processor, form, episode=episode, **settings)


def test_turns_go_before_the_solution(make, processor):
    source = make(["<image>A", "<image>B"], solution=["two", "two"], turns=[ZOOM, []])
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


def test_turns_that_are_no_episode(make, processor):
    with pytest.raises(ValueError, match=r"rows\.jsonl:0: the episode ends after 1 of the script's 2 turns"):
        next(
            solutions(
                make(["<image>A"], turns=[ZOOM]),
                processor,
                FORM,
                episode=one_turn,
                response_buckets=(96,),
                seed=0,
                batch_size=1,
            )
        )
    with pytest.raises(ValueError, match=r"rows\.jsonl:0: the episode goes on after the 1 turns"):
        next(zooming(make(["<image>A"], turns=[ZOOM[:1]]), processor))


@pytest.mark.parametrize(("turn", "most"), [("word " * 80, 200), ("word " * 30, 40)])
def test_overlong_turns_drop_their_row(make, processor, turn, most):
    """A turn longer than a turn may be, or turns whose episode is longer than the bucket."""
    source = make(["<image>A", "<image>B"], turns=[[ZOOM[0], turn], ["Yes."]])
    batches = zooming(source, processor, response_buckets=(most,))
    drawn = [next(batches) for _ in range(4)]
    assert {batch.samples[0].answer for batch in drawn} == {"1"}
    assert sum(batch.dropped for batch in drawn) > 0
    strict = PromptFormat((64,), (64,), overlong="error")
    with pytest.raises(ValueError, match=r"rows\.jsonl:0"):
        next(
            zooming(make(["<image>A"], turns=[[ZOOM[0], turn]]), processor, strict, response_buckets=(most,))
        )


def test_solution_is_needed(make, processor):
    source = make(["A", "B"], solution=[None, "<|image_pad|>"])
    with pytest.raises(ValueError, match=r"rows\.jsonl:0: no solution"):
        solution_tokens(source[0], processor)
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the solution holds vision tokens"):
        solution_tokens(source[1], processor)
    source = make(["A", "B"], turns=[["one", "two"], ["one", "<|image_pad|>"]])
    check_demonstration(source[0], processor)
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: a turn holds vision tokens"):
        check_demonstration(source[1], processor)


def test_broken_row_is_named(make, processor, tmp_path):
    source = make(["A", "<image>B"])
    (tmp_path / "1-0.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1, image 0: cannot read"):
        next(prompts(source, processor, FORM, seed=0, batch_size=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_buckets": ()}, "prompt_buckets is empty"),
        ({"patch_buckets": ()}, "patch_buckets is empty"),
        ({"overlong": "truncate"}, "overlong is 'truncate'"),
    ],
)
def test_impossible_format(change, message):
    with pytest.raises(ValueError, match=message):
        PromptFormat(**({"prompt_buckets": (64,), "patch_buckets": (64,)} | change))
