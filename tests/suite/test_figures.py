"""Figures against numbers worked out by hand, and the estimator against all choices of responses."""

from itertools import combinations

import numpy as np
import pytest

from mmrl.statistics import stratified_interval
from mmrl.suite.figures import NO_CATEGORY, figures, overall, pass_at, tries_of


def rows(**graded):
    return [{"id": name, "accuracy": value} for name, values in graded.items() for value in values]


@pytest.mark.parametrize(
    ("samples", "solved", "tries", "chance"),
    [
        (8, 0, 8, 0.0),
        (8, 8, 1, 1.0),
        (8, 2, 1, 1 / 4),
        (8, 2, 4, 1 - 15 / 70),  # C(6, 4) / C(8, 4)
        (8, 5, 4, 1.0),  # any four have one of the five
        (4, 1, 2, 1 / 2),
    ],
)
def test_pass_at(samples, solved, tries, chance):
    assert pass_at(samples, solved, tries) == pytest.approx(chance, abs=1e-15)


@pytest.mark.parametrize("solved", range(6))
@pytest.mark.parametrize("tries", [1, 2, 3, 5])
def test_pass_at_is_the_mean_over_all_choices(solved, tries):
    responses = [1] * solved + [0] * (5 - solved)
    choices = list(combinations(responses, tries))
    assert pass_at(5, solved, tries) == pytest.approx(np.mean([max(one) for one in choices]), abs=1e-15)


def test_more_tries_than_samples():
    with pytest.raises(ValueError, match="pass@5 of 4 samples"):
        pass_at(4, 1, 5)


def test_tries():
    assert [tries_of(k) for k in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_question_counts_once_however_many_responses_were_graded():
    out = figures({}, rows(a=[1, 1, 1, 1], b=[0, 0], c=[0.5, 0, 0, 1]), 4, {})
    assert out["questions"] == 3
    assert out["accuracy"]["mean"] == pytest.approx((1 + 0 + 0.375) / 3)
    assert out["accuracy"]["low"] < out["accuracy"]["mean"] < out["accuracy"]["high"]
    assert out["pass"]["1"]["mean"] == pytest.approx((1 + 0 + 1 / 4) / 3)  # half right is not right
    assert out["pass"]["2"]["mean"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert out["pass"]["4"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}  # b has two responses only
    assert "masked" not in out
    assert "categories" not in out


def test_categories():
    graded = rows(a=[1, 0], b=[0, 0], c=[1, 1])
    out = figures({}, graded, 2, {"a": "count", "b": "count"}, masked=rows(a=[0, 0], b=[0, 1], c=[1, 1]))
    count, other = out["categories"]["count"], out["categories"][NO_CATEGORY]
    assert list(out["categories"]) == [NO_CATEGORY, "count"]
    assert (count["questions"], count["accuracy"]["mean"], count["pass"]["2"]["mean"]) == (2, 0.25, 0.5)
    assert count["masked"]["difference"]["mean"] == 0.0
    assert (other["questions"], other["accuracy"]["mean"]) == (1, 1.0)


def test_what_the_image_gives_is_paired():
    """Differences of pairs have the narrower interval, as hard questions are hard with and without."""
    seen = rows(**{f"q{k}": [k % 2, k % 2] for k in range(40)})
    hidden = rows(**{f"q{k}": [k % 2, 0] for k in range(40)}, unseen=[1, 1])
    masked = figures({}, seen, 2, {}, masked=hidden)["masked"]
    assert masked["accuracy"] | {"low": 0, "high": 0} == {"mean": 0.25, "low": 0, "high": 0, "n": 40}
    gain = masked["difference"]
    assert (gain["mean"], gain["n"]) == (0.25, 40)
    alone = figures({}, seen, 2, {})["accuracy"]
    assert gain["high"] - gain["low"] < 0.6 * (alone["high"] - alone["low"])


def test_other_figures_are_passed_on():
    values = {"accuracy": 0.5, "reward": 0.5, "format": 0.9, "length": 7.0, "truncated": 0.1, "skipped": 2.0}
    out = figures({**values, "invalid": 1.0}, rows(a=[1]), 1, {})
    assert out["components"] == {"format": 0.9}
    assert [out[name] for name in ("length", "truncated", "skipped", "invalid")] == [7.0, 0.1, 2.0, 1.0]


def test_the_same_responses_give_the_same_row():
    graded = rows(**{f"q{k}": [k % 3 == 0, k % 2] for k in range(30)})
    assert figures({}, graded, 2, {}) == figures({}, graded, 2, {})


def test_overall_weighs_benchmarks_alike():
    large, small = rows(**{f"q{k}": [1] for k in range(30)}), rows(a=[0], b=[1])
    out = overall([large, small], [large, rows(a=[0], b=[0])])
    assert out["benchmarks"] == 2
    assert out["accuracy"]["mean"] == 0.75
    assert (out["accuracy"]["low"], out["accuracy"]["high"]) == (0.5, 1.0)
    assert out["masked"]["difference"]["mean"] == 0.25
    assert "masked" not in overall([large, small], [large])


def test_stratified_interval_is_that_of_a_sum_of_variances():
    rng = np.random.default_rng(1)
    groups = [rng.normal(0, 1, 400), rng.normal(3, 2, 100)]
    found = stratified_interval(groups, rng, draws=4000)
    half = 1.96 * np.sqrt(sum(one.var() / len(one) for one in groups)) / 2
    assert found.mean == pytest.approx(np.mean([one.mean() for one in groups]))
    assert found.half == pytest.approx(half, rel=0.06)
    assert np.isnan(stratified_interval([], rng).mean)
    assert np.isnan(stratified_interval([groups[0], np.array([])], rng).mean)
