"""Held-out responses: their kinds, their samples, which are shown, and what became of them."""

import dataclasses
import json

import numpy as np
import pytest

from mmrl.analysis import (
    Run,
    choose_evenly,
    error_breakdown,
    error_kind,
    responses_of,
    rollout_sample,
    samples_of,
    tokens_of,
    transitions,
)
from mmrl.config import Config, DataConfig, EpisodeConfig


def row(source: str, number: int, kind: str, **more) -> dict:
    graded = {"accuracy": float(kind == "right"), **({kind: 1.0} if kind.endswith("_error") else {})}
    name = {"id": f"{source}.jsonl:{number}", "source": f"{source}.jsonl"}
    return {**name, "problem": f"{source}{number}?", "answer": "1", "response": "1", **graded, **more}


@pytest.fixture
def made(tmp_path) -> Run:
    """A run of two data sets of three questions, two responses each."""
    for source in "ab":
        facts = [{"kind": "odd" if k % 2 else "even"} for k in range(3)]
        rows = [{"problem": f"{source}{k}?", "answer": "1", "facts": facts[k]} for k in range(3)]
        (tmp_path / f"{source}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = Config(data=DataConfig(heldout="{workdir}/a.jsonl, {workdir}/b.jsonl"))
    kinds = {"a": ("right", "perception_error", "right"), "b": ("right", "wrong", "format_error")}
    after = [
        row(source, k, kinds[source][k], tokens=[k]) for source in "ab" for k in range(3) for _ in range(2)
    ]
    before = [row(source, k, "perception_error") for source in "ab" for k in range(3) for _ in range(2)]
    return Run(tmp_path, config, [], before, after, {})


def test_kinds_of_error():
    assert error_kind({"accuracy": 1.0, "unfaithful": 1.0}) == "right"
    assert error_kind({"accuracy": 0.0, "reasoning_error": 1.0}) == "reasoning_error"
    assert error_kind({"accuracy": 0.25}) == "wrong"
    assert error_kind({"reward": 1.0}) == "ungraded"


def test_samples_are_found_by_their_ids(made):
    rows = [made.after[7], made.after[0], made.after[6]]
    samples = samples_of(made, rows)
    assert [sample.id for sample in samples] == ["b.jsonl:0", "a.jsonl:0", "b.jsonl:0"]
    assert samples[0].facts == {"kind": "even"}
    assert samples_of(made, []) == []
    with pytest.raises(
        ValueError, match=r"the response b\.jsonl:9 has no such row in config\.data\.heldout="
    ):
        samples_of(made, [row("b", 9, "right")])
    with pytest.raises(ValueError, match=r"a\.jsonl:0 has another question"):
        samples_of(made, [{**made.after[0], "problem": "b0?"}])
    without = dataclasses.replace(made, config=Config())
    with pytest.raises(ValueError, match=r"config\.data\.heldout is empty"):
        samples_of(without, rows)


def test_responses_that_are_not_there_are_named(made):
    assert responses_of(made, "after") == made.after
    with pytest.raises(ValueError, match="when='now' should be 'before' or 'after'"):
        responses_of(made, "now")
    early = dataclasses.replace(made, after=[])
    with pytest.raises(ValueError, match=r"has no responses after .*: its first evaluation is not done"):
        rollout_sample(early, 3)
    with pytest.raises(ValueError, match="count=0"):
        rollout_sample(made, 0)


def test_rows_without_tokens_and_runs_with_tools_are_refused(made):
    assert tokens_of(made, made.after[:2]) == [[0], [0]]
    with pytest.raises(ValueError, match=r"the response to a\.jsonl:0 has no tokens.*mmrl eval --workdir"):
        tokens_of(made, made.before)
    config = dataclasses.replace(made.config, episode=EpisodeConfig(tools=("zoom",)))
    with pytest.raises(ValueError, match="with tools"):
        tokens_of(dataclasses.replace(made, config=config), made.after)


def test_rows_are_chosen_evenly_over_kinds_and_questions(made):
    chosen = choose_evenly(made.after, 5)
    assert [error_kind(one) for one in chosen] == [
        "right",
        "perception_error",
        "format_error",
        "wrong",
        "right",
    ]
    many = [row("a", k, "right") for k in range(40) for _ in range(3)]
    quarters = [int(one["id"].split(":")[1]) // 10 for one in choose_evenly(many, 4)]
    assert sorted(quarters) == [0, 1, 2, 3]
    assert choose_evenly(made.after, 5) == chosen
    every = choose_evenly(made.after, 100)
    assert sorted(one["id"] for one in every) == sorted(one["id"] for one in made.after)
    assert choose_evenly([], 3) == []


def test_breakdown_sums_to_one_in_each_group(made):
    whole = {share.kind: share for share in error_breakdown(made)}
    assert {kind: share.share.mean for kind, share in whole.items()} == pytest.approx(
        {"right": 1 / 2, "perception_error": 1 / 6, "format_error": 1 / 6, "wrong": 1 / 6}
    )
    assert whole["right"].share.n == 6  # questions, not responses
    assert whole["right"].responses == 12
    for by, groups in (("source", ["a.jsonl", "b.jsonl"]), ("kind", ["even", "odd"])):
        shares = error_breakdown(made, by=by)
        assert list(dict.fromkeys(share.group for share in shares)) == groups
        for group in groups:
            assert sum(share.share.mean for share in shares if share.group == group) == pytest.approx(1)
    odd = {share.kind: share.share.mean for share in error_breakdown(made, by="kind") if share.group == "odd"}
    assert odd == {"right": 0, "perception_error": 0.5, "format_error": 0, "wrong": 0.5}
    with pytest.raises(ValueError, match="no question has a fact 'knd'; there are kind"):
        error_breakdown(made, by="knd")


def test_transitions_of_responses_and_questions(made):
    found = transitions(made)
    assert found.kinds == ("right", "perception_error", "format_error", "wrong")
    np.testing.assert_array_equal(found.counts[1], [6, 2, 2, 2])
    assert found.counts.sum() == 12
    first, *_, last = found.questions
    assert (first.id, first.before, first.after) == ("a.jsonl:0", 0.0, 1.0)
    assert (last.before, last.after) == (0.0, 0.0)
    other = dataclasses.replace(made, before=[row("c", 0, "right")])
    with pytest.raises(ValueError, match="no question in common"):
        transitions(other)
