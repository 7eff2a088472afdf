"""The tiny model's directory: stable words, short prompts, and files that transformers reads."""

import hashlib
import json
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoTokenizer

from mmrl.models.processor import load_processor
from mmrl.models.prompts import chat_messages, encode
from mmrl.models.tiny_model import (
    SPECIAL_TOKENS,
    build_tokenizer,
    model_config,
    write_config,
    write_processor,
    write_tokenizer,
)
from mmrl.tasks.shapes_world import (
    CELL,
    COLOURS,
    DIGITS,
    GRIDS,
    LEVELS,
    NONE,
    PLURALS,
    SHAPES,
    SPLITS,
    cell_name,
    example,
    model_spec,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(path, model_spec())
    write_config(path, model_config(model_spec()))
    write_processor(path, model_spec())
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return AutoTokenizer.from_pretrained(str(directory))


def test_every_word_is_one_token(tokenizer):
    cells = [cell_name(row, column) for row in range(4) for column in range(4)]
    stated = [*cells, *COLOURS, *SHAPES, *PLURALS.values(), *DIGITS, NONE]
    concluded = [*"abcd", *DIGITS, *COLOURS, *SHAPES, *PLURALS.values(), "same"]
    words = [" " + word for word in stated] + concluded + ["<think>", " </think>", " \\boxed{", "}"]
    assert {word: len(tokenizer(word)["input_ids"]) for word in words} == dict.fromkeys(words, 1)


def test_any_text_comes_back(tokenizer):
    for text in (
        "<think> a1 b2 </think> \\boxed{2}",
        "ab12 a5 aa1 B2",
        " 12  x\n\n",
        "naïve 漢字 🙂 {}<think",
        "\\boxed{\\boxed{}}",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompts_and_solutions_are_short(directory, tokenizer):
    processor = load_processor(directory)
    for split in SPLITS:
        for index in range(150):
            record = example(1, split, index)
            encoded = encode(processor, chat_messages(record["problem"]), [record["images"][0]["bytes"]])
            ids = tokenizer(record["solution"])["input_ids"]
            assert len(encoded.tokens) <= 40
            assert len(ids) + 1 <= 11
            assert tokenizer.decode(ids) == record["solution"]


def test_pictures_are_not_resized(directory):
    processor = load_processor(directory)
    for level in LEVELS:
        for index in range(20):
            record = example(0, "train", index, levels=(level,))
            encoded = encode(processor, chat_messages(record["problem"]), [record["images"][0]["bytes"]])
            rows, columns = json.loads(record["facts"])["grid"]
            assert (rows, columns) in GRIDS[level]
            assert (encoded.image_token >= 0).sum() == rows * columns


def test_chat_template(tokenizer):
    conversation = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]},
        {"role": "assistant", "content": "<think> 1 </think> \\boxed{1}"},
    ]
    text = tokenizer.apply_chat_template(conversation[1:2], tokenize=False, add_generation_prompt=True)
    user = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which digit?<|im_end|>\n"
    assert text == user + "<|im_start|>assistant\n"
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    system, answer = (
        "<|im_start|>system\nLook.<|im_end|>\n",
        "<|im_start|>assistant\n<think> 1 </think> \\boxed{1}<|im_end|>\n",
    )
    assert whole == system + user + answer


def test_special_tokens_are_never_split_and_vanish_in_decoding(tokenizer):
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token)["input_ids"]) == 1
    assert tokenizer.decode(tokenizer("a1<|im_end|>")["input_ids"], skip_special_tokens=True) == "a1"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_training_the_tokenizer_again_gives_the_same_file(directory):
    """In a process of its own, so with another hash seed and other threads."""
    code = (
        "from mmrl.models import tiny_model; from mmrl.tasks import shapes_world;"
        "print(tiny_model.build_tokenizer(shapes_world.model_spec()).to_str(), end='')"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == json.loads((directory / "tokenizer.json").read_text())


def test_vocabulary_files_agree(directory, tokenizer):
    vocabulary = json.loads((directory / "vocab.json").read_text())
    assert len(vocabulary) + len(SPECIAL_TOKENS) == len(tokenizer)
    assert vocabulary.items() <= tokenizer.get_vocab().items()
    assert (directory / "merges.txt").read_text().count("\n") >= len(vocabulary) - 256


def test_config_is_qwen2_5_vl(directory, tokenizer):
    config = AutoConfig.from_pretrained(str(directory))
    assert config.model_type == "qwen2_5_vl"
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert config.text_config.vocab_size >= len(tokenizer)
    assert config.text_config.vocab_size % 64 == 0
    assert config.vision_config.patch_size * config.vision_config.spatial_merge_size == CELL


def test_overrides():
    config = model_config(model_spec(), hidden_size=96, vision_config={"depth": 2})
    assert config["hidden_size"] == config["vision_config"]["out_hidden_size"] == 96
    assert config["vision_config"]["depth"] == 2
    with pytest.raises(ValueError, match="no entry 'hidden'"):
        model_config(model_spec(), hidden=96)
    with pytest.raises(ValueError, match="no entry 'layers'"):
        model_config(model_spec(), vision_config={"layers": 2})


def test_the_world_keeps_its_ids(directory):
    """Checkpoints of the shapes world stay readable: its ids and sizes are what they have always been."""

    def digest(value):
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    assert digest(build_tokenizer(model_spec()).get_vocab()) == "f37ddb7f4b96d41b"
    assert digest(model_config(model_spec())) == "3e69257be471b2a8"
    preprocessor = json.loads((directory / "preprocessor_config.json").read_text())
    assert (preprocessor["min_pixels"], preprocessor["max_pixels"]) == (4 * 784, 16 * 784)


def test_tokenizer_size():
    assert 400 <= build_tokenizer(model_spec()).get_vocab_size() <= 600
