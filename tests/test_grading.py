"""Input of verifiers, checks of rows before a run, and rewards of groups."""

import dataclasses

import pytest

from mmrl.config import Config, RewardConfig, resolve, template
from mmrl.grading import check_sources, group_rewards, rewards_of, row_check, verifier_input
from mmrl.rewards.judge_client import Judge
from mmrl.rewards.verifier import Graded, RolloutInfo, rollout_info
from mmrl.sample import Sample


def config(**reward):
    return dataclasses.replace(Config(), reward=RewardConfig(**reward))


def row(**facts):
    return Sample("a.jsonl:3", "How many?", "3", verifier="number", facts=facts, source="a.jsonl")


def test_a_verifier_is_told_of_options_the_row_and_the_rollout():
    given = config(options={"tolerance": 0.5, "answer_in": "tag"}, also=("format",))
    sample = row(tolerance=0.1, rollout={"progress": 9.0})
    seen = verifier_input(
        sample, rewards_of(given)(sample), RolloutInfo(progress=0.25, tokens=7), {"tool_calls": 2.0}
    )
    assert seen.verifier == "number+format"
    assert (seen.facts["tolerance"], seen.facts["answer_in"]) == (0.1, "tag")
    assert rollout_info(seen) == RolloutInfo(progress=0.25, tokens=7)
    assert seen.facts["episode"] == {"tool_calls": 2.0}


def test_a_rows_own_weights():
    given = config(gates={"format": "accuracy"})
    assert dict(rewards_of(given)(row(weights={"accuracy": 1})).weights) == {"accuracy": ((0.0, 1.0),)}
    assert rewards_of(given)(row(weights={"accuracy": 1})).gates == {}
    with pytest.raises(ValueError, match=r"a.jsonl:3: facts\[\"weights\"\]\['accuracy'\]='x' should be"):
        rewards_of(given)(row(weights={"accuracy": "x"}))


@pytest.mark.parametrize(
    ("reward", "sample", "message"),
    [
        ({}, row(), None),
        (
            {"weights": {"acuracy": 1.0}},
            row(),
            "asks for 'acuracy', which the verifier 'number' does",
        ),
        ({"gates": {"accuracy": "iou>=0.5"}}, row(), "asks for 'iou'"),
        ({"also": ("format",)}, row(), "two of these report 'format'"),
        ({}, dataclasses.replace(row(), verifier="nummber"), "did you mean 'number'"),
        ({}, dataclasses.replace(row(), answer="red"), "is not a number"),
        ({}, dataclasses.replace(row(), verifier="judge"), "config.reward.judge.endpoint"),
        (
            {"judge": Judge("http://localhost/v1", "m")},
            dataclasses.replace(row(), verifier="judge+number"),
            None,
        ),
        ({"options": {"answer_in": "bax"}}, row(), "should be one of"),
    ],
)
def test_rows_are_probed_before_a_run(reward, sample, message):
    look = row_check(config(**reward))
    if message is None:
        look(sample)
    else:
        with pytest.raises(ValueError, match=message):
            look(sample)


def test_a_group_is_paid_without_those_that_failed():
    spec = rewards_of(config(weights={"accuracy": 1.0, "brevity": 1.0}, bonuses=("brevity",)))(row())
    graded = [Graded({"accuracy": 1.0}), Graded({}, False, "slow"), Graded({"accuracy": 1.0})]
    rewards, components = group_rewards(spec, graded, [10, 5, 20], 100, 0.0)
    assert rewards == [1.5, 0.0, 0.5]
    assert components == [{"accuracy": 1.0, "brevity": 0.5}, {}, {"accuracy": 1.0, "brevity": -0.5}]


def test_a_wrong_reward_is_refused_with_the_config():
    values = template()
    values.reward.bonuses = ("brevity",)
    with pytest.raises(ValueError, match="give 'brevity' a weight"):
        resolve(values)


def test_keys_for_a_data_set_that_is_not_there():
    given = config(sources={"boxes": {"weights": {"accuracy": 1.0}}})
    check_sources(given, ["boxes.parquet", "math:train"])
    with pytest.raises(ValueError, match=r"sources\['boxes'\]: no data set .* there are box.parquet, math"):
        check_sources(given, ["math", "box.parquet"])
