"""Images are seen as their EXIF orientation says: as viewers, and transformers after `exif_transpose`."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmrl.data.examples import thumbnail
from mmrl.models.images import (
    FORMATS,
    ImageSpec,
    image_size,
    open_image,
    patchify,
    pixel_values,
    to_rgb,
    upright,
)
from mmrl.rollout.tools import zoom

CASES = sorted((Path(__file__).parent.parent / "cases" / "exif").iterdir())
SPEC = ImageSpec(
    56 * 56, 224 * 224, 14, 2, 2, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
LOSSLESS = {"WEBP": {"lossless": True}}
KINDS = ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"]


def picture(mode="RGB", size=(50, 34)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def stored(kind, orientation, image=None, **options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if kind == "MPO":  # of several frames, of which the first is read
        options = {**options, "save_all": True, "append_images": [picture(size=(50, 34))]}
    out = io.BytesIO()
    options = {"exif": exif, **LOSSLESS.get(kind, {}), **options}
    (image or picture()).save(out, kind, **options)
    return out.getvalue()


def as_viewers_see_it(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def same(data, wanted=None):
    wanted = as_viewers_see_it(data) if wanted is None else wanted
    assert image_size(data, "row") == wanted.shape[:2]
    opened = open_image(data, "row")
    assert image_size(opened, "row") == wanted.shape[:2]
    np.testing.assert_array_equal(np.asarray(to_rgb(opened)), wanted)
    np.testing.assert_array_equal(np.asarray(to_rgb(upright(open_image(data, "row")))), wanted)
    np.testing.assert_array_equal(
        patchify(open_image(data, "row"), SPEC, "row"), patchify(Image.fromarray(wanted), SPEC, "row")
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_photographs(path):
    """With a strip on the side that is on top, or elsewhere, upright; a path and bytes alike."""
    same(path.read_bytes())
    assert image_size(str(path), "row") == as_viewers_see_it(path.read_bytes()).shape[:2]
    theirs = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=224 * 224)(
        load_image(str(path)), return_tensors="np"
    )
    ours = pixel_values(patchify(open_image(str(path), "row"), SPEC, "row"), SPEC)
    np.testing.assert_array_equal(ours, theirs["pixel_values"])


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_formats(kind, orientation):
    assert kind in FORMATS
    if kind == "AVIF" and orientation not in range(1, 9):
        pytest.skip("Pillow writes no such file")
    data = stored(kind, orientation)
    same(data)
    assert image_size(data, "row") == ((50, 34) if orientation in (5, 6, 7, 8) else (34, 50))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_modes(mode, orientation):
    image = (
        picture("RGB").convert("L").point(lambda v: v * 257, "I").convert("I;16")
        if mode == "I;16"
        else picture(mode)
    )
    turned = open_image(stored("PNG", orientation, image), "row")
    turn = Image.Transpose.ROTATE_270 if orientation == 6 else Image.Transpose.ROTATE_180
    wanted = np.asarray(to_rgb(open_image(stored("PNG", 1, image), "row")).transpose(turn))
    assert image_size(turned, "row") == wanted.shape[:2]
    np.testing.assert_array_equal(np.asarray(to_rgb(turned)), wanted)


def test_a_compressed_tiff():
    same(stored("TIFF", 6, compression="tiff_deflate"))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def late(data, *chunks):
    """A PNG with chunks put behind its pixels."""
    return data[:-12] + b"".join(chunks) + data[-12:]


def exif_block(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()[6:]


@pytest.mark.parametrize("behind", ["eXIf", "iTXt", "zTXt"])
def test_png_with_metadata_behind_its_pixels(behind):
    profile = b"\nexif\n      %d\n%s\n" % (len(exif_block(6)), exif_block(6).hex().encode())
    chunks = {
        "eXIf": chunk(b"eXIf", exif_block(6)),
        "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(6).encode()),
        "zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
    }
    plain = stored("PNG", 1, exif=None)
    data = late(plain, chunk(b"tEXt", b"date:modify\0today"), chunks[behind])
    assert as_viewers_see_it(data).shape == (50, 34, 3)
    same(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_in_xmp_alone(kind):
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.format(8))
        data = stored(kind, 1, exif=None, pnginfo=info)
    elif kind == "TIFF":
        data = stored(kind, 1, exif=None, tiffinfo={700: XMP.format(8).encode()})
    else:
        data = stored(kind, 1, exif=b"", xmp=XMP.format(8).encode())
    assert as_viewers_see_it(data).shape == (50, 34, 3)
    same(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_needs_no_pixels(kind, orientation, monkeypatch):
    data = stored(kind, orientation)
    data = late(data, chunk(b"tEXt", b"date:modify\0today")) if kind == "PNG" else data

    def load(*_):
        raise AssertionError("decoded")

    opened = open_image(data, "row")
    monkeypatch.setattr(type(opened), "load", load)
    assert image_size(opened, "row") == ((50, 34) if orientation == 6 else (34, 50))


BROKEN = [
    b"",
    b"Exif",
    b"Exif\0\0",
    b"Exif\0\0MM",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0XX*\0\0\0\0\x08",
    bytes(range(256)),
]
BROKEN += [
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 4,
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02\0\x06\0\0",
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_leaves_an_image_as_it_is_stored(kind, block):
    data = stored(kind, 1, exif=block)
    plain = np.asarray(Image.open(io.BytesIO(stored(kind, 1))).convert("RGB"))
    same(data, plain)


def test_an_image_in_memory():
    """Turned once, whatever is done with it in between."""
    data = stored("PNG", 6)
    wanted = as_viewers_see_it(data)
    for image in (Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data)).convert("RGB")):
        assert image_size(image, "row") == (50, 34)
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), wanted)
        np.testing.assert_array_equal(np.asarray(to_rgb(to_rgb(to_rgb(image)))), wanted)
    plain = picture()
    plain.getexif()[ExifTags.Base.Orientation] = 3
    np.testing.assert_array_equal(np.asarray(to_rgb(plain)), np.asarray(picture())[::-1, ::-1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_what_looks_at_images_sees_them_upright(kind):
    """The zoom tool cuts of the upright image, and the contact sheet and the report show it."""
    image = Image.new("RGB", (80, 40), "blue")
    image.paste("red", (0, 0, 80, 20))  # turned clockwise: the right half
    data = stored(kind, 6, image)
    part = np.asarray(Image.open(io.BytesIO(zoom(data, [50, 0, 100, 50]))), int)
    assert part.shape == (40, 28, 3) or part.shape[0] > part.shape[1]
    assert (part[..., 0] > 200).mean() > 0.9
    shown = thumbnail(data, "row")
    assert shown.size == (40, 80)
    assert np.asarray(shown, int)[:, 24:, 0].min() > 150
