"""Weights, schedules, gates and the keys of each data set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rewards.group import GradedGroup
from mmrl.rewards.spec import Gate, compute_rewards, reward_spec, weight_at

FULL, BARE, WRONG = (
    {"accuracy": a, "format": f, "iou": i} for a, f, i in ((1, 1, 0.9), (1, 0, 0.6), (0, 1, 0))
)


def paid(reward, *components, source="", progress=0.0, lengths=None):
    group = GradedGroup(np.array(lengths or [10] * len(components), int), 100)
    return compute_rewards(reward_spec(reward, source), components, group, progress)


def test_the_reward_is_the_weighted_sum():
    rewards, components = paid({"weights": {"accuracy": 0.9, "format": 0.1}}, FULL, BARE, WRONG)
    assert rewards == pytest.approx([1.0, 0.9, 0.1])
    assert components == [FULL, BARE, WRONG]


def test_a_gate_shuts_its_component_alone():
    reward = {"weights": {"accuracy": 0.9, "format": 0.1}, "gates": {"accuracy": "format"}}
    assert paid(reward, FULL, BARE, WRONG)[0] == pytest.approx([1.0, 0.0, 0.1])


def test_several_gates_and_a_threshold():
    reward = {"weights": {"accuracy": 1.0}, "gates": {"accuracy": ("format", "iou >= 0.7")}}
    assert reward_spec(reward).gates == {"accuracy": (Gate("format", 1.0), Gate("iou", 0.7))}
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
    own = reward_spec(reward, "boxes.parquet")
    assert own.options == {"threshold": 0.7, "answer_in": "tag"}
    assert (own.verifiers("number"), reward_spec(reward, "math").verifiers("number")) == (
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
    own = reward_spec(reward, "a")
    assert (own.gates, own.bonuses) == ({"accuracy": (Gate("format", 1.0),)}, ())


def test_what_a_rule_needs():
    reward = {
        "weights": {"accuracy": 1.0, "brevity": 0.1},
        "gates": {"accuracy": "format"},
        "bonuses": ("brevity",),
    }
    assert reward_spec(reward).needs == {"accuracy", "format"}


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
        reward_spec(reward, "a" if "sources" in change else "")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-5, 5)), min_size=1, max_size=5), st.floats(0, 1))
def test_a_scheduled_weight_stays_within_its_points(points, progress):
    points = tuple(sorted({share: weight for share, weight in points}.items()))
    weights = [weight for _, weight in points]
    assert min(weights) - 1e-9 <= weight_at(points, progress) <= max(weights) + 1e-9
