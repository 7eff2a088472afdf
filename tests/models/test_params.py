"""Description, abstract tree and initial weights agree; configs of other models are refused by name."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.models.family import from_hf, param_specs, read_config
from mmrl.models.params import Param, abstract, flatten, initialise, unflatten


def test_description_abstract_and_initialisation_agree(policy):
    description = param_specs(policy.config)
    shapes = abstract(description)
    drawn = initialise(description, 0)
    for tree in (drawn, policy.params):
        assert jax.tree.structure(tree) == jax.tree.structure(shapes)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), tree) == jax.tree.map(
            lambda a: (a.shape, a.dtype), shapes
        )
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(description, jnp.bfloat16))} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_initial_scale(policy):
    description = flatten(param_specs(policy.config))
    drawn = flatten(initialise(param_specs(policy.config), 1))
    for path, param in description.items():
        array = np.asarray(drawn[path])
        if param.init in ("zeros", "ones"):
            np.testing.assert_array_equal(array, float(param.init == "ones"))
        else:
            fan_in = param.shape[-1] if param.init == "embedding" else np.prod(param.hf_shape[1:])
            deviations = 6 / np.sqrt(2 * array.size)  # six standard errors of a standard deviation
            assert array.std() * np.sqrt(fan_in) == pytest.approx(1, abs=deviations), path


def test_initialisation_is_stable(policy):
    """A weight depends on key and path alone: other weights may come and go."""
    description = param_specs(policy.config)
    drawn = flatten(initialise(description, 0))
    tied = flatten(initialise(param_specs(replace(policy.config, tied=True)), 0))
    assert set(drawn) - set(tied) == {"lm_head"}
    for path in tied:
        np.testing.assert_array_equal(drawn[path], tied[path])
    random = [path for path, param in flatten(description).items() if param.init in ("fan_in", "embedding")]
    firsts = {float(drawn[path].reshape(-1)[0]) for path in random}
    assert len(firsts) == len(random)
    assert float(initialise(description, 1)["embedding"][0, 0]) not in firsts


def test_flatten_and_back():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


@pytest.mark.parametrize(
    ("layout", "shape", "stored"),
    [
        ("(h k) d -> d h k", (5, 2, 3), (6, 5)),
        ("v d -> v d", (7, 5), (7, 5)),
        ("(h k) -> h k", (2, 3), (6,)),
        ("d c t -> t c d", (2, 3, 4), (4, 3, 2)),
    ],
)
def test_shape_in_the_checkpoint(layout, shape, stored):
    assert Param(shape, (None,) * len(shape), "w", layout).hf_shape == stored
    stacked = Param((9, *shape), ("layers", *(None,) * len(shape)), "w.{}", layout)
    assert stacked.hf_shape == stored


def test_contradictory_description():
    with pytest.raises(ValueError, match="w: shape, axes and layout"):
        Param((2, 3), (None,), "w", "a b -> a b")
    with pytest.raises(ValueError, match="w: unknown init 'nought'"):
        initialise({"w": Param((2,), (None,), "w", "a -> a", "nought")}, 0)


@pytest.fixture
def raw(policy):
    return json.loads((policy.directory / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"vision_config": None}, "vision_config"),
        ({"rope_scaling": {"mrope_section": [4, 4, 4]}}, "mrope_section"),
        ({"rope_scaling": {}}, "mrope_section"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [4, 6, 6]}}, "yarn"),
    ],
)
def test_config_that_cannot_be_read(raw, change, message):
    changed = {key: value for key, value in (raw | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        from_hf(changed, {}, "some/config.json")
    with pytest.raises(ValueError, match=r"some/config\.json"):
        from_hf(changed, {}, "some/config.json")


@pytest.mark.parametrize("text", ["", "[]", "{", '"a"'])
def test_config_that_is_no_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(tmp_path)


def test_windows_hold_whole_merge_blocks(policy):
    for size, slots in ((56, 16), (70, 16), (112, 64), (0, 4)):
        vision = replace(policy.config.vision, window_size=size)
        assert replace(policy.config, vision=vision).window_slots == slots
