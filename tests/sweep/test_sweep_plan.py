"""From a sweep to its runs: all is resolved first, and what folders hold is seen."""

import dataclasses
import json
import re

import pytest

from mmrl.sweep import Sweep, arm, chain, open_sweep, param
from mmrl.sweep.definition import plan_runs, run_states, select_arms, write_sweep

FILE = """
from mmrl.sweep import Sweep, arm, chain, form, param

def get_sweep(arg=""):
    return form(Sweep({experiment!r}, param("train.steps", 3, 5){more}), arg)
"""


@pytest.fixture
def sweep(quickstart):
    arms = chain(arm({"algorithm.name": "grpo"}, "grpo"), param("algorithm.perception_kl", 0.01, 1))
    return Sweep(quickstart, arms, seeds=(3, 0), baseline="grpo")


def test_runs_are_resolved_in_the_order_of_seeds(sweep, tmp_path):
    members = plan_runs(sweep, tmp_path, ["--config.train.steps=7"])
    arms = ["grpo", "perception_kl=0.01", "perception_kl=1"]
    assert [one.name for one in members] == [f"{label}/seed{seed}" for seed in (3, 0) for label in arms]
    last = members[-1]
    assert last.workdir == tmp_path / "perception_kl=1" / "seed0"
    assert last.words == (
        f"--config={sweep.experiment}",
        f"--workdir={last.workdir}",
        "--config.train.steps=7",
        "--config.algorithm.perception_kl=1",
        "--config.seed=0",
    )
    assert (last.config.seed, last.config.train.steps, last.config.algorithm["perception_kl"]) == (0, 7, 1.0)
    assert [one.arm for one in select_arms(members, ["grpo"])] == ["grpo", "grpo"]


@pytest.mark.parametrize(
    ("arms", "overrides", "message"),
    [
        ({"trian.steps": 3}, (), "arm 'last': config.trian.steps is not a key of the config; did you mean"),
        ({"train.steps": "many"}, (), "arm 'last': config.train.steps=many should be a whole number"),
        ({"rollout.group": 1}, (), "arm 'last': config.rollout.group=1: a group of one"),
        ({"data.suffix": 3}, (), "arm 'last': config.data.suffix=3 is read as '3'"),
        ({"train.steps": 9}, (), "the arms 'steps=9' and 'last' are the same run"),
        ({"train.steps": 5}, ("--config.train.steps=2",), "config.train.steps is what the sweep varies"),
        ({"train.steps": 5}, ("--config.seed=2",), "config.seed is what the sweep varies"),
    ],
)
def test_what_is_wrong_with_the_last_arm_is_told_before_any_runs(
    quickstart, tmp_path, arms, overrides, message
):
    sweep = Sweep(quickstart, chain(param("train.steps", 8, 9), arm(arms, "last")))
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_runs(sweep, tmp_path, overrides)


def test_an_arm_that_is_not_there(sweep, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape("--arm=grop is no arm of the sweep; did you mean 'grpo'?")
    ):
        select_arms(plan_runs(sweep, tmp_path), ["grop"])


def test_what_folders_hold(sweep, tmp_path):
    members = plan_runs(sweep, tmp_path)
    for one in members[:2]:
        one.workdir.mkdir(parents=True)
        (one.workdir / "config.json").write_text(json.dumps(dataclasses.asdict(one.config)))
    (members[0].workdir / "summary.json").write_text("{}")
    members[2].workdir.mkdir(parents=True)  # perhaps with shared stages
    assert list(run_states(members).values()) == ["finished", "begun", "new", "new", "new", "new"]
    # How often to save may change within a run; the learning rate may not.
    more = plan_runs(sweep, tmp_path, ["--config.train.checkpoint_every=1"])
    assert list(run_states(more).values())[:2] == ["finished", "begun"]
    with pytest.raises(
        ValueError, match=r"grpo/seed3 holds .*learning_rate: .* and 1 more such folders; name"
    ):
        run_states(plan_runs(sweep, tmp_path, ["--config.optimizer.learning_rate=0.5"]))


def test_files_are_opened_and_checked(quickstart, tmp_path):
    path = tmp_path / "grid.py"
    path.write_text(FILE.format(experiment=quickstart.removesuffix(":smoke"), more=', (1, 2), "steps=5"'))
    assert open_sweep(f"{path}:smoke") == dataclasses.replace(
        open_sweep(str(path)), experiment=quickstart, seeds=(1,)
    )
    for more, message in (
        (', (1, 1), "steps=5"', "each once"),
        (", (-1,)", "whole numbers"),
        (", ()", "should be some numbers"),
        (', (1,), "steps=6"', "baseline='steps=6' is no arm; did you mean 'steps=5'?"),
        (', (1,), "", ()', "metrics=() should be a tuple of names"),
    ):
        path.write_text(FILE.format(experiment="x.py", more=more))
        with pytest.raises(ValueError, match=re.escape(message)) as told:
            open_sweep(str(path))
        assert str(told.value).startswith(f"sweep {path}: ")
    with pytest.raises(ValueError, match="there is no form 'tiny'"):
        open_sweep(f"{path}:tiny")
    path.write_text("def get_sweep(arg): return []")
    with pytest.raises(ValueError, match=r"returned list, and no mmrl\.sweep\.Sweep"):
        open_sweep(str(path))
    with pytest.raises(ValueError, match=r"the file none\.py does not exist"):
        open_sweep("none.py")


def test_what_was_asked_is_written(sweep, tmp_path):
    write_sweep(sweep, tmp_path / "new", ["--config.train.steps=7"])
    asked = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert asked["arms"]["perception_kl=0.01"] == {"algorithm.perception_kl": 0.01}
    assert (asked["seeds"], asked["baseline"]) == ([3, 0], "grpo")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        write_sweep(sweep, tmp_path / "file", ())
