"""Rows that cannot be used, batches of skipped updates that are kept, and when a run gives up."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from mmrl.data.pipeline import Batch
from mmrl.sample import Sample
from mmrl.train.guards import KEPT, TEXT_LIMIT, Guards, open_guards, save_incident
from mmrl.train.rollout_batch import RolloutBatch, make_rollout_batch
from mmrl.types import Images, Observed, Prompts, Responses

METRICS = {"loss/loss": float("nan"), "loss/skipped": 1.0}


def graded(text="\ud800 \x1b[2J \\boxed{7}") -> RolloutBatch:
    """Two prompts of two responses each, with text that no strict encoding takes."""
    random = np.random.default_rng(0)
    images = Images(
        patches=np.zeros((2, 4, 12), np.uint8),
        position=np.zeros((2, 4, 2), np.int32),
        image=np.zeros((2, 4), np.int32),
    )
    samples = [
        Sample(id="a.jsonl:7", problem="<image>\ud800?", answer="7", images=(b"bytes of an image",)),
        Sample(id="a.jsonl:9", problem="<image>two", answer="8", images=("images/two.png",)),
    ]
    prompts = Prompts(
        tokens=random.integers(0, 99, (2, 3)),
        mask=np.ones((2, 3), bool),
        position=np.zeros((2, 3, 3), np.int32),
        next_position=np.full(2, 3),
        image_token=np.full((2, 3), -1, np.int32),
        images=images,
    )
    responses = Responses(
        tokens=random.integers(0, 99, (2, 2, 5)),
        mask=random.random((2, 2, 5)) < 0.5,
        logprob=np.full((2, 2, 5), -np.inf, np.float32),
        log_kept=np.full((2, 2, 5), -0.5, np.float32),
        stop=np.ones((2, 2), np.int32),
        valid=np.array([[True, False], [True, True]]),
    )
    return make_rollout_batch(
        Batch(np.arange(2), samples, prompts, np.ones(2, bool), ()),
        responses,
        [[text, "no"], ["", text]],
        np.array([[1.0, 0.0], [0.5, np.nan]], np.float32),
        [{"accuracy": 1.0}, {}, {"accuracy": 0.5}, {"accuracy": 0.0}],
        [{"zooms": 1.0}, {"zooms": 2.0}, {"zooms": 0.0}, {}],
    )


def test_everything_but_the_images_comes_back(tmp_path):
    made = graded()
    folder = save_incident(tmp_path, 12, made, METRICS)
    assert folder == tmp_path / "incidents" / "step_000012"
    assert {path.name for path in folder.iterdir()} == {"rows.jsonl", "arrays.npz", "metrics.json"}

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a.jsonl:7", "a.jsonl:9"]
    assert [row["problem"] for row in rows] == [sample.problem for sample in made.samples]
    assert [row["answer"] for row in rows] == ["7", "8"]
    assert [row["responses"] for row in rows] == made.texts
    digest = hashlib.sha256(b"bytes of an image").hexdigest()
    assert [row["images"] for row in rows] == [[f"sha256:{digest}"], ["images/two.png"]]

    with np.load(folder / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["row"], made.rows)
        np.testing.assert_array_equal(arrays["prompt.tokens"], made.prompts.tokens)
        np.testing.assert_array_equal(arrays["prompt.mask"], made.prompts.mask)
        for name in ("tokens", "mask", "logprob", "log_kept", "stop", "valid"):
            np.testing.assert_array_equal(arrays[f"response.{name}"], getattr(made.responses, name))
        np.testing.assert_array_equal(arrays["reward"], made.stats.rewards)
        np.testing.assert_array_equal(arrays["component.accuracy"], [[1.0, np.nan], [0.5, 0.0]])
        np.testing.assert_array_equal(arrays["fact.zooms"], [[1.0, 2.0], [0.0, np.nan]])

    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["step"], metrics["loss/skipped"]) == (12, 1.0)
    assert np.isnan(metrics["loss/loss"])


def test_what_the_policy_read_is_told_from_what_it_wrote(tmp_path):
    made = graded()
    real = np.ones((2, 2, 5), bool)
    observed = Observed(
        real=real,
        position=np.zeros((2, 2, 5, 3), np.int32),
        image_token=np.full((2, 2, 5), -1, np.int32),
        images=Images(
            patches=np.zeros((2, 2, 4, 12), np.uint8),
            position=np.zeros((2, 2, 4, 2), np.int32),
            image=np.zeros((2, 2, 4), np.int32),
        ),
    )
    made = replace(made, responses=replace(made.responses, observed=observed))
    with np.load(save_incident(tmp_path, 1, made, METRICS) / "arrays.npz") as arrays:
        np.testing.assert_array_equal(arrays["response.real"], real)


def test_texts_are_bounded(tmp_path):
    folder = save_incident(tmp_path, 1, graded("x" * 10_000_000), METRICS)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3 * TEXT_LIMIT
    assert json.loads((folder / "rows.jsonl").open().readline())["responses"][0] == "x" * TEXT_LIMIT


def test_a_step_taken_again_takes_the_place_of_the_first_and_of_what_a_kill_left(tmp_path):
    left = tmp_path / "incidents" / ".step_000003.part"
    left.mkdir(parents=True)
    (left / "rows.jsonl").write_text("{")
    save_incident(tmp_path, 3, graded(), {"loss/loss": 1.0})
    folder = save_incident(tmp_path, 3, graded(), {"loss/loss": 2.0})
    assert json.loads((folder / "metrics.json").read_text())["loss/loss"] == 2.0
    assert [path.name for path in folder.parent.iterdir()] == ["step_000003"]


def test_the_newest_stay_and_processes_keep_apart(tmp_path):
    for step in range(1, KEPT + 3):
        save_incident(tmp_path, step, graded(), METRICS)
        save_incident(tmp_path, step, graded(), METRICS, process=1)
    kept = {f"step_{step:06d}" for step in range(3, KEPT + 3)}
    assert {path.name for path in (tmp_path / "incidents").iterdir()} == kept | {"process_1"}
    assert {path.name for path in (tmp_path / "incidents" / "process_1").iterdir()} == kept


def test_all_draws_of_a_step_are_kept(tmp_path):
    save_incident(tmp_path, 1, graded(), METRICS)
    for draw in range(KEPT + 2):
        save_incident(tmp_path, 2, graded(), METRICS, draw=draw)
    names = {path.name for path in (tmp_path / "incidents").iterdir()}
    draws = {f"step_000002_draw_{draw}" for draw in range(1, KEPT + 2)}
    assert names == {"step_000001", "step_000002"} | draws


def test_a_failed_write_leaves_nothing_half_made(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(ValueError, match=r"step 4: .*step_000004.*No space left"):
        save_incident(tmp_path, 4, graded(), METRICS)
    assert list((tmp_path / "incidents").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"step 4: .*file"):
        save_incident(tmp_path / "file", 4, graded(), METRICS)


def test_a_run_gives_up_after_skipped_updates_in_a_row(tmp_path):
    folder = tmp_path / "incidents" / "step_000009"
    guards = Guards(tmp_path / "rows.jsonl", rows=1, max_broken=1.0, max_skipped=3)
    for skipped in (True, True, False, True, True):
        guards.count_update(skipped, folder)
    assert guards.skipped_in_a_row == 2
    with pytest.raises(ValueError, match=r"3 updates in a row .*incidents"):
        guards.count_update(True, folder)
    with pytest.raises(ValueError, match="1 updates in a row"):
        replace(guards, max_skipped=1, skipped_in_a_row=0).count_update(True, folder)


@pytest.mark.parametrize("content", [b'{"id": "a:0", "rea', b"\xff", b"[]", b'{"id": "a:0"}'])
def test_a_damaged_line_of_the_list_of_rows_is_set_aside(tmp_path, capsys, content):
    path = tmp_path / "skipped_rows.jsonl"
    path.write_bytes(content + b'\n{"id": "a:1", "reason": "no image"}\n')
    for _ in range(2):
        assert open_guards(path, 10, 0.5, 1).reasons == {"a:1": "no image"}
    said = capsys.readouterr().out
    assert said.count(f"{path}, line 1, is damaged") == 1
    assert path.with_name("skipped_rows.jsonl.damaged").read_bytes() == content + b"\n"
