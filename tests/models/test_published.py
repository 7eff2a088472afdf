"""Sizes of the published models, by the number of weights of the checkpoints."""

import math

import jax
import pytest

from mmrl.models.family import param_specs
from mmrl.models.params import abstract
from mmrl.models.published import PUBLISHED, published


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("3b", 3_754_622_976),
        ("7b", 8_292_166_656),
        ("32b", 33_452_718_336),
        ("72b", 73_410_777_344),
        ("qwen3-vl-4b", 4_437_815_808),
        ("qwen3-vl-8b", 8_767_123_696),
        ("internvl3.5-8b", 8_528_318_464),
    ],
)
def test_number_of_weights(name, weights):
    """As the hub shows for each checkpoint: 3.75, 8.29, 33.5, 73.4, 4.44, 8.77 and 8.53 billion."""
    leaves = jax.tree.leaves(abstract(param_specs(published(name)), "bfloat16"))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_agree_with_each_other(name):
    sizes = published(name)
    assert sum(sizes.mrope_sections) * 2 == sizes.head_dim
    assert sizes.query_heads % sizes.kv_heads == 0
    assert max(sizes.vision.full_layers, default=0) < sizes.vision.layers
    assert all(tap < sizes.vision.layers for tap in sizes.vision.taps)


def test_names_are_read_in_either_case_and_the_others_are_refused():
    assert published("7B") == published("7b")
    with pytest.raises(
        ValueError, match=r"--model-size=8b: published sizes are 3b, 7b, 32b, 72b, qwen3-vl-4b, "
    ):
        published("8b")
