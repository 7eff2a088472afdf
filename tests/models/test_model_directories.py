"""Whole model directories: which file wins, and that every damage is one line that names the file.

Of mixtures the right answer is that of transformers 5.23: model.safetensors first, then the index with all
that its shards hold, and an adapter on top.
"""

import json
import random
import shutil
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrl.models import chat_template
from mmrl.models.chat_template import attach_chat_template
from mmrl.models.checkpoint import check, load
from mmrl.models.family import param_specs, read_config
from mmrl.models.processor import load_processor

MODEL = Path(__file__).parent.parent / "data" / "fixtures" / "qwen2_5_vl"
FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "model.safetensors",
)
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"
PT = {"format": "pt"}
WEIGHTS = load_file(MODEL / "model.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture's model."""
    directory = tmp_path / "model"
    directory.mkdir()
    for name in FILES:
        shutil.copyfile(MODEL / name, directory / name)
    return directory


def read(directory):
    """All that opening a model reads of its directory."""
    load_processor(directory)
    return load(directory, param_specs(read_config(directory)))


def refused(directory, *words):
    """That reading fails, in one line that names the directory and ``words``."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        read(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 900
    for word in (str(directory), *words):
        assert word in message


def complaint(function, directory):
    """What the ValueError says that ``function`` raises; "" if it raises none."""
    try:
        function(directory)
    except ValueError as error:
        return str(error)
    return ""


def edit(directory, name, **changes):
    value = json.loads((directory / name).read_text())
    (directory / name).write_text(json.dumps(value | changes))


def save(tensors, path):
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata=PT)


def shard(directory, scale=1.0):
    """The weights, times ``scale``, as two shards with their index; model.safetensors stays."""
    names = list(WEIGHTS)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    index = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save({name: WEIGHTS[name] * WEIGHTS[name].dtype.type(scale) for name in part}, directory / file)
        index |= dict.fromkeys(part, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def embedding(directory):
    return np.asarray(read(directory)["embedding"], np.float32)


def test_a_stale_index_beside_newer_weights(folder):
    """Old shards there, or gone: model.safetensors is read, as by transformers."""
    shard(folder)
    newer = {name: array * array.dtype.type(3) for name, array in WEIGHTS.items()}
    save(newer, folder / "model.safetensors")
    want = newer[EMBEDDING].astype(np.float32)
    np.testing.assert_array_equal(embedding(folder), want)
    for file in folder.glob("model-0*"):
        file.unlink()
    np.testing.assert_array_equal(embedding(folder), want)


def test_shards_alone(folder):
    shard(folder, scale=3)
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(embedding(folder), (WEIGHTS[EMBEDDING] * 3).astype(np.float32))
    save({"other": np.zeros(3, np.float32)}, folder / "model-00003-of-00003.safetensors")  # not listed
    (folder / "._model.safetensors").write_bytes(b"\0\5\x16\7")
    np.testing.assert_array_equal(embedding(folder), (WEIGHTS[EMBEDDING] * 3).astype(np.float32))


def test_shards_of_two_checkpoints(folder):
    shard(folder)
    (folder / "model.safetensors").unlink()
    second = folder / "model-00002-of-00002.safetensors"
    held = load_file(second)
    save(held | {EMBEDDING: WEIGHTS[EMBEDDING]}, second)
    refused(folder, EMBEDDING, "is there twice", "model-00001-of-00002", "model-00002-of-00002")
    save(held | {"model.layers.7.extra.weight": np.zeros(3, np.float32)}, second)
    refused(folder, "model-00002-of-00002.safetensors", INDEX, "model.layers.7.extra.weight")


def _only(name, content=b"x"):
    def change(directory):
        (directory / "model.safetensors").unlink()
        if name:
            (directory / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_only(""), "no weights"),
        (_only("pytorch_model.bin"), "pytorch_model.bin is PyTorch weights"),
        (_only("pytorch_model.bin.index.json"), "no weights"),
        (_only("adapter_model.safetensors"), "adapter_model.safetensors is an adapter"),
        (_only("adapter_config.json", b"{}"), "adapter_config.json is an adapter"),
        (_only("qwen-q4_k_m.gguf"), "qwen-q4_k_m.gguf is weights in llama.cpp's format"),
        (_only("tf_model.h5"), "tf_model.h5 is weights of another library"),
        (_only("flax_model.msgpack"), "weights of another library"),
        (_only("model-00001-of-00002.safetensors"), "shards without model.safetensors.index.json"),
        (_only("consolidated.safetensors"), "rename it to model.safetensors"),
        (_only("model.fp16.safetensors"), "rename it to model.safetensors"),
        (_only("._model.safetensors"), "no weights"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "model.safetensors and adapter_config.json"),
        (
            _only("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
            "model.safetensors is a Git LFS pointer",
        ),
        (
            lambda d: [(d / "model.safetensors").unlink(), (d / "model.safetensors").symlink_to("blob")],
            "model.safetensors is a link to a file that is not there",
        ),
        (lambda d: edit(d, "config.json", transformers_weights="other.safetensors"), "transformers_weights"),
        (
            lambda d: edit(d, "config.json", quantization_config={"quant_method": "fp8"}),
            "quantization_config",
        ),
    ],
)
def test_no_weights_that_are_read(folder, change, words):
    change(folder)
    refused(folder, words)


def test_the_layout_of_the_hubs_cache(folder, tmp_path):
    """Links into a folder of blobs."""
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(tmp_path / f"blob{number}")
        file.symlink_to(f"../blob{number}")
    np.testing.assert_array_equal(embedding(folder), WEIGHTS[EMBEDDING].astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_that_are_no_numbers(folder, kind, value):
    tensors = {name: array.astype(kind) for name, array in WEIGHTS.items()}
    tensors[NORM].reshape(-1)[-1] = value
    save(tensors, folder / "model.safetensors")
    refused(folder, "model.safetensors", NORM, "NaN or infinity")


def test_weights_beyond_what_is_computed_in(folder):
    """float32 holds it; bfloat16, or a float64 read as float32, does not. Large numbers that fit are read."""
    for kind, value in ((np.float32, 3.4e38), (np.float64, 1e300)):
        save(WEIGHTS | {NORM: np.full(WEIGHTS[NORM].shape, value, kind)}, folder / "model.safetensors")
        refused(folder, NORM)
    save(WEIGHTS | {NORM: np.full(WEIGHTS[NORM].shape, -3.38e38, np.float32)}, folder / "model.safetensors")
    read(folder)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
        (ml_dtypes.float8_e5m2, "float8_e5m2"),
        (np.int8, "int8"),
        (np.uint8, "uint8"),
        (np.int64, "int64"),
        (np.bool_, "bool"),
    ],
)
def test_weights_of_other_types(folder, kind, said):
    projections = {name: array.astype(kind) for name, array in WEIGHTS.items() if "proj.weight" in name}
    save(WEIGHTS | projections, folder / "model.safetensors")
    refused(folder, "model.safetensors", "q_proj.weight" if "q_proj" in said else "proj", said, "bfloat16")


def test_text_config_null(folder):
    """The flat layout, as transformers has it."""
    edit(folder, "config.json", text_config=None)
    assert read_config(folder) == read_config(MODEL)


def test_keys_that_are_absent(folder):
    """They have the value that transformers gives them."""
    raw = json.loads((folder / "config.json").read_text())
    for key in ("rms_norm_eps", "rope_theta", "tie_word_embeddings"):
        del raw[key]
    del raw["vision_config"]["fullatt_block_indexes"]
    raw["num_key_value_heads"] = None
    (folder / "config.json").write_text(json.dumps(raw))
    config = read_config(folder)
    assert (config.norm_eps, config.rope_theta, config.tied) == (1e-5, 1e6, False)
    assert (config.vision.full_attention_layers, config.kv_heads) == ((7, 15, 23, 31), 4)


def test_pixels_as_processor_config_says(folder):
    """Its entry comes before preprocessor_config.json, for the model as for the images."""
    raw = json.loads((folder / "preprocessor_config.json").read_text())
    new = raw | {"image_mean": [0.5, 0.5, 0.25], "max_pixels": 12544}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": new}))
    assert read_config(folder).vision.image_mean == load_processor(folder).image.mean == (0.5, 0.5, 0.25)
    assert load_processor(folder).image.max_pixels == 12544


WRONG = ("7", -1, 0, 10**9, 10**400, 1.5, [3], {}, None, True, float("inf"), [], "")
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "rms_norm_eps",
    "rope_theta",
    "image_token_id",
    "vision_end_token_id",
)
VISION = ("depth", "hidden_size", "intermediate_size", "num_heads", "window_size", "patch_size")


def _fits(key, value):
    """Values among the wrong ones that a key may have."""
    return key in ("rms_norm_eps", "rope_theta") and value in (10**9, 1.5)


@pytest.mark.parametrize("key", SIZES)
def test_wrong_values_of_the_config(folder, key):
    for value in WRONG:
        if not _fits(key, value):
            shutil.copyfile(MODEL / "config.json", folder / "config.json")
            edit(folder, "config.json", **{key: value})
            refused(folder, "config.json")


@pytest.mark.parametrize("key", VISION)
def test_wrong_values_of_the_vision_config(folder, key):
    vision = json.loads((MODEL / "config.json").read_text())["vision_config"]
    for value in WRONG:
        edit(folder, "config.json", vision_config=vision | {key: value})
        refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": 3},
        {"text_config": {}},
        {"text_config": []},
        {"vision_config": None},
        {"vision_config": "none"},
        {"vision_config": {}},
        {"model_type": ["qwen2_5_vl"]},
        {"model_type": None},
        {"rope_scaling": None},
        {"rope_scaling": "mrope"},
        {"rope_scaling": {"type": "mrope", "mrope_section": "466"}},
        {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6]}},
        {"rope_scaling": {"type": "mrope", "mrope_section": [4, "6", 6]}},
        {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 7]}},
        {"rope_scaling": {"type": "yarn", "mrope_section": [4, 6, 6]}},
        {"rope_scaling": {"type": {}, "mrope_section": [4, 6, 6]}},
        {"tie_word_embeddings": "yes"},
        {"use_sliding_window": True},
        {"layer_types": ["sliding_attention"]},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": "2"},
        {"head_dim": -32},
        {"hidden_act": 3},
        {"vision_token_id": 99999},
        {"compression_config": {"format": "pack-quantized"}},
    ],
)
def test_configs_that_are_refused(folder, changes):
    edit(folder, "config.json", **changes)
    refused(folder, "config.json")


@pytest.mark.parametrize(
    "layers", [1, 4, 1000]
)  # of 3: weights are left over, or missing; found before any is read
def test_a_config_of_other_weights(folder, layers):
    edit(folder, "config.json", num_hidden_layers=layers)
    with pytest.raises(ValueError, match=r"does config\.json belong to these files"):
        check(folder, param_specs(read_config(folder)))


def test_a_config_of_absurd_sizes_allocates_nothing(folder):
    edit(folder, "config.json", hidden_size=1 << 20, intermediate_size=1 << 20, vocab_size=1 << 24)
    start = time.monotonic()
    refused(folder)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("generation_config.json", {"eos_token_id": [999999]}),
        ("generation_config.json", {"eos_token_id": -1}),
        ("generation_config.json", {"eos_token_id": "<|im_end|>"}),
        ("generation_config.json", {"eos_token_id": [1802, None]}),
        ("generation_config.json", {"eos_token_id": {"a": 1}}),
        ("generation_config.json", {"eos_token_id": True}),
        ("preprocessor_config.json", {"image_mean": 0.5}),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0]}),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, "1"]}),
        ("preprocessor_config.json", {"size": 224}),
        ("preprocessor_config.json", {"min_pixels": "3136"}),
        ("preprocessor_config.json", {"max_pixels": -5}),
        ("preprocessor_config.json", {"max_pixels": 1e9}),
        ("preprocessor_config.json", {"patch_size": None}),
        ("preprocessor_config.json", {"merge_size": "2"}),
        ("preprocessor_config.json", {"rescale_factor": None}),
        ("preprocessor_config.json", {"rescale_factor": "1/255"}),
        ("preprocessor_config.json", {"resample": [3]}),
    ],
)
def test_wrong_values_of_other_files(folder, name, changes):
    edit(folder, name, **changes)
    refused(folder, name)


TEMPLATES = {
    "cut short": "{% for m in messages %}{{ m.content",
    "another language": "{{ messages | map(x => x) }}",
    "a tag left open": "{% if true %}x",
    "an unknown filter": "{{ messages | shout }}",
    "a huge range": "{% for i in range(10000000000) %}x{% endfor %}",
    "a large range": "{% for i in range(90000) %}{% for j in range(90000) %}x{% endfor %}{% endfor %}",
    "a power": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "a product": "{{ 'x' * 100000 * 100000 }}",
    "a loop in small steps": "{% macro f(n) %}{% for i in range(9) %}{{ f(n - 1) if n }}{% endfor %}"
    "{% endmacro %}{{ f(30) }}",
    "no end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling": "{% set s = namespace(x='xxxxxxxxxxxxxxxx') %}"
    "{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
    "long": "{% for i in range(50000) %}xxxxxxxxxx{% endfor %}",
    "raising": "{{ raise_exception('Only text is supported!') }}",
    "a missing attribute": "{{ messages[0].nothing.at.all }}",
    "a division": "{{ 1 / 0 }}",
    "out of the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "out by attr": "{{ messages | attr('__class__') | attr('__base__') }}{{ messages.append(1) }}",
    "out by a global": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "an import": "{% import 'os' as os %}",
    "an include": "{% include '/etc/passwd' %}",
    "a number": 7,
    "a list of nothing": [],
    "of another kind": [{"name": "rag", "template": "x"}],
    "a list of numbers": [{"name": "default", "template": 7}],
    "too much of it": "x" * 60000,
    "empty": "",
    "without the conversation": "hello",
    "with roles alone": "{% for m in messages %}{{ m.role }}{% endfor %}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_that_do_not_work(folder, tokenizer, kind, monkeypatch):
    monkeypatch.setattr(chat_template, "_MOST_STEPS", 20_000)  # each costs more where types are checked
    edit(folder, "chat_template.json", chat_template=TEMPLATES[kind])
    with pytest.raises(ValueError, match=r"chat_template\.json: the chat template does not work") as at:
        attach_chat_template(tokenizer, folder, images=True)
    assert "\n" not in str(at.value)


def test_a_template_of_the_tokenizer_that_does_not_work(folder):
    (folder / "chat_template.json").unlink()
    edit(folder, "tokenizer_config.json", chat_template=TEMPLATES["cut short"])
    refused(folder, "tokenizer_config.json: the chat template does not work in line 1")
    (folder / "chat_template.jinja").write_text(TEMPLATES["raising"])
    refused(folder, "chat_template.jinja: the chat template does not work: Only text is supported!")


def test_a_template_that_is_not_taken_is_damaged(folder):
    edit(folder, "tokenizer_config.json", chat_template=TEMPLATES["cut short"])
    refused(folder, "tokenizer_config.json: the chat template does not work in line 1")


def test_the_template_of_the_processor_wins(folder):
    """Where tokenizer and processor have one each, as in transformers."""
    mine, tokenizers, processors = (
        "{% for m in messages %}" + name + "{{ m.content }}{% endfor %}" for name in ("a", "b", "c")
    )
    edit(folder, "tokenizer_config.json", chat_template=tokenizers)
    edit(folder, "chat_template.json", chat_template=mine)
    assert load_processor(folder).tokenizer.chat_template == mine
    (folder / "processor_config.json").write_text(json.dumps({"chat_template": processors}))
    assert load_processor(folder).tokenizer.chat_template == processors


@pytest.fixture(scope="module")
def tokenizer():
    return load_processor(MODEL).tokenizer


def _damages(data: bytes, seed: int):
    """Ways in which the bytes of a file go wrong."""
    draw = random.Random(seed)
    middle = len(data) // 2
    yield "empty", b""
    yield "cut", data[:middle]
    yield "cut by one", data[:-1]
    yield "zeroes", bytes(len(data))
    yield "html", b"<!DOCTYPE html><html>Sign in</html>"
    yield "pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    yield "null", b"null"
    yield "a list", b"[]"
    yield "no keys", b"{}"
    yield "deep", b'{"a":' * 100_000
    yield "not UTF-8", data[:middle] + b"\xff\xfe" + data[middle:]
    yield "twice", data + data
    for _ in range(4):
        spoilt = bytearray(data)
        for _ in range(draw.choice((1, 3, 30))):
            spoilt[draw.randrange(min(len(data), draw.choice((100, len(data)))))] = draw.randrange(256)
        yield "spoilt", bytes(spoilt)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("vocab.json", "merges.txt")])
def test_no_damage_gives_a_traceback(folder, name):
    """Either it is read, or it is one line that names the directory: nothing else is ever raised."""
    data, counted = (folder / name).read_bytes(), 0
    for what, damaged in _damages(data, seed=1):
        (folder / name).write_bytes(damaged)
        said = complaint(read, folder)
        counted += bool(said)
        assert not said or (str(folder) in said and "\n" not in said), what
    assert counted >= 5


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
    ],
)
def test_no_value_of_a_json_file_gives_a_traceback(folder, name):
    """Each value, at any depth, becomes one of another kind."""
    whole = json.loads((folder / name).read_text())
    draw = random.Random(name)
    paths = list(_paths(whole))
    draw.shuffle(paths)
    for path in paths[:12]:
        for value in draw.sample(WRONG, 2):
            (folder / name).write_text(json.dumps(_with(whole, path, value)))
            said = complaint(load_processor, folder)
            assert not said or (str(folder) in said and "\n" not in said), (path, value)


def _paths(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _with(whole, path, value):
    copied = json.loads(json.dumps(whole))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copied


def test_a_name_that_is_no_folder(folder, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_processor(folder / "config.json")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "config.json")
