"""The order of rows under a curriculum: who reads it, how far ahead and from where on changes nothing."""

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from mmrl.config import from_dict
from mmrl.data.curriculum import Mixture, state_from_json, state_to_json
from mmrl.data.pipeline import PromptFormat, Readers, prompts
from mmrl.data.sources import read
from mmrl.data.validation import Report
from mmrl.models.processor import load_processor
from mmrl.open import TrainingData, difficulties
from mmrl.sample import Sample
from mmrl.train.rl import open_sampler, source_weights

BATCH = 4
STEPS = 12
FORM = PromptFormat(prompt_buckets=(64,), patch_buckets=(16,))
ACTIVE = {"batches": 3, "rest": 2, "tiers": (0.2, 0.6, 0.2)}


@pytest.fixture(scope="module")
def processor(fixtures_dir):
    return load_processor(fixtures_dir / "qwen2_5_vl")


@pytest.fixture
def data(tmp_path):
    """Two data sets of 10 and 20 rows, of which some are left out."""
    for name, count in (("a", 10), ("b", 20)):
        rows = [{"problem": f"{name}{k}", "answer": f"{k}"} for k in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    a, b = (read(tmp_path / f"{name}.jsonl") for name in "ab")
    views = (a.choose([k for k in range(10) if k != 3]), b.choose(np.arange(20)[::-1]).choose(np.arange(18)))
    return TrainingData(
        views,
        (Mixture(0.0, (1.0, 1.0), by_rows=True),),
        None,
        rows=30,
        broken=(),
        lengths=np.zeros((0, 2), int),
    )


def sampler_of(data, curriculum=ACTIVE, **changes):
    values = {
        "seed": 3,
        "data": {"curriculum": curriculum, **changes},
        "rollout": {"prompts": BATCH},
        "train": {"steps": STEPS, "update_prompts": BATCH},
    }
    return open_sampler(from_dict(values), data)


def batches_of(sampler, processor, **options):
    settings = {"seed": 3, "batch_size": BATCH, "part": sampler.order_of, **options}
    return prompts(sampler.sources, processor, FORM, **settings)


def learn(sampler, ids):
    """As if the rows of ``a`` were always answered rightly, odd ones of ``b`` half of the time."""
    right = np.array([[1.0, 1.0] if name[0] == "a" else [int(name[-1]) % 2, 0.0] for name in ids])
    sampler.update(ids, right, np.ones(right.shape, bool))


def ids_of(batch):
    return [sample.id for sample in batch.samples]


def run(sampler, batches, count):
    """The rows of so many steps of one batch."""
    drawn = []
    for _ in range(count):
        drawn.append(ids_of(next(batches)))
        learn(sampler, drawn[-1])
        sampler.step += 1
    return drawn


@pytest.fixture
def whole(data, processor):
    sampler = sampler_of(data)
    return run(sampler, batches_of(sampler, processor), STEPS)


def test_rows_that_are_left_out_are_not_drawn_and_others_come_by_their_names(whole):
    names = set(chain(*whole))
    assert {"a.jsonl:3", "b.jsonl:0", "b.jsonl:1"} & names == set()
    assert {f"b.jsonl:{k}" for k in range(2, 20)} <= names
    assert all(len(batch) == BATCH for batch in whole)


def test_what_came_of_a_row_is_remembered_under_its_number_in_the_files(data, processor):
    sampler = sampler_of(data)
    drawn = set(chain(*run(sampler, batches_of(sampler, processor), 2)))
    memory = sampler.state.pass_rates
    visited = {f"a.jsonl:{k}" for k in np.flatnonzero(memory.visits[:10])}
    visited |= {f"b.jsonl:{k}" for k in np.flatnonzero(memory.visits[10:])}
    assert visited == drawn
    for name in drawn:
        source, row = name.split(":")
        number = int(row) + (10 if source[0] == "b" else 0)
        assert memory.rate[number] == (1.0 if source[0] == "a" else 0.5 * (int(row) % 2))


@pytest.mark.parametrize("threads", [1, 3])
def test_how_many_read_changes_nothing(data, processor, whole, threads):
    sampler = sampler_of(data)
    assert run(sampler, batches_of(sampler, processor, readers=Readers(threads)), STEPS) == whole


def test_processes_share_a_batch(data, processor, whole):
    """Each has a sampler of its own, and is told of all rows."""
    parts = []
    for mine in np.split(np.arange(BATCH), 2):
        sampler = sampler_of(data)
        batches = batches_of(sampler, processor, rows=mine)
        drawn = []
        for step, batch in enumerate(whole):
            drawn.append(ids_of(next(batches)))
            learn(sampler, batch)
            sampler.step = step + 1
        parts.append(drawn)
    assert [left + right for left, right in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("before", range(STEPS))
def test_goes_on_from_what_was_saved(data, processor, whole, before):
    """In the middle of a round, and between two."""
    sampler = sampler_of(data)
    batches = batches_of(sampler, processor)
    run(sampler, batches, before)
    saved = json.loads(json.dumps({"given": batches.given, "sampler": state_to_json(sampler.state)}))
    again = sampler_of(data)
    again.state, again.step = state_from_json(saved["sampler"], len(again.index)), before
    batches = batches_of(again, processor)
    batches.seek(saved["given"])
    assert run(again, batches, STEPS - before) == whole[before:]


def test_a_step_that_is_taken_back(data, processor, whole):
    """It had drawn into the next round, having learned from what it drew."""
    sampler = sampler_of(data)
    batches = batches_of(sampler, processor)
    run(sampler, batches, 2)
    given, learned = batches.given, sampler.state
    for _ in range(3):
        learn(sampler, ids_of(next(batches)))
    assert sampler.state.plan.number == learned.plan.number + 1
    batches.seek(given)
    with pytest.raises(ValueError, match="batch 2 is not of the plan of batches 3 to 5"):
        next(batches)
    sampler.state = learned
    batches.seek(given)
    assert run(sampler, batches, STEPS - 2) == whole[2:]


def test_a_round_is_planned_when_its_first_batch_is_asked_for(data, processor):
    sampler = sampler_of(data)
    batches = batches_of(sampler, processor)
    assert sampler.state.plan.number == -1
    run(sampler, batches, 3)
    assert sampler.state.plan.number == 0
    next(batches)
    assert sampler.state.plan.number == 1
    assert (
        sampler.state.plan.metrics["curriculum/seen"]
        == np.count_nonzero(sampler.state.pass_rates.visits) / 27
    )


def test_a_saved_row_that_cannot_be_used_any_more(data, processor):
    sampler = sampler_of(data)
    next(batches_of(sampler, processor))
    lost = sampler.state.plan.rows[-1]
    sampler.index[lost] = -1
    with pytest.raises(ValueError, match=r"[ab]\.jsonl:\d+ was to be drawn next .* put back the files"):
        sampler.order_of(1)


def staged(data):
    mixtures = (Mixture(0.0, (1.0, 0.0), True), Mixture(0.4, (1.0, 3.0)), Mixture(0.75, (0.0, 1.0), True))
    return replace(data, mixtures=mixtures)


@pytest.mark.parametrize("draws", [1, 2])
def test_stages_begin_at_their_step(data, processor, draws):
    """Of 12 steps: the second after 4.8, the third after 9; also where a step draws more than one batch."""
    sampler = sampler_of(staged(data), {"batches": 4})
    batches = batches_of(sampler, processor)
    for step in range(STEPS):
        sampler.step = step
        for _ in range(draws):
            from_b = [name[0] == "b" for name in ids_of(next(batches))]
            stage = sampler.state.plan.metrics["curriculum/stage"]
            assert stage == (0 if step < 5 else 1 if step < 9 else 2)
            assert sum(from_b) == (0, 3, 4)[int(stage)]


def test_without_rules_the_seed_alone_decides(data, processor):
    assert sampler_of(data, {}) is None
    assert sampler_of(staged(data), {}) is not None
    config = from_dict({})
    assert source_weights(config, data) is None
    tempered = source_weights(from_dict({"data": {"temperature": 2.0}}), data)
    np.testing.assert_allclose(np.divide(*tempered), np.sqrt(9 / 18))
    given = replace(data, mixtures=(Mixture(0.0, (3.0, 1.0)),))
    assert source_weights(from_dict({"data": {"temperature": 2.0}}), given) == (3.0, 1.0)


def test_the_column_difficulty(tmp_path):
    cells = [3, 2.5, "4", None, "hard", True]
    rows = [{"problem": "x", "answer": "1", "difficulty": cell} for cell in cells]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read(tmp_path / "a.jsonl")
    assert [source[k].difficulty for k in range(6)] == [3.0, 2.5, 4.0, None, None, None]
    assert Sample(id="", problem="", answer="").difficulty is None


def test_an_order_by_difficulty_needs_one_of_every_row_that_is_used(tmp_path):
    rows = [{"problem": "x", "answer": "1", "difficulty": cell} for cell in (3, None, 1)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source, report = read(tmp_path / "a.jsonl"), Report(3, (), (), ((0, 3.0), (2, 1.0)))
    np.testing.assert_array_equal(difficulties([(source.choose([0, 2]), report)]), [3.0, np.nan, 1.0])
    with pytest.raises(ValueError, match=r"1 of 3 rows of a\.jsonl have .* first a\.jsonl:1; add it"):
        difficulties([(source, report)])
