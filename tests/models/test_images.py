"""Sizes from headers, damaged files, and the order of bytes in a patch."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

from mmrl.models.images import ImageSpec, image_size, open_image, patchify, smart_resize, token_count

SPEC = ImageSpec(56 * 56, 224 * 224, 14, 2, 2, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def _encoded(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def _noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.sampled_from([28, 32, 56]),
    st.integers(1, 10**6),
    st.integers(0, 10**7),
)
def test_smart_resize_equals_transformers(height, width, factor, low, extra):
    args = (height, width, factor, low, low + extra)
    try:
        expected = reference_resize(*args)
    except ValueError:
        with pytest.raises(ValueError, match="200 times"):
            smart_resize(*args)
    else:
        assert smart_resize(*args) == expected


def test_count_is_known_without_pixels():
    """A file cut off behind its header still has a size; its pixels are an error that names the row."""
    data = _encoded(_noise(100, 60))
    cut = data[: len(data) // 2]
    assert image_size(cut, "row") == (60, 100)
    assert token_count((60, 100), SPEC) == 2 * 4
    with pytest.raises(ValueError, match="row 7, image 0: the image's pixels cannot be decoded"):
        patchify(open_image(cut, "row 7, image 0"), SPEC, "row 7, image 0")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files_are_value_errors(kind):
    """Whatever a decoder makes of bytes cut or flipped, no other exception comes out."""
    data = bytearray(_encoded(_noise(40, 40), kind))
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            broken[place] = rng.integers(256)
        broken = bytes(broken[: rng.integers(1, len(data) + 1)])
        try:
            patchify(open_image(broken, "row"), SPEC, "row")
        except ValueError:
            refused += 1
    assert refused > 20


def test_not_an_image(tmp_path):
    with pytest.raises(ValueError, match=r"row 3: cannot read the image \(4 bytes\)"):
        open_image(b"text", "row 3")
    with pytest.raises(ValueError, match=r"row 3: cannot read the image .*none\.png"):
        open_image(str(tmp_path / "none.png"), "row 3")


def test_order_of_patches_and_bytes():
    """Blocks of 2x2 patches row by row; (channel, row, column) within a patch."""
    rows, columns, channel = np.indices((56, 84, 3))
    image = Image.fromarray((rows * 3 + columns * 2 + channel * 60).astype(np.uint8))
    spec = ImageSpec(1, 56 * 84, 14, 2, 2, SPEC.mean, SPEC.std)  # the size is kept
    patches = patchify(image, spec, "row").reshape(24, 3, 14, 14)
    pixels = np.asarray(image)
    order = [(2 * i + a, 2 * j + b) for i in range(2) for j in range(3) for a in range(2) for b in range(2)]
    for patch, (row, column) in zip(patches, order, strict=True):
        cell = pixels[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        np.testing.assert_array_equal(patch, cell.transpose(2, 0, 1))
