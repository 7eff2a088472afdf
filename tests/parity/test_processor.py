"""The processor against transformers: stored references of every model at hand, and live."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from references import conversations, stored_pixels
from transformers import AutoImageProcessor

from mmrl.models.family import FAMILIES
from mmrl.models.images import pixel_values
from mmrl.models.processor import load_processor
from mmrl.models.prompts import collate, encode

FIXTURES = Path(os.environ.get("MMRL_FIXTURES_DIR") or Path(__file__).parent.parent / "data" / "fixtures")


def _models():
    configs = sorted(FIXTURES.glob("*/config.json"))
    return [c.parent for c in configs if json.loads(c.read_text()).get("model_type") in FAMILIES]


def _cases():
    for model in _models():
        for name, case in json.loads((model / "ref" / "index.json").read_text()).items():
            if not name.startswith("_"):
                yield pytest.param(model, name, case, id=f"{model.name}-{name}")


def _open(name):
    return Image.open(FIXTURES / "images" / f"{name}.png")


def _conversations(case, processor):
    """Each row's conversation and its images."""
    for turns, names in conversations(case, processor):
        yield turns, [_open(name) for name in names]


def test_fixtures_are_there():
    assert _models()


@pytest.mark.parametrize(("model_dir", "name", "case"), _cases())
def test_pixel_values_bit_exact(model_dir, name, case):
    spec = load_processor(model_dir).image
    reference = np.load(model_dir / "ref" / f"{name}.npz")
    images = [_open(image) for image in case["images"]]
    assert ("pixel_values" in reference) == bool(images)
    if images:
        ours = np.concatenate([pixel_values(spec.cut(image, name), spec) for image in images])
        np.testing.assert_array_equal(ours, stored_pixels(reference, spec))
        grids = [grid for image in images for grid in spec.shown((image.height, image.width)).grids]
        if "image_grid_thw" in reference:
            np.testing.assert_array_equal([[1, *grid] for grid in grids], reference["image_grid_thw"])
        assert len(ours) == sum(rows * columns for rows, columns in grids)


@pytest.mark.parametrize(("model_dir", "name", "case"), _cases())
def test_tokens_and_positions_equal(model_dir, name, case):
    processor = load_processor(model_dir)
    reference = np.load(model_dir / "ref" / f"{name}.npz")
    rows = list(_conversations(case, processor))
    assert len(rows) == len(reference["input_ids"])
    for b, (turns, images) in enumerate(rows):
        real = reference["attention_mask"][b] == 1
        ours = encode(processor, turns, images)
        np.testing.assert_array_equal(ours.tokens, reference["input_ids"][b][real])
        if not processor.sees or processor.image.flat:
            np.testing.assert_array_equal(ours.position.T, [np.arange(real.sum())] * 3)
            assert ours.next_position == real.sum()
            np.testing.assert_array_equal(ours.image_token >= 0, ours.tokens == processor.image_pad)
            continue
        np.testing.assert_array_equal(ours.position, reference["position_ids"][:, b, real].T)
        assert ours.next_position == real.sum() + int(reference["rope_deltas"][b].item())
        np.testing.assert_array_equal(ours.image_token >= 0, reference["mm_token_type_ids"][b][real] == 1)


@pytest.mark.parametrize(("model_dir", "name", "case"), _cases())
def test_slots_hold_the_reference_patches(model_dir, name, case):
    """Read through `image_token` in prompt order, the slots give transformers' pixel_values."""
    processor = load_processor(model_dir)
    reference = np.load(model_dir / "ref" / f"{name}.npz")
    encoded = [encode(processor, turns, images) for turns, images in _conversations(case, processor)]
    slots = max(processor.slots, *(len(e.patches) for e in encoded))
    batch = collate(encoded, processor, max(len(e.tokens) for e in encoded), slots)
    unit = processor.image.merge**2
    found = []
    for b in range(len(encoded)):
        merged = batch.image_token[b][batch.image_token[b] >= 0]
        found.append(batch.images.patches[b].reshape(slots // unit, unit, -1)[merged])
    patches = np.concatenate(found).reshape(-1, batch.images.patches.shape[-1])
    assert bool(len(patches)) == ("pixel_values" in reference)
    if len(patches):
        stored = stored_pixels(reference, processor.image)
        np.testing.assert_array_equal(pixel_values(patches, processor.image), stored)


def _random_image(rng, height, width, mode):
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def _seeing():
    """The models that read images."""
    return [m for m in _models() if "vision_config" in json.loads((m / "config.json").read_text())]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model", _seeing(), ids=lambda path: path.name)
def test_live_image_processor(model, seed):
    """Odd sizes, several images a call, limits of pixels other than the directory's own."""
    rng = np.random.default_rng(seed)
    spec = load_processor(model).image
    theirs = AutoImageProcessor.from_pretrained(str(model), backend="pil")
    assert type(theirs).__name__.endswith("ImageProcessorPil")
    sides = np.exp(rng.uniform(np.log(5), np.log(420), (6, 2))).astype(int)
    modes = ["RGB", "RGBA", "L", "LA", "P", "1"]
    images = [_random_image(rng, int(h), int(w), m) for (h, w), m in zip(sides, modes, strict=True)]
    out = theirs(images=images, return_tensors="np")
    ours = [pixel_values(spec.cut(image, "live"), spec) for image in images]
    np.testing.assert_array_equal(np.concatenate(ours), stored_pixels(out, spec))
    grids = [spec.shown((image.height, image.width)).grids for image in images]
    if "image_grid_thw" in out:
        np.testing.assert_array_equal([[1, *grid] for (grid,) in grids], out["image_grid_thw"])
    else:
        np.testing.assert_array_equal([len(tiles) for tiles in grids], out["num_patches"])
