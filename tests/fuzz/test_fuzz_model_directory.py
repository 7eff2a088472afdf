"""Hugging Face directories of which one file is damaged, through what reads processor, sizes and weights."""

import json
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import altered, as_json, damaged, json_files
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mmrl.models import checkpoint
from mmrl.models.family import param_specs, read_config
from mmrl.models.processor import load_processor
from mmrl.models.prompts import chat_messages, measure

MODEL = Path(__file__).parents[1] / "data" / "fixtures" / "qwen2_5_vl"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def model(fuzz):
    """A folder with a copy of the tiny model's small files."""
    folder = fuzz.folder / "model"
    folder.mkdir()
    for file in MODEL.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt"):
            shutil.copy(file, folder / file.name)
    return folder


def file_of(folder, name, read):
    path = folder / name
    path.touch()

    def go(data):
        path.write_bytes(data)
        read(folder)

    return go


def open_both(folder):
    """A prompt can be measured, and the weights are described, with sizes that a tower can have."""
    processor = load_processor(folder)
    assert processor.slots > 0
    measure(processor, chat_messages("<image>How many?"), [(300, 400)], "model:0")
    sizes = [param.shape for param in jax.tree.leaves(param_specs(read_config(folder)))]
    assert all(all(type(size) is int and size > 0 for size in shape) for shape in sizes)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "generation_config.json"])
def test_settings_of_a_model(fuzz, model, name):
    fuzz(
        json_files(json.loads((MODEL / name).read_text()), most=2),
        file_of(model, name, open_both),
        names="model",
    )


def test_settings_as_transformers_5_has_them(fuzz, model):
    values = json.loads((MODEL / "config.v5.json").read_text())
    fuzz(json_files(values, most=2), file_of(model, "config.json", open_both), names="model", share=0.5)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "chat_template.json", "special_tokens_map.json"]
)
def test_tokenizer_files(fuzz, model, name):
    values = (
        json.loads((MODEL / name).read_text()) if (MODEL / name).is_file() else {"eos_token": "<|im_end|>"}
    )
    if name == "chat_template.json":
        settings = json.loads((model / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
    fuzz(json_files(values, most=2), file_of(model, name, load_processor), names="model", share=0.4)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_tokenizer_files_of_old(fuzz, model, name):
    (model / "tokenizer.json").unlink()
    fuzz(damaged((MODEL / name).read_bytes()), file_of(model, name, load_processor), names="model", share=0.4)


DESCRIPTION = param_specs(read_config(MODEL))


def load_weights(folder):
    for leaf in jax.tree.leaves(checkpoint.load(folder, DESCRIPTION)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


def with_header(change):
    """The weights, with a header that ``change`` has been done to."""
    data = (MODEL / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = as_json(change(json.loads(data[8 : 8 + length])))
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def headers():
    data = (MODEL / WEIGHTS).read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return altered(header, 2).map(lambda changed: with_header(lambda _: changed))


def test_weights(fuzz, model):
    data = (MODEL / WEIGHTS).read_bytes()
    head = 8 + struct.unpack("<Q", data[:8])[0]
    start = damaged(data[:head]).map(lambda part: part + data[head:])
    lengths = st.sampled_from((0, 1, 2**31, 2**63, 2**64 - 1)).map(
        lambda size: struct.pack("<Q", size) + data[8:]
    )
    go = file_of(model, WEIGHTS, load_weights)
    fuzz(st.one_of(headers(), start, lengths, damaged(data)), go, names="model", share=0.6)


def test_index_of_weights(fuzz, model):
    tensors = load_file(MODEL / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, model / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, part in parts.items() for name in part},
    }
    small = {**index, "weight_map": dict(index["weight_map"])}
    fuzz(json_files(small, most=2), file_of(model, INDEX, load_weights), names="model", share=0.6)
