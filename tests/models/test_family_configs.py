"""Configs of every family with a value that is none: read, or refused in one line; never anything else."""

import copy
import json

import pytest

from mmrl.models.family import FAMILIES, from_hf, param_specs

WRONG = ("7", -1, 0, 10**9, 10**400, 1.5, [3], {}, None, True, float("inf"), [], "", ["x"], {"type": "yarn"})
UNSUPPORTED = {
    "qwen3": {"attention_bias": True},
    "llama": {"mlp_bias": True},
    "qwen2_vl": {"vision_config": {"hidden_act": "gelu"}},
    "qwen3_vl": {"text_config": {"rope_scaling": {"rope_type": "yarn", "mrope_section": [8, 8, 8]}}},
    "internvl": {"text_config": {"use_sliding_window": True}},
    "qwen3_vl_moe": {"text_config": {"use_sliding_window": True}},
}


def read(fixtures_dir, family):
    return json.loads((fixtures_dir / family / "config.json").read_text())


def paths(tree, prefix=()):
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


def replaced(tree, path, value):
    changed = copy.deepcopy(tree)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize("family", sorted(set(UNSUPPORTED)))
def test_wrong_values(fixtures_dir, family):
    raw, refused = read(fixtures_dir, family), []
    for path in paths(raw):
        for value in WRONG:
            try:
                param_specs(from_hf(replaced(raw, path, value), {}))
            except ValueError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert [line for line in refused if "\n" in line or len(line) > 300] == []


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_options_that_are_not_computed_are_named(fixtures_dir, family):
    raw = read(fixtures_dir, family)
    for key, value in UNSUPPORTED[family].items():
        changed = raw | {key: raw[key] | value if isinstance(value, dict) else value}
        named = next(iter(value)) if isinstance(value, dict) else key
        with pytest.raises(ValueError, match=named.replace("rope_scaling", "rope type")):
            from_hf(changed, {})


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"model_type is 'gpt2'; .*'qwen2_vl'.*'llama'") as at:
        from_hf({"model_type": "gpt2"}, {})
    assert all(family in str(at.value) for family in FAMILIES)
