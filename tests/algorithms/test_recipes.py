"""Recipes: what they need, their names of hyper-parameters, and errors for impossible ones."""

import inspect
from pathlib import Path

import jax.numpy as jnp
import pytest

from mmrl.algorithms.passes import CORRUPTED, CORRUPTED_LOGPROB, ENTROPY, PERCEPTION
from mmrl.algorithms.recipes import RECIPES

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"


@pytest.mark.parametrize("name", RECIPES)
def test_hyper_parameters_are_typed_and_have_defaults(name):
    for parameter in inspect.signature(RECIPES[name]).parameters.values():
        assert parameter.annotation in (float, int, bool, str), parameter.name
        assert type(parameter.default) is parameter.annotation, parameter.name


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_names_source_and_differences(name):
    text = RECIPES[name].__doc__
    assert "20" in text  # a year
    assert "Differ" in text


@pytest.mark.parametrize("name", RECIPES)
def test_the_manual_lists_what_the_recipe_needs(name):
    (row,) = (line for line in MANUAL.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert {cell.strip("` ") for cell in cells[6].split(",") if cell} == set(map(str, RECIPES[name]().needs))


@pytest.mark.parametrize(
    ("name", "hyper_parameters", "needs", "live", "differentiated"),
    [
        ("grpo", dict(reference_kl=0.0), set(), set(), set()),
        ("papo_d", dict(corrupted_branch="live"), set(), {CORRUPTED_LOGPROB}, {CORRUPTED}),
        ("papo_d", dict(perception_estimator="exact"), set(), {PERCEPTION, CORRUPTED_LOGPROB}, set()),
        ("papo_d", dict(perception_estimator="exact", corrupted_entropy=0.0), set(), {PERCEPTION}, set()),
        (
            "papo_d",
            dict(perception_estimator="exact", corrupted_branch="live"),
            set(),
            {PERCEPTION, CORRUPTED_LOGPROB},
            {CORRUPTED},
        ),
        ("papo_d", dict(full_entropy=0.1), {CORRUPTED_LOGPROB}, {ENTROPY}, set()),
        ("papo_d", dict(perception_kl=0.0, clean_entropy=0.0, corrupted_entropy=0.0), set(), set(), set()),
        ("vppo", dict(perception_estimator="exact"), {PERCEPTION}, set(), set()),
        ("vppo", dict(entropy_keep=0.2), {CORRUPTED_LOGPROB, ENTROPY}, set(), set()),
        ("vppo", dict(token_keep=0.0, entropy_keep=0.2, shaping_min=1.0), {ENTROPY}, set(), set()),
        ("vppo", dict(token_keep=1.0, shaping_min=1.0), set(), set(), set()),
    ],
)
def test_only_the_scores_that_are_used_are_asked_for(name, hyper_parameters, needs, live, differentiated):
    algorithm = RECIPES[name](**hyper_parameters)
    assert algorithm.needs == needs
    assert algorithm.live == live
    assert algorithm.differentiated == differentiated


@pytest.mark.parametrize(
    ("name", "hyper_parameters", "message"),
    [
        ("grpo", dict(clip_low=1.5), "clip_low"),
        ("grpo", dict(clip_high=-0.1), "clip_high"),
        ("grpo", dict(dual_clip=0.5), "dual_clip"),
        ("grpo", dict(reference_kl=-1.0), "grpo: reference_kl"),
        ("grpo", dict(average="tokens"), "grpo: average"),
        ("dr_grpo", dict(max_length=0), "length"),
        ("dapo", dict(filter_low=0.9, filter_high=0.1), "dapo: filter_low"),
        ("dapo", dict(overlong_cache=30000), "cache"),
        ("papo_g", dict(perception_estimator="k1"), "papo_g: perception_estimator"),
        ("papo_d", dict(corrupted_branch="both"), "papo_d: corrupted_branch"),
        ("papo_g", dict(perception_apply_to="some"), "apply_to"),
        ("papo_g", dict(perception_top_fraction=1.5), "perception_top_fraction"),
        ("papo_g", dict(perception_kl=0.0, perception_kl_anneal=0.5), "perception_kl_anneal"),
        ("papo_g", dict(perception_kl_anneal=1.5), "fraction"),
        ("vppo", dict(perception_estimator="full"), "vppo: perception_estimator"),
        ("vppo", dict(token_keep=0.0), "token_keep"),
        ("vppo", dict(shaping_min=1.2), "shaping_min"),
        ("vppo", dict(entropy_penalty=-0.1), "vppo: entropy_penalty"),
    ],
)
def test_impossible_hyper_parameters_are_named(name, hyper_parameters, message):
    with pytest.raises(ValueError, match=message):
        RECIPES[name](**hyper_parameters)


def test_annealing_moves_perception_and_both_entropies_together():
    fixed, moving = RECIPES["papo_g"](), RECIPES["papo_g"](perception_kl_end=0.01, perception_kl_anneal=0.5)
    for step, factor in ((0, 1.0), (25, 0.75), (50, 0.5), (80, 0.5)):
        now = jnp.int32(step)
        for before, after in zip(fixed.penalties, moving.penalties, strict=True):
            expected = float(before.coefficient(now, 100)) * (
                1.0 if before.name == "reference_kl" else factor
            )
            assert float(after.coefficient(now, 100)) == pytest.approx(expected, rel=1e-6), before.name
