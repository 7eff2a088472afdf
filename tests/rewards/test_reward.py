"""Weights, schedules, gates and the keys of each data set."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.config import from_dict, resolve, template
from mmrl.experiment import overrule
from mmrl.rewards.boxes import box, boxes, point
from mmrl.rewards.number import number
from mmrl.rewards.reward import (
    Gate,
    GradedGroup,
    Reward,
    at_least,
    compute_rewards,
    ramp,
    reward_of,
    weight_at,
)
from mmrl.rewards.style import repetition
from mmrl.rewards.verifier import Verifier
from mmrl.sample import Sample

FULL, BARE, WRONG = (
    {"accuracy": a, "format": f, "iou": i} for a, f, i in ((1, 1, 0.9), (1, 0, 0.6), (0, 1, 0))
)


def paid(reward, *components, source="", progress=0.0, lengths=None):
    group = GradedGroup(np.array(lengths or [10] * len(components), int), 100)
    return compute_rewards(reward_of(reward, source), components, group, progress)


def test_the_reward_is_the_weighted_sum():
    rewards, components = paid({"weights": {"accuracy": 0.9, "format": 0.1}}, FULL, BARE, WRONG)
    assert rewards == pytest.approx([1.0, 0.9, 0.1])
    assert components == [FULL, BARE, WRONG]


def test_a_gate_shuts_its_component_alone():
    reward = {"weights": {"accuracy": 0.9, "format": 0.1}, "gates": {"accuracy": "format"}}
    assert paid(reward, FULL, BARE, WRONG)[0] == pytest.approx([1.0, 0.0, 0.1])


def test_several_gates_and_a_threshold():
    reward = {"weights": {"accuracy": 1.0}, "gates": {"accuracy": ("format", "iou >= 0.7")}}
    assert reward_of(reward).gates == {"accuracy": (Gate("format", 1.0), Gate("iou", 0.7))}
    assert paid(reward, FULL, BARE, {**FULL, "iou": 0.65})[0] == [1.0, 0.0, 0.0]


def test_weights_follow_the_run():
    points = ((0.2, 1.0), (0.6, 0.0))
    assert [weight_at(points, x) for x in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.0, 0.0]
    )
    reward = {"weights": {"accuracy": 1.0, "format": points}}
    assert paid(reward, FULL, progress=0.4)[0] == pytest.approx([1.5])


def test_a_data_set_has_keys_of_its_own():
    reward = {
        "weights": {"accuracy": 1.0},
        "options": {"threshold": 0.5, "answer_in": "tag"},
        "also": ("format",),
        "sources": {"boxes": {"weights": {"iou": 1.0}, "options": {"threshold": 0.7}, "also": ()}},
    }
    own = reward_of(reward, "boxes.parquet")
    assert own.options == {"threshold": 0.7, "answer_in": "tag"}
    assert (own.verifiers("number"), reward_of(reward, "math").verifiers("number")) == (
        "number",
        "number+format",
    )
    assert paid(reward, FULL, source="boxes")[0] == [0.9]
    assert paid(reward, FULL, source="other")[0] == [1.0]


def test_what_a_data_set_takes_over_is_about_what_it_weighs():
    reward = {
        "weights": {"accuracy": 1.0, "brevity": 0.1},
        "gates": {"accuracy": "format", "brevity": "accuracy"},
        "bonuses": ("brevity",),
        "sources": {"a": {"weights": {"accuracy": 0.5}}},
    }
    own = reward_of(reward, "a")
    assert (own.gates, own.bonuses) == ({"accuracy": (Gate("format", 1.0),)}, ())


def test_what_a_rule_needs():
    reward = {
        "weights": {"accuracy": 1.0, "brevity": 0.1},
        "gates": {"accuracy": "format"},
        "bonuses": ("brevity",),
    }
    assert reward_of(reward).needs == {"accuracy", "format"}


def test_a_bonus_is_a_component_that_is_weighted():
    reward = {"weights": {"accuracy": 1.0, "brevity": 0.2}, "bonuses": ("brevity",)}
    rewards, components = paid(reward, FULL, FULL, WRONG, lengths=[10, 30, 10])
    assert [one["brevity"] for one in components] == pytest.approx([0.5, -0.5, 0.0])
    assert rewards == pytest.approx([1.1, 0.9, 0.0])


def test_nobody_could_be_graded():
    assert paid({"weights": {"accuracy": 1.0, "brevity": 1.0}, "bonuses": ("brevity",)}) == ([], [])


def test_a_missing_component():
    with pytest.raises(ValueError, match="depth"):
        paid({"weights": {"depth": 1.0}}, FULL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {}}, r"config.reward.weights is empty"),
        ({"weights": {"accuracy": "1"}}, r"weights\['accuracy'\]='1' should be a number, or points"),
        ({"weights": {"accuracy": True}}, r"should be a number"),
        ({"weights": {"accuracy": float("nan")}}, r"should be a number"),
        ({"weights": {"accuracy": ()}}, r"should be a number"),
        ({"weights": {"accuracy": ((0.5, 1.0), (0.5, 0.0))}}, r"shares that rise"),
        ({"weights": {"accuracy": ((0.0, 1.0), (2.0, 0.0))}}, r"shares that rise"),
        ({"gates": {"accuracy": "format > 1"}}, r'should read "component"'),
        ({"gates": {"accuracy": "format>=1.2.3"}}, r'should read "component"'),
        ({"gates": {"format": "accuracy"}}, r"no weight is given to 'format'"),
        ({"bonuses": ("brevty",)}, r"did you mean 'brevity'"),
        ({"bonuses": ("brevity",)}, r"give 'brevity' a weight"),
        ({"also": ("formt",)}, r"config.reward.also: verifier 'formt' is unknown; did you mean 'format'"),
        ({"verifier": "mth"}, r"config.reward.verifier: .*did you mean 'math'"),
        ({"sources": {"a": {"weight": {}}}}, r"config.reward.sources\['a'\] has the key 'weight'"),
        ({"sources": {"a": {"weights": {}}}}, r"config.reward.sources\['a'\].weights is empty"),
    ],
)
def test_what_is_refused(change, message):
    reward = {"weights": {"accuracy": 1.0}, **change}
    with pytest.raises(ValueError, match=message):
        reward_of(reward, "a" if "sources" in change else "")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-5, 5)), min_size=1, max_size=5), st.floats(0, 1))
def test_a_scheduled_weight_stays_within_its_points(points, progress):
    points = tuple(sorted({share: weight for share, weight in points}.items()))
    weights = [weight for _, weight in points]
    assert min(weights) - 1e-9 <= weight_at(points, progress) <= max(weights) + 1e-9


VALUE = Reward(
    verifier=boxes(threshold=0.7, answer_in="tag"),
    also=(repetition(ngram=4), "thought"),
    weights={"accuracy": 1.0, "format": ramp((0, 0.5), (0.5, 0.1)), "iou": 2, "brevity": 0.1},
    gates={"accuracy": at_least("iou", 0.5), "brevity": (at_least("accuracy"), at_least("format", 1e-5))},
    bonuses=("brevity",),
    options={"image_size": [10, 20]},
)


def test_a_reward_is_a_value_that_a_config_holds_as_json():
    plain = json.loads(json.dumps(VALUE.to_json()))
    assert plain == {
        "verifier": "boxes",
        "also": ["repetition", "thought"],
        "options": {"threshold": 0.7, "answer_in": "tag", "ngram": 4.0, "image_size": [10, 20]},
        "weights": {"accuracy": 1.0, "format": [[0.0, 0.5], [0.5, 0.1]], "iou": 2.0, "brevity": 0.1},
        "gates": {"accuracy": ["iou>=0.5"], "brevity": ["accuracy>=1.0", "format>=1e-05"]},
        "bonuses": ["brevity"],
    }
    again = Reward(**plain)
    assert (again.weights, again.gates, again.verifiers("")) == (
        VALUE.weights,
        VALUE.gates,
        "boxes+repetition+thought",
    )
    assert again.to_json() == VALUE.to_json() | {"bonuses": ["brevity"]}


def test_a_verifier_with_options_grades_by_them_and_a_row_overrules():
    sample = Sample("a:0", "", "3")
    near = number(tolerance=1)
    assert near(sample, r"\boxed{4}")["accuracy"] == 1.0
    assert number(sample, r"\boxed{4}")["accuracy"] == 0.0
    assert near(replace(sample, facts={"tolerance": 0.5}), r"\boxed{4}")["accuracy"] == 0.0
    assert near(relative_tolerance=0.1).options == {"tolerance": 1.0, "relative_tolerance": 0.1}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: boxes(treshold=0.5),
            TypeError,
            r"boxes\(\) has no option 'treshold'; did you mean",
        ),
        (
            lambda: boxes(threshold=2),
            ValueError,
            "is '2', but should be a number from 0.01 to 1",
        ),
        (lambda: boxes(answer_in="bax"), ValueError, "should be one of all, box, line"),
        (lambda: point(several=1), ValueError, "should be true or false"),
        (lambda: Reward(verifier=boxes(threshold=0.5), also=(box(threshold=0.7),)), ValueError, "two values"),
        (lambda: Reward(verifier=Verifier(lambda sample, response: {})), ValueError, "FILE.py:function"),
        (lambda: Reward(verifier=3), ValueError, "verifier=3 should be a verifier"),
        (lambda: Reward(weights=[1.0]), ValueError, r"weights=\[1.0\] should be an object"),
        (lambda: Reward(also="repetition"), ValueError, "should be a list of names"),
        (lambda: ramp((0.5, 1.0), (0.2, 0.0)), ValueError, "shares that rise"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_written(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_experiment_writes_values_and_the_command_line_overrules_them():
    config = template()
    config.reward.workers = 7
    config.reward.also = ("language",)
    config.reward = VALUE
    config.reward.sources["charts.jsonl"] = Reward(verifier=number(tolerance=1), weights={"accuracy": 1.0})
    overrule(
        config,
        [
            "--config.reward.weights.accuracy=0.5",
            "--config.reward.options.threshold=0.9",
            "--config.reward.sources.charts.jsonl.options.tolerance=2",
        ],
    )
    run = resolve(config)
    assert run.reward.workers == 7
    reward = asdict(run.reward)
    read, own = reward_of(reward), reward_of(reward, "charts.jsonl")
    assert read.weights == VALUE.weights | {"accuracy": ((0.0, 0.5),)}
    assert (read.gates, read.verifiers("math")) == (VALUE.gates, "boxes+repetition+thought")
    assert read.options == VALUE.options | {"threshold": 0.9, "image_size": (10, 20)}
    assert (own.verifier, own.weights, own.options["tolerance"]) == ("number", {"accuracy": ((0.0, 1.0),)}, 2)
    assert from_dict(json.loads(json.dumps(asdict(run)))) == run
    config.reward = Reward(weights={"accuracy": 1.0})  # replaces all of it
    assert reward_of(asdict(resolve(config).reward)) == Reward({"accuracy": 1.0}, {}, (), "", (), {})
