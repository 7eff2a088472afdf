"""Checkpoints: written and read back unchanged; every kind of damage is its own error, naming the file."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrl.models.checkpoint import load, save
from mmrl.models.family import param_specs, read_config
from mmrl.models.params import flatten

NAME = "model.layers.1.mlp.up_proj.weight"
SMALL = 300_000  # bytes: several shards


@pytest.fixture
def directory(policy, tmp_path):
    """A copy of the model in one float32 file."""
    save(policy.params, param_specs(policy.config), tmp_path / "model", base=policy.directory)
    return tmp_path / "model"


@pytest.fixture
def sharded(policy, tmp_path):
    save(policy.params, param_specs(policy.config), tmp_path / "sharded", policy.directory, shard_bytes=SMALL)
    return tmp_path / "sharded"


def _rewrite(directory, change, file="model.safetensors"):
    tensors = load_file(directory / file)
    change(tensors)
    save_file(tensors, directory / file)


def _equal(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def _fails(directory, policy, *words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        load(directory, param_specs(policy.config))
    for word in (str(directory), *words):
        assert word in str(caught.value)


def test_one_file_round_trip(policy, directory):
    assert read_config(directory) == policy.config
    _equal(load(directory, param_specs(policy.config)), policy.params)


def test_sharded_round_trip(policy, sharded):
    files = sorted(sharded.glob("*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert len(files) > 3
    assert set(index["weight_map"].values()) == {file.name for file in files}
    stored = {name: array for file in files for name, array in load_file(file).items()}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in stored.values())
    for file in files:
        arrays = load_file(file)
        assert len(arrays) == 1 or sum(array.nbytes for array in arrays.values()) <= SMALL
    _equal(load(sharded, param_specs(policy.config)), policy.params)


def test_bfloat16_round_trip(policy, tmp_path):
    """The fixture's weights are exact in bfloat16."""
    save(policy.params, param_specs(policy.config), tmp_path / "half", policy.directory, dtype=jnp.bfloat16)
    arrays = load_file(tmp_path / "half" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _equal(load(tmp_path / "half", param_specs(policy.config)), policy.params)
    half = load(tmp_path / "half", param_specs(policy.config), jnp.bfloat16)
    _equal(half, jax.tree.map(lambda a: a.astype(jnp.bfloat16), policy.params))


def test_tied_model_has_no_lm_head(policy, directory, tmp_path):
    raw = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(raw))
    config = read_config(directory)
    assert config.tied
    _rewrite(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    tied = load(directory, param_specs(config))  # a superfluous lm_head.weight is passed over
    assert "lm_head" not in tied
    save(tied, param_specs(config), tmp_path / "tied", base=directory)
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    _equal(load(tmp_path / "tied", param_specs(config)), tied)


def test_a_head_that_is_tied_and_another(policy, directory):
    """transformers 4 ties it all the same, transformers 5 does not."""
    raw = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"lm_head.weight is not model.embed_tokens.weight"):
        load(directory, param_specs(read_config(directory)))


def test_names_of_transformers_5(policy, directory):
    def nest(tensors):
        for name in list(tensors):
            for flat, nested in (("visual.", "model.visual."), ("model.", "model.language_model.")):
                if name.startswith(flat):
                    tensors[nested + name.removeprefix(flat)] = tensors.pop(name)
                    break

    _rewrite(directory, nest)
    _equal(load(directory, param_specs(policy.config)), policy.params)


def test_both_config_layouts_say_the_same(policy, tmp_path):
    for name in ("config.v5.json", "preprocessor_config.json"):
        shutil.copy(policy.directory / name, tmp_path / name.replace(".v5", ""))
    assert read_config(tmp_path) == policy.config


def test_save_copies_what_is_not_weights(policy, directory):
    kept = {"config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}
    assert kept <= {file.name for file in directory.iterdir()}
    assert not any(file.is_dir() for file in directory.iterdir())


def test_save_replaces_and_leaves_nothing_else(policy, sharded):
    """From several shards to one file, over the directory the model came from."""
    save(policy.params, param_specs(policy.config), sharded, base=sharded)
    assert [file.name for file in sharded.glob("*.safetensors*")] == ["model.safetensors"]
    assert [path.name for path in sharded.parent.iterdir()] == [sharded.name]
    _equal(load(sharded, param_specs(policy.config)), policy.params)


def test_a_killed_save_is_cleared_by_the_next_and_modes_are_ordinary(policy, directory):
    (directory.parent / ".model.part").mkdir()
    (directory.parent / ".model.part" / "model.safetensors").write_text("all weights")
    save(policy.params, param_specs(policy.config), directory, base=policy.directory)
    assert [path.name for path in directory.parent.iterdir()] == ["model"]
    ordinary = directory.stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {ordinary}


def test_failed_save_leaves_the_old_model(policy, directory):
    broken = {**policy.params, "final_norm": None}
    with pytest.raises(Exception):  # noqa: B017, PT011
        save(broken, param_specs(policy.config), directory, base=policy.directory)
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
    _equal(load(directory, param_specs(policy.config)), policy.params)


def test_missing_directory(policy, tmp_path):
    _fails(tmp_path / "nowhere", policy, "no weights")
    with pytest.raises(ValueError, match="nowhere"):
        read_config(tmp_path / "nowhere")


def test_missing_file(policy, directory):
    (directory / "model.safetensors").unlink()
    _fails(directory, policy, "no weights", "model.safetensors")


def test_missing_weight(policy, directory):
    _rewrite(directory, lambda tensors: tensors.pop(NAME))
    _fails(directory, policy, "1 weights are missing", NAME)


def test_unmapped_weight(policy, directory):
    _rewrite(directory, lambda tensors: tensors.update({"model.layers.9.extra.weight": np.zeros(3, "f4")}))
    _fails(directory, policy, "no place", "model.layers.9.extra.weight")


def test_duplicate_weight(policy, directory):
    nested = NAME.replace("model.", "model.language_model.")
    _rewrite(directory, lambda tensors: tensors.update({nested: tensors[NAME].copy()}))
    _fails(directory, policy, "twice", NAME)


def test_wrong_shape(policy, directory):
    _rewrite(directory, lambda tensors: tensors.update({NAME: tensors[NAME].T.copy()}))
    _fails(directory, policy, "model.safetensors", NAME, "(128, 344)", "(344, 128)")


def test_integer_weight(policy, directory):
    _rewrite(directory, lambda tensors: tensors.update({NAME: tensors[NAME].astype(np.int8)}))
    _fails(directory, policy, "model.safetensors", NAME, "int8")


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_truncated_file(policy, directory, kept):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    _fails(directory, policy, "model.safetensors", "damaged or truncated")


def test_missing_shard(policy, sharded):
    name = sorted(sharded.glob("*.safetensors"))[1].name
    (sharded / name).unlink()
    _fails(sharded, policy, name, "missing")


def test_truncated_shard(policy, sharded):
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    _fails(sharded, policy, file.name, "damaged or truncated")


def test_index_names_the_wrong_shard(policy, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    other = next(file for file in index["weight_map"].values() if file != index["weight_map"][NAME])
    index["weight_map"][NAME] = other
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    _fails(sharded, policy, NAME, other)


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "\udcff"]
)
def test_damaged_index(policy, sharded, text):
    (sharded / "model.safetensors.index.json").write_bytes(text.encode(errors="surrogateescape"))
    _fails(sharded, policy, "model.safetensors.index.json")


def test_index_may_not_leave_the_directory(policy, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    file = index["weight_map"][NAME]
    shutil.move(sharded / file, sharded.parent / file)
    index["weight_map"] = {
        name: f"../{file}" if shard == file else shard for name, shard in index["weight_map"].items()
    }
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    _fails(sharded, policy, f"../{file}")
