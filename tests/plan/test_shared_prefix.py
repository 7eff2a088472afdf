"""What an update computes when a group shares its prompt, against one prompt for each response."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mmrl.config import resolve
from mmrl.experiment import load
from mmrl.mesh import make_mesh
from mmrl.models.published import published
from mmrl.plan import flops
from mmrl.plan.workload import program, workload

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "papo_qwen2_5_vl_7b.py"
GROUP = 8


def operations(algorithm, group):
    """Of an update on one prompt of 1,200 tokens, an image of 1,024 among them, with 8 responses of 500.

    A row holds a prompt and its ``group`` responses.
    """
    prompts = GROUP // group
    config = resolve(load(str(EXPERIMENT)))
    config = replace(
        config,
        algorithm=algorithm,
        data=replace(config.data, prompt_buckets=(1200,), patch_buckets=(4096,)),
        rollout=replace(config.rollout, prompts=prompts, group=group, max_tokens=500),
        train=replace(config.train, update_prompts=prompts, row_tokens=1200 + group * 500),
    )
    sizes = replace(published("7b"), dtype=jnp.bfloat16, remat="full")
    work = workload(config, sizes, make_mesh({}, jax.devices()[:1]))
    function, arguments, static = program(work, "update")
    traced = function.trace(*arguments, **static)
    trips = work.trips("update")
    return flops.count(traced.jaxpr, trips=trips, expensive_fraction=work.full_attention_fraction).total


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "algorithm",
    [{"name": "grpo"}, {"name": "papo_g", "perception_estimator": "exact"}],
    ids=lambda algorithm: algorithm["name"],
)
def test_update_of_a_7b_model_is_at_most_two_fifths(algorithm):
    shared, repeated = operations(algorithm, GROUP), operations(algorithm, 1)
    language = (1200 + GROUP * 500) / (GROUP * (1200 + 500))  # tokens that the layers need
    assert 1 / GROUP < shared / repeated < 0.4
    assert shared / repeated < language  # the image, a large part of the work, is encoded once
