"""Reading a model directory: both layouts of its files, and each way it can be wrong."""

import json
import shutil
from pathlib import Path

import pytest

from mmrl.models.processor import load_processor

MODEL = Path(__file__).parent.parent / "data" / "fixtures" / "qwen2_5_vl"


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture without weights and references."""
    for file in MODEL.iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copy(file, tmp_path / file.name)
    return tmp_path


def _edit(path, **changes):
    """Set keys of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def test_fixture():
    processor = load_processor(MODEL)
    assert (processor.image.min_pixels, processor.image.max_pixels) == (3136, 50176)
    assert (processor.window, processor.slots) == (2, 16)
    assert processor.image_pad == 1812
    assert processor.placeholders == (1809, 1810, 1811, 1812, 1813)
    assert (processor.eos, processor.stop, processor.pad) == (1802, (1802, 1800), 1800)


def test_layout_of_transformers_5(folder):
    hub = load_processor(folder)
    (folder / "config.v5.json").rename(folder / "config.json")
    size = {"shortest_edge": 3136, "longest_edge": 50176}
    _edit(folder / "preprocessor_config.json", min_pixels=None, max_pixels=None, size=size)
    new = load_processor(folder)
    assert new.image == hub.image
    assert (new.window, new.image_pad, new.stop) == (hub.window, hub.image_pad, hub.stop)
    raw = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": raw}))
    assert load_processor(folder).image == hub.image


def test_template_of_its_own_file(folder):
    text = load_processor(folder).tokenizer.chat_template
    _edit(folder / "tokenizer_config.json", chat_template=None)
    assert load_processor(folder).tokenizer.chat_template == text


def test_without_generation_config(folder):
    (folder / "generation_config.json").unlink()
    assert load_processor(folder).stop == (1802,)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json holds no JSON object"),
        (lambda d: _edit(d / "config.json", model_type="llava"), "model_type is 'llava'"),
        (lambda d: (d / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda d: [(d / n).unlink() for n in ("tokenizer.json", "vocab.json")], "holds no tokenizer"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
        (lambda d: _edit(d / "config.json", vocab_size=1800), "vocabulary mismatch: .* up to 1821, .* 1800"),
        (lambda d: _edit(d / "config.json", image_token_id=None), "image_token_id is absent"),
        (lambda d: _edit(d / "config.json", image_token_id=151655), "image_token_id is absent or not"),
        (lambda d: _edit(d / "preprocessor_config.json", patch_size=16), r"\[16, 2, 2\] are not those"),
        (lambda d: _edit(d / "preprocessor_config.json", do_normalize=False), "do_normalize is false"),
        (lambda d: _edit(d / "preprocessor_config.json", resample=2), "resample 3"),
        (lambda d: _edit(d / "preprocessor_config.json", min_pixels=60000), "leave no size"),
    ],
)
def test_broken_directory(folder, break_it, message):
    break_it(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_processor(folder)
    assert str(folder) in str(error.value)


def test_no_chat_template(folder):
    _edit(folder / "tokenizer_config.json", chat_template=None)
    (folder / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        load_processor(folder)


def test_missing_directory(tmp_path):
    with pytest.raises(ValueError, match="none does not exist"):
        load_processor(tmp_path / "none")
