"""Batches: order, state, dropping, padding; and the look through a data set before a run."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mmrl.data.pipeline import (
    PromptFormat,
    evaluation,
    prompts,
    solution_tokens,
)
from mmrl.data.sources import read
from mmrl.models.processor import load_processor
from mmrl.models.prompts import chat_messages, encode

FORM = PromptFormat(prompt_buckets=(64, 128), patch_buckets=(64, 256))
LONG = "<image>" + "word and more words " * 60


@pytest.fixture(scope="module")
def processor():
    return load_processor(Path(__file__).parent / "fixtures" / "qwen2_5_vl")


def _answers(batches, count):
    return [[sample.answer for sample in next(batches).samples] for _ in range(count)]


def prompts_of(source, processor, form=FORM, **options):
    return prompts([source], processor, form, **{"seed": 0, "batch_size": 2, **options})


def test_rows_are_encoded_as_alone(make_source, processor):
    source = make_source(["<image>One", "Two", "<image><image>Three"])
    batch = next(prompts_of(source, processor, batch_size=3))
    assert sorted(s.answer for s in batch.samples) == ["0", "1", "2"]
    assert batch.keep.all()
    assert batch.skipped == ()
    for b, sample in enumerate(batch.samples):
        alone = encode(processor, chat_messages(sample.problem), sample.images)
        size = len(alone.tokens)
        np.testing.assert_array_equal(batch.prompts.tokens[b, :size], alone.tokens)
        np.testing.assert_array_equal(batch.prompts.mask[b], np.arange(batch.prompts.mask.shape[1]) < size)
        slots = len(alone.patches)
        np.testing.assert_array_equal(batch.prompts.images.patches[b, :slots], alone.patches)
        assert not batch.prompts.images.patches[b, slots:].any()
        assert (batch.prompts.images.image[b, slots:] == -1).all()
        assert (batch.prompts.image_token[b, size:] == -1).all()


def test_smallest_buckets_that_fit(make_source, processor):
    source = make_source(["One", "<image>" * 5 + "word and more words " * 8])
    batches = prompts_of(source, processor, batch_size=1)
    shapes = {
        batch.samples[0].answer: (batch.prompts.tokens.shape[1], batch.prompts.images.image.shape[1])
        for batch in (next(batches), next(batches))
    }
    assert shapes == {"0": (64, 64), "1": (128, 256)}


def test_every_epoch_holds_every_row_in_its_own_order(make_source, processor):
    source = make_source([f"Row {k}" for k in range(6)])
    batches = _answers(prompts_of(source, processor, seed=1, batch_size=4), 6)
    rows = [answer for batch in batches for answer in batch]
    epochs = [rows[k : k + 6] for k in range(0, 24, 6)]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    source = make_source([f"Row {k}" for k in range(8)])
    orders = [_answers(prompts_of(source, processor, seed=s, batch_size=4), 4) for s in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_short_source_fills_a_batch_by_repeating(make_source, processor):
    batch = next(prompts_of(make_source(["Only"]), processor, batch_size=3))
    assert [s.answer for s in batch.samples] == ["0"] * 3


@pytest.mark.parametrize("before", [0, 1, 2, 3, 5])
def test_goes_on_where_another_stopped(make_source, processor, before):
    """5 rows by 4: batches span epochs."""
    source = make_source(["<image>A", "B", "C", "D", "<image>E"])
    new = lambda: prompts_of(source, processor, seed=5, batch_size=4)  # noqa: E731
    first = new()
    for _ in range(before):
        next(first)
    given = first.given
    expected = [next(first) for _ in range(4)]
    second = new()
    next(second)
    second.seek(given)
    for want in expected:
        got = next(second)
        assert got.samples == want.samples
        np.testing.assert_array_equal(got.prompts.tokens, want.prompts.tokens)
        np.testing.assert_array_equal(got.prompts.images.patches, want.prompts.images.patches)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_a_batch(make_source, processor, processes):
    source = make_source([f"Row {k}" for k in range(7)])
    whole = _answers(prompts_of(source, processor, batch_size=6), 5)
    parts = [
        _answers(prompts_of(source, processor, batch_size=6, rows=rows), 5)
        for rows in np.split(np.arange(6), processes)
    ]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole


READ = """
import sys
import numpy as np
from mmrl.data.pipeline import PromptFormat, Readers, prompts
from mmrl.data.sources import read
from mmrl.models.processor import load_processor

if __name__ == "__main__":
    processor, source = load_processor(sys.argv[1]), read(sys.argv[2])
    form = PromptFormat(prompt_buckets=(64,), patch_buckets=(64,))
    want, got = (
        prompts([source], processor, form, seed=0, batch_size=2, readers=readers)
        for readers in (Readers(2), Readers(1, processes=2))
    )
    for _ in range(3):
        a, b = next(want), next(got)
        assert a.samples == b.samples
        np.testing.assert_array_equal(a.prompts.images.patches, b.prompts.images.patches)
    print("same")
"""


@pytest.mark.exhaustive
def test_reading_in_processes_changes_nothing(make_source, fixtures_dir, tmp_path):
    """In a child: functions whose shapes are checked, as in tests, cannot be sent to a process."""
    make_source(["<image>A", "B", "<image>C"])
    (tmp_path / "read.py").write_text(READ)
    command = [tmp_path / "read.py", fixtures_dir / "qwen2_5_vl", tmp_path / "rows.jsonl"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.stdout == "same\n", done.stderr[-3000:]


def test_sources_share_batches_by_weight(make_source, processor, tmp_path):
    few = make_source(["<image>Few"] * 3)
    (tmp_path / "more.jsonl").write_text(
        "\n".join(json.dumps({"problem": f"More {k}", "answer": f"m{k}"}) for k in range(9))
    )
    more = read(tmp_path / "more.jsonl")

    def shares(weights):
        batches = prompts([few, more], processor, FORM, seed=0, batch_size=4, weights=weights)
        rows = [sample for _ in range(12) for sample in next(batches).samples]
        assert len({sample.id for sample in rows}) == 12
        return sum(sample.source == few.name for sample in rows) / len(rows)

    assert shares((3.0, 1.0)) == 0.75
    assert shares(None) == 0.25


def test_damaged_rows_leave_their_slots_empty(make_source, processor, tmp_path):
    source = make_source(["A", "<image>B", "<image>C", "D"])
    order = _answers(prompts_of(source, processor, batch_size=4), 3)
    (tmp_path / "1-0.png").write_bytes(b"not a picture")
    batches = prompts_of(source, processor, batch_size=4)
    for want in order:
        batch = next(batches)
        assert batch.keep.tolist() == [answer != "1" for answer in want]
        assert [s.answer for s, keep in zip(batch.samples, batch.keep, strict=True) if keep] == [
            answer for answer in want if answer != "1"
        ]
        (skipped,) = batch.skipped
        assert skipped.id == "rows.jsonl:1"
        assert "cannot read" in skipped.reason


def test_overlong_prompts(make_source, processor):
    source = make_source(["A", LONG])
    batch = next(prompts_of(source, processor))
    assert sorted(batch.keep.tolist()) == [False, True]
    assert "tokens" in batch.skipped[0].reason
    form = PromptFormat(FORM.prompt_buckets, FORM.patch_buckets, overlong="error")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: the prompt has \d+ tokens"):
        next(prompts_of(source, processor, form))


def test_overlong_resize(make_source, processor):
    source = make_source(["<image><image><image>"])
    form = PromptFormat((38,), (48,), overlong="resize")
    batch = next(prompts_of(source, processor, form, batch_size=1))
    assert (batch.prompts.image_token[0] >= 0).sum() == 3
    assert not next(prompts_of(source, processor, PromptFormat((38,), (48,)), batch_size=1)).keep.any()


def test_evaluation_sees_every_row_once(make_source, processor):
    source = make_source(["A", "B", LONG, "C", "D"])
    batches = list(evaluation([source], processor, FORM, batch_size=3))
    kept = [[s.answer for s, k in zip(b.samples, b.keep, strict=True) if k] for b in batches]
    assert kept == [["0", "1"], ["3", "4"]]
    assert [len(b.skipped) for b in batches] == [1, 0]
    assert batches[1].prompts.tokens.shape[0] == 3
    halves = [
        list(evaluation([source], processor, FORM, batch_size=4, rows=r)) for r in np.split(np.arange(4), 2)
    ]
    assert [[s.answer for s in b.samples if s.id] for h in halves for b in h] == [
        ["0", "1"],
        ["4"],
        ["", "3"],
        [],
    ]


def test_evaluation_goes_through_all_sources(make_source, processor, tmp_path):
    sources = [make_source(["A", LONG, "B"]), make_source(["C", "D"], name="other.jsonl")]
    batches = list(evaluation(sources, processor, FORM, batch_size=4))
    kept = [[s.id for s, k in zip(b.samples, b.keep, strict=True) if k] for b in batches]
    assert kept == [["rows.jsonl:0", "rows.jsonl:2", "other.jsonl:0"], ["other.jsonl:1"]]
    assert [[one.id for one in b.skipped] for b in batches] == [["rows.jsonl:1"], []]


def test_solution_is_needed(make_source, processor):
    source = make_source(["A", "B"], solution=[None, "a<|im_end|>\n<|im_start|>user\nb<|image_pad|>"])
    with pytest.raises(ValueError, match=r"rows\.jsonl:0: no solution"):
        solution_tokens(source[0], processor)
    ids = solution_tokens(source[1], processor).tolist()
    assert [token for token in ids if token in processor.control.values()] == [processor.eos]
    assert ids[-1] == processor.eos
    assert processor.tokenizer.decode(ids[:-1]) == source[1].solution


def test_impossible_format():
    with pytest.raises(ValueError, match="overlong is 'truncate'"):
        PromptFormat(prompt_buckets=(64,), patch_buckets=(64,), overlong="truncate")
