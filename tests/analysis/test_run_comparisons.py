"""Curves of runs beside each other, weights compared, perception in numbers: as worked out by hand."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.analysis import Run, TokenPerception, by_module, compare_runs, diff_params, perception_profile
from mmrl.analysis.perception import lorenz
from mmrl.config import Config
from mmrl.statistics import mean_interval


def made_run(seed: int, values: dict[int, float], name: str = "grpo") -> Run:
    rows = [{"step": step, "heldout/accuracy": value} for step, value in values.items()]
    rows.insert(1, {"step": 5, "reward/mean": 0.5})
    config = dataclasses.replace(Config(), seed=seed, algorithm={"name": name})
    return Run(Path(f"runs/{name}{seed}"), config, rows, [], [], {})


ARMS = {
    "grpo": [made_run(0, {0: 0.1, 10: 0.3}), made_run(1, {0: 0.2, 10: 0.2, 20: 0.9})],
    "papo": [made_run(1, {0: 0.4, 10: 0.5}), made_run(0, {0: 0.1, 20: 0.7}), made_run(7, {0: 0.9})],
}


def test_curves_are_aligned_by_step_and_differences_by_seed():
    base, other = compare_runs(ARMS, "heldout/accuracy", baseline="grpo")
    assert base.steps.tolist() == other.steps.tolist() == [0, 10, 20]
    assert other.seeds == (1, 0, 7)
    np.testing.assert_array_equal(other.values[1], [0.1, np.nan, 0.7])
    assert other.means[0] == mean_interval(np.array([0.4, 0.1, 0.9]))
    assert (other.means[1].mean, other.means[1].n) == (0.5, 1)
    assert base.differences == ()
    expected = mean_interval(np.array([0.4 - 0.2, 0.1 - 0.1]))
    np.testing.assert_allclose(other.differences[0], expected)
    assert other.differences[1].mean == pytest.approx(0.3)  # seed 1 alone has both
    assert other.differences[2].n == 0


def test_runs_without_arms_are_one_each():
    other = dataclasses.replace(made_run(0, {0: 0.3}), workdir=Path("runs/again"))
    curves = compare_runs([made_run(0, {0: 0.1}), made_run(1, {0: 0.2}), other], "heldout/accuracy")
    names = ["grpo, seed 0, runs/grpo0", "grpo, seed 1", "grpo, seed 0, runs/again"]
    assert [curve.arm for curve in curves] == names
    assert [float(curve.values[0, 0]) for curve in curves] == [0.1, 0.2, 0.3]


def test_comparisons_that_cannot_be_made_are_refused():
    with pytest.raises(
        ValueError, match=r"no run has logged 'heldout/acuracy'; did you mean 'heldout/accuracy'"
    ):
        compare_runs(ARMS, "heldout/acuracy")
    with pytest.raises(ValueError, match="baseline='grp' is none of the arms; did you mean 'grpo'"):
        compare_runs(ARMS, "heldout/accuracy", baseline="grp")
    with pytest.raises(ValueError, match=r"arm 'x' has the seeds \[0, 0\]"):
        compare_runs({"x": [made_run(0, {0: 1.0})] * 2}, "heldout/accuracy")
    with pytest.raises(ValueError, match=r"arm 'x' has the seeds \[\]"):
        compare_runs({"x": []}, "heldout/accuracy")


def test_changes_of_weights():
    stacked = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    before = {
        "embedding": jnp.array([[3.0, 4.0]]),
        "layers": {"a": jnp.array(stacked), "zero": jnp.zeros((2, 1))},
    }
    after = {
        "embedding": jnp.array([[4.0, -3.0]]),
        "layers": {"a": jnp.array(stacked).at[1, 0, 0].add(2.0), "zero": jnp.zeros((2, 1)).at[0].set(1.0)},
    }
    changes = {one.path: one for one in diff_params(before, after)}
    assert list(changes) == ["layers/0/zero", "embedding", "layers/1/a", "layers/0/a", "layers/1/zero"]
    assert changes["layers/0/zero"].relative == np.inf
    table = changes["embedding"]
    assert (table.size, table.before, table.after, table.changed) == (2, 5.0, 5.0, 1.0)
    assert table.relative == pytest.approx(2**0.5)
    assert table.cosine == pytest.approx(0.0, abs=1e-6)
    one = changes["layers/1/a"]
    old, new = stacked[1].astype(float), stacked[1] + [[2.0, 0], [0, 0], [0, 0]]
    assert one.relative == pytest.approx(2 / np.linalg.norm(old))
    assert one.changed == pytest.approx(1 / 6)
    assert one.cosine == pytest.approx((old * new).sum() / np.linalg.norm(old) / np.linalg.norm(new))
    assert changes["layers/0/a"].moved == changes["layers/1/zero"].relative == 0
    modules = {one.path: one for one in by_module(list(changes.values()), depth=1)}
    assert modules["layers"].size == 14
    assert modules["layers"].moved == pytest.approx(5**0.5)
    assert modules["layers"].changed == pytest.approx(2 / 14)
    assert [one.path for one in by_module(list(changes.values()))] == ["embedding", "layers/0", "layers/1"]
    with pytest.raises(ValueError, match=r"not of one model: embedding is \(1, 2\) before, nothing after"):
        diff_params(before, {"layers": after["layers"]})
    with pytest.raises(ValueError, match="depth=0"):
        by_module([], depth=0)


def measured(*values: float) -> TokenPerception:
    array = np.array(values, np.float32)
    return TokenPerception(
        array.astype(np.int32), ("x",) * len(values), array, array, array, array, 2 * array
    )


def test_perception_in_numbers():
    profile = perception_profile([measured(0, 0, 0, 4), measured(0, 1), measured()])
    assert profile.tokens.tolist() == [0, 0, 0, 0, 1, 4]
    assert profile.responses[:2].tolist() == [1.0, 0.5]
    assert np.isnan(profile.responses[2])
    assert profile.mean == pytest.approx(5 / 6)
    assert profile.spread == pytest.approx(0.25 / 0.75)
    assert profile.top == pytest.approx({0.05: 0.8, 0.1: 0.8, 0.2: 1.0, 0.4: 1.0})
    differences = np.abs(np.subtract.outer(profile.tokens, profile.tokens)).sum()
    assert profile.gini == pytest.approx(differences / (2 * 36 * 5 / 6))
    places, held = lorenz(profile.tokens)
    assert held.tolist() == pytest.approx([0, 0, 0, 0, 0, 0.2, 1])
    area = np.trapezoid(held, places)
    assert profile.gini == pytest.approx(1 - 2 * area)
    assert perception_profile([measured(1, 2)], "k3").mean == 3


def test_perception_of_nothing():
    assert perception_profile([measured(0, 0)]).gini == 0
    empty = perception_profile([])
    assert np.isnan([empty.mean, empty.spread, empty.percentile(50)]).all()
    with pytest.raises(ValueError, match="estimate='k2'"):
        perception_profile([], "k2")
