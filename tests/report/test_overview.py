import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from report_cases import write_run

from mmrl.analysis import load_run
from mmrl.report import overview


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Runs of two methods; the second is not finished, nor told where it ran."""
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(folder / "papo", texts=("a", "b", "c", "d"))
    second = write_run(folder / "vppo", name="vppo", steps=10, texts=("a", "b", "c", "d"), finished=False)
    environment = {
        "commit": {"hash": "0123456789abcdef", "changed": True},
        "devices": {"kind": "TPU v5e", "count": 16},
        "processes": 4,
        "libraries": {"jax": "0.10.2"},
        "data": {"data.heldout[0]": "aa"},
        "time": "2026-11-22T05:21:33+00:00",
    }
    (first / "starts.jsonl").write_text(json.dumps(environment) + "\n")
    return [load_run(first), load_run(second)]


def test_names_are_as_short_as_they_can_be():
    assert overview.names([Path("runs/papo")]) == ["papo"]
    assert overview.names([Path("a/papo"), Path("a/vppo/")]) == ["papo", "vppo"]
    assert overview.names([Path("s/x/seed0"), Path("s/y/seed0")]) == ["x/seed0", "y/seed0"]


def test_facts_of_a_finished_run(two):
    facts = overview.facts(two[0])
    assert (facts.method, facts.seed, facts.steps, facts.asked, facts.finished) == ("papo_g", 0, 20, 20, True)
    assert (facts.seconds, facts.started) == (75.0, "2026-11-22 05:21 UTC")
    assert facts.commit == "0123456789 (changed)"
    assert facts.devices == "TPU v5e, 16 in all, 4 processes"


def test_facts_of_a_run_that_says_little(two):
    facts = overview.facts(two[1])
    assert (facts.finished, facts.started, facts.commit, facts.devices) == (False, "", "", "")
    assert facts.seconds == 1.5 * 10  # what its steps took so far


def test_changes_are_first_and_last_value_with_a_paired_interval(two):
    accuracy = overview.facts(two[0]).changes[0]
    assert (accuracy.label, accuracy.before, accuracy.after) == ("accuracy", 0.5, 0.8)
    # Responses of before and after are the same here, so no question has changed.
    assert accuracy.difference == (0, 0, 0, 4)


def test_a_difference_is_that_of_each_question():
    before = [{"id": "a", "accuracy": 0.0}, {"id": "a", "accuracy": 1.0}, {"id": "b", "accuracy": 1.0}]
    after = [{"id": "a", "accuracy": 1.0}, {"id": "b", "accuracy": 1.0}, {"id": "c", "accuracy": 0.0}]
    found = overview.difference(before, after, "accuracy")
    assert (found.mean, found.n) == (0.25, 2)
    assert (found.low, found.high) == (0.0, 0.5)
    assert np.isnan(overview.difference(before, after, "iou").mean)
    assert np.isnan(overview.difference([], after, "accuracy").mean)


def test_what_was_set_differently(two):
    assert overview.differences(two) == [
        ("algorithm.name", ["papo_g", "vppo"]),
        ("train.steps", ["20", "10"]),
    ]
    assert overview.differences(two[:1]) == []


def test_seeds_of_one_kind_have_one_number(two):
    again = dataclasses.replace(two[0], config=dataclasses.replace(two[0].config, seed=1))
    assert overview.kinds([two[0], two[1], again]) == [0, 1, 0]
    assert overview.kinds([two[0], again]) == [0, 1]


def test_notes_say_what_may_mislead(two):
    facts = [overview.facts(run) for run in two]
    text = " ".join(overview.notes(two, ["papo", "vppo"], facts))
    for words in ("vppo is not finished: 10 of 10 steps", "different held-out data", "commits", "versions"):
        assert words in text
    assert overview.notes(two[:1], ["papo"], facts[:1]) == []
