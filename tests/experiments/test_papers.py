"""The papers' experiments have the hyper-parameters that the papers' scripts have, and their evaluation."""

import inspect
import re
from pathlib import Path

import pytest

from mmrl.algorithms.recipes import RECIPES
from mmrl.config import resolve
from mmrl.experiment import load
from mmrl.tasks.catalogue import read_registry

FOLDER = Path(__file__).parents[2] / "experiments"

# What all of them share. Sources: config_grpo.yaml, config_papo.yaml and the scripts in examples/ of PAPO
# (MikeWangWZHL/PAPO and the fork of its co-author SStoica12), config.yaml and train_vppo_7b.sh of VPPO
# (huaixuheqing/VPPO-RL); their defaults in verl/workers/actor/config.py: clip_ratio_dual 3, mean over tokens.
SHARED = {
    "rollout.prompts": 384,
    "rollout.max_tokens": 2048,
    "rollout.temperature": 1.0,
    "rollout.top_p": 0.99,
    "train.update_prompts": 128,
    "train.steps": 2 * (38_870 // 384),  # two epochs
    "data.min_pixels": 200_704,
    "data.max_pixels": 1_003_520,
    "optimizer.learning_rate": 1e-6,
    "optimizer.weight_decay": 0.01,
    "optimizer.max_gradient_norm": 1.0,
    "algorithm.dual_clip": 3.0,
    "evaluation.samples": 8,
    "evaluation.temperature": 1.0,
}
GRPO = {
    "rollout.group": 5,
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.3,
    "algorithm.reference_kl": 0.01,
}
GRPO |= {"algorithm.average": "token"}
DAPO = {
    "rollout.group": 5,
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.28,
    "algorithm.reference_kl": 0.0,
}
DAPO |= {"algorithm.filter_low": 0.01, "algorithm.filter_high": 0.99}
MASK = {"corruption.method": "patch_black", "corruption.probability": 0.6}
PAPO_REWARD = {"reward.weights": {"accuracy": 0.9, "format": 0.1}}


def perception(kl: float, entropy: float) -> dict[str, float]:
    """PAPO's terms; the double entropy has one coefficient."""
    names = ("perception_kl", "clean_entropy", "corrupted_entropy")
    return {f"algorithm.{name}": value for name, value in zip(names, (kl, entropy, entropy), strict=True)}


VPPO = {
    **DAPO,
    "rollout.group": 8,
    "algorithm.average": "token",
    "algorithm.token_keep": 0.4,
    "algorithm.shaping_min": 0.9,
    "algorithm.entropy_penalty": 0.06,
    "corruption.method": "patch_black",
    "corruption.probability": 0.5,
    "reward.weights": {"accuracy": 1.0},
}
PUBLISHED = {
    "grpo_qwen2_5_vl_3b": GRPO | PAPO_REWARD,
    "grpo_qwen2_5_vl_7b": GRPO | PAPO_REWARD,
    "dapo_qwen2_5_vl_3b": DAPO | PAPO_REWARD,
    "dapo_qwen2_5_vl_7b": DAPO | PAPO_REWARD,
    "papo_qwen2_5_vl_3b": GRPO | PAPO_REWARD | MASK | perception(0.02, 0.0),
    "papo_qwen2_5_vl_7b": GRPO | PAPO_REWARD | MASK | perception(0.02, 0.05),
    "papo_d_qwen2_5_vl_3b": DAPO | PAPO_REWARD | MASK | perception(0.01, 0.03),
    "papo_d_qwen2_5_vl_7b": DAPO | PAPO_REWARD | MASK | perception(0.01, 0.03),
    "vppo_qwen2_5_vl_3b": VPPO,
    "vppo_qwen2_5_vl_7b": VPPO,
}


def value(config, key: str):
    """Of a resolved config; a hyper-parameter that it leaves out has the default of its recipe."""
    if key.startswith("algorithm."):
        name = key.partition(".")[2]
        given = config.algorithm.get(name)
        recipe = inspect.signature(RECIPES[config.algorithm["name"]]).parameters
        return recipe[name].default if given is None else given
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_are_the_published_ones(name):
    config = resolve(load(str(FOLDER / f"{name}.py")))
    for key, published in (SHARED | PUBLISHED[name]).items():
        assert value(config, key) == published, key


def test_there_is_no_paper_experiment_but_these():
    assert {path.stem for path in FOLDER.glob("*_qwen2_5_vl_*.py")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_says_how_it_is_evaluated_and_the_suite_is_there(name):
    text = (FOLDER / f"{name}.py").read_text()
    suite, arg = re.search(r"--suite=(experiments/suites/\w+\.py):(\w+)", text).groups()
    found = (FOLDER.parent / suite).read_text()
    assert f'"{arg}"' in found
    assert "Not run here" in text


def test_the_benchmarks_of_the_suite_are_in_the_registry():
    """Each as the rows that the papers report on, under the file's name that the suite reads."""
    from experiments.suites import papers

    registry = read_registry()
    for name in {*papers.PAPO, *papers.VPPO}:
        assert any(form.papers and form.data == f"{name}.parquet" for form in registry[name].forms), name


def test_means_that_are_reported_agree_with_their_parts():
    """docs/experiments.md: what is there as the mean of nine, or eight, benchmarks is that."""
    text = (FOLDER.parent / "docs" / "experiments.md").read_text()
    papo = re.findall(r"^\| `\w+` \| .*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert len(papo) == 8
    for general, vision, overall in papo:
        assert abs((5 * float(general) + 4 * float(vision)) / 9 - float(overall)) < 0.02
    vppo = re.findall(r"^\| (?:DAPO|VPPO), 7B ((?:\| [\d.]+ ){9})\|", text, re.MULTILINE)
    assert len(vppo) == 2
    for row in vppo:
        *each, mean = map(float, row.replace("|", " ").split())
        assert abs(sum(each) / 8 - mean) < 0.1
