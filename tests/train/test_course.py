"""The order of rows under a curriculum: who reads it, how far ahead and from where on changes nothing."""

import json
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import pytest

from mmrl.config import from_dict
from mmrl.data.curriculum import packed, unpacked
from mmrl.data.pipeline import PromptFormat, Readers, prompts
from mmrl.data.rounds import Mixture
from mmrl.data.sources import read
from mmrl.data.validation import Report
from mmrl.models.processor import load_processor
from mmrl.open import TrainingData, difficulties
from mmrl.sample import Sample
from mmrl.train.course import fixed_weights, learn, open_course, part
from mmrl.train.rollout_batch import RowStats

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


def course_of(data, curriculum=ACTIVE, **changes):
    values = {
        "seed": 3,
        "data": {"curriculum": curriculum, **changes},
        "rollout": {"prompts": BATCH},
        "train": {"steps": STEPS, "update_prompts": BATCH, "micro_prompts": BATCH},
    }
    return open_course(from_dict(values), data)


def batches_of(course, processor, **options):
    settings = {"seed": 3, "batch_size": BATCH, "part": partial(part, course), **options}
    return prompts(course.sources, processor, FORM, **settings)


def graded(ids):
    """As if the rows of ``a`` were always answered rightly, odd ones of ``b`` half of the time."""
    right = np.array([[1.0, 1.0] if name[0] == "a" else [int(name[-1]) % 2, 0.0] for name in ids])
    grid, table = np.zeros((len(ids), 2)), np.zeros((len(ids), 3), int)
    return RowStats(
        ids=np.array(ids),
        sources=np.array([name.split(":")[0] for name in ids]),
        rewards=right,
        valid=np.ones(grid.shape, bool),
        lengths=grid.astype(int),
        truncated=grid.astype(bool),
        components={"accuracy": right},
        episode_metrics={},
        digests=np.zeros(len(ids), int),
        used=table,
        padded=table,
    )


def ids_of(batch):
    return [sample.id for sample in batch.samples]


def run(course, batches, count):
    """The rows of so many steps of one batch."""
    drawn = []
    for _ in range(count):
        drawn.append(ids_of(next(batches)))
        learn(course, graded(drawn[-1]))
        course.step += 1
    return drawn


@pytest.fixture
def whole(data, processor):
    course = course_of(data)
    return run(course, batches_of(course, processor), STEPS)


def test_rows_that_are_left_out_are_not_drawn_and_others_come_by_their_names(whole):
    names = set(chain(*whole))
    assert {"a.jsonl:3", "b.jsonl:0", "b.jsonl:1"} & names == set()
    assert {f"b.jsonl:{k}" for k in range(2, 20)} <= names
    assert all(len(batch) == BATCH for batch in whole)


def test_what_came_of_a_row_is_remembered_under_its_number_in_the_files(data, processor):
    course = course_of(data)
    drawn = set(chain(*run(course, batches_of(course, processor), 2)))
    memory = course.state.memory
    visited = {f"a.jsonl:{k}" for k in np.flatnonzero(memory.visits[:10])}
    visited |= {f"b.jsonl:{k}" for k in np.flatnonzero(memory.visits[10:])}
    assert visited == drawn
    for name in drawn:
        source, row = name.split(":")
        number = int(row) + (10 if source[0] == "b" else 0)
        assert memory.rate[number] == (1.0 if source[0] == "a" else 0.5 * (int(row) % 2))


@pytest.mark.parametrize("threads", [1, 3])
def test_how_many_read_changes_nothing(data, processor, whole, threads):
    course = course_of(data)
    assert run(course, batches_of(course, processor, readers=Readers(threads)), STEPS) == whole


def test_processes_share_a_batch(data, processor, whole):
    """Each has a course of its own, and is told of all rows."""
    parts = []
    for mine in np.split(np.arange(BATCH), 2):
        course = course_of(data)
        batches = batches_of(course, processor, rows=mine)
        drawn = []
        for step, batch in enumerate(whole):
            drawn.append(ids_of(next(batches)))
            learn(course, graded(batch))
            course.step = step + 1
        parts.append(drawn)
    assert [left + right for left, right in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("before", range(STEPS))
def test_goes_on_from_what_was_saved(data, processor, whole, before):
    """In the middle of a round, and between two."""
    course = course_of(data)
    batches = batches_of(course, processor)
    run(course, batches, before)
    saved = json.loads(json.dumps({"given": batches.given, "course": packed(course.state)}))
    again = course_of(data)
    again.state, again.step = unpacked(saved["course"], len(again.index)), before
    batches = batches_of(again, processor)
    batches.seek(saved["given"])
    assert run(again, batches, STEPS - before) == whole[before:]


def test_a_step_that_is_taken_back(data, processor, whole):
    """It had drawn into the next round, having learned from what it drew."""
    course = course_of(data)
    batches = batches_of(course, processor)
    run(course, batches, 2)
    given, learned = batches.given, course.state
    for _ in range(3):
        learn(course, graded(ids_of(next(batches))))
    assert course.state.round.number == learned.round.number + 1
    batches.seek(given)
    with pytest.raises(ValueError, match="batch 2 is not of the round of batches 3 to 5"):
        next(batches)
    course.state = learned
    batches.seek(given)
    assert run(course, batches, STEPS - 2) == whole[2:]


def test_a_round_is_planned_when_its_first_batch_is_asked_for(data, processor):
    course = course_of(data)
    batches = batches_of(course, processor)
    assert course.state.round.number == -1
    run(course, batches, 3)
    assert course.state.round.number == 0
    next(batches)
    assert course.state.round.number == 1
    assert course.state.round.figures["curriculum/seen"] == np.count_nonzero(course.state.memory.visits) / 27


def test_a_saved_row_that_cannot_be_used_any_more(data, processor):
    course = course_of(data)
    next(batches_of(course, processor))
    lost = course.state.round.rows[-1]
    course.index[lost] = -1
    with pytest.raises(ValueError, match=r"[ab]\.jsonl:\d+ was to be drawn next .* put back the files"):
        part(course, 1)


def staged(data):
    mixtures = (Mixture(0.0, (1.0, 0.0), True), Mixture(0.4, (1.0, 3.0)), Mixture(0.75, (0.0, 1.0), True))
    return replace(data, mixtures=mixtures)


@pytest.mark.parametrize("draws", [1, 2])
def test_stages_begin_at_their_step(data, processor, draws):
    """Of 12 steps: the second after 4.8, the third after 9; also where a step draws more than one batch."""
    course = course_of(staged(data), {"batches": 4})
    batches = batches_of(course, processor)
    for step in range(STEPS):
        course.step = step
        for _ in range(draws):
            from_b = [name[0] == "b" for name in ids_of(next(batches))]
            stage = course.state.round.figures["curriculum/stage"]
            assert stage == (0 if step < 5 else 1 if step < 9 else 2)
            assert sum(from_b) == (0, 3, 4)[int(stage)]


def test_without_rules_the_seed_alone_decides(data, processor):
    assert course_of(data, {}) is None
    assert course_of(staged(data), {}) is not None
    config = from_dict({})
    assert fixed_weights(config, data) is None
    tempered = fixed_weights(from_dict({"data": {"temperature": 2.0}}), data)
    np.testing.assert_allclose(np.divide(*tempered), np.sqrt(9 / 18))
    given = replace(data, mixtures=(Mixture(0.0, (3.0, 1.0)),))
    assert fixed_weights(from_dict({"data": {"temperature": 2.0}}), given) == (3.0, 1.0)


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
