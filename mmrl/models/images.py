"""Encoded images to rows of raw pixel bytes, equal to transformers' Qwen2-VL image processor.

The number of tokens follows from (height, width), which an image's header states; pixels are decoded only by
`patchify`. Patches stay bytes until they are on the device, an eighth of the size of the normalised,
frame-doubled float32 rows that transformers makes.

An image is seen upright, as its EXIF orientation says (`image_size`, `upright`, `to_rgb`, `patchify`).
"""

from __future__ import annotations

import functools
import io
import math
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from mmrl.terminal import one_line

# What is read at all. Pillow knows more formats; some run another program, few are met in data.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MOST_PIXELS = 89_478_485  # of one image: decoded and made opaque it takes about 1.5 GiB for a moment
# What puts pixels upright that are stored in an orientation; the first dimension is the height in 5 to 8.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where Pillow looks for it
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Shown:
    """How a prompt shows one image: pictures that the tower reads, and control tokens around theirs."""

    grids: tuple[tuple[int, int], ...]  # (rows, columns) of patches of each picture
    frame: tuple[tuple[int, ...], ...]  # before the image tokens of each picture, and after the last

    def count(self, merge: int) -> int:
        """Tokens that stand for the image."""
        return sum(rows * columns for rows, columns in self.grids) // merge**2 + sum(map(len, self.frame))

    def tokens(self, pad: int, merge: int) -> Int32[np.ndarray, "t"]:
        """Those tokens, of which ``pad`` stands for an image token."""
        parts = []
        for before, (rows, columns) in zip(self.frame, self.grids, strict=False):
            parts += [np.array(before, np.int32), np.full(rows * columns // merge**2, pad, np.int32)]
        return np.concatenate([*parts, np.array(self.frame[-1], np.int32)])


@runtime_checkable
class ImageLayout(Protocol):
    """How a family shows images: as how many tokens, around which patches; read off an image's size alone."""

    flat: ClassVar[bool]  # if positions count image tokens as those of a text

    @property
    def patch(self) -> int:
        """Pixels of a side of a patch."""

    @property
    def merge(self) -> int:
        """Patches of a side of what makes one image token."""

    @property
    def temporal(self) -> int:
        """Frames that a patch spans; a still image repeats its one frame."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of each colour, subtracted."""

    @property
    def std(self) -> tuple[float, float, float]:
        """Of each colour, divided by."""

    @property
    def min_pixels(self) -> int:
        """Least pixels of an image, resized."""

    @property
    def max_pixels(self) -> int:
        """Most pixels of an image, resized."""

    def shown(self, size: tuple[int, int]) -> Shown:
        """How an image of this (height, width) is shown. Raises ValueError for a size that is not."""

    def cut(self, image: Image.Image, name: str) -> UInt8[np.ndarray, "n c"]:
        """The patches of all pictures of an image.

        Those of a picture are in the order of `patchify`. Raises ValueError naming the row for pixels that
        cannot be decoded.
        """

    def limited(self, low: int, high: int) -> ImageLayout:
        """The same with other limits of the pixels of an image."""


@dataclass(frozen=True)
class ImageSpec:
    """The layout that shows images whole: limits in pixels, sizes in pixels (patch) or patches (merge)."""

    flat: ClassVar[bool] = False
    min_pixels: int
    max_pixels: int
    patch: int
    merge: int
    temporal: int  # frames a patch spans; a still image repeats its one frame
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def shown(self, size: tuple[int, int]) -> Shown:
        """How an image of this (height, width) is shown. Raises like `smart_resize`."""
        return Shown((grid_of(size, self),), ((), ()))

    def cut(self, image: Image.Image, name: str) -> UInt8[np.ndarray, "n c"]:
        """The patches of an image, as `patchify`."""
        return patchify(image, self, name)

    def limited(self, low: int, high: int) -> ImageSpec:
        """The same with other limits of the pixels of an image."""
        return replace(self, min_pixels=low, max_pixels=high)


def open_image(image: bytes | str | os.PathLike | Image.Image, name: str) -> Image.Image:
    """Open an image without decoding its pixels.

    Args: encoded bytes, a path, or an image already open; the name used in messages (its row).
    Raises ValueError naming the row if the file is missing or its header is not an image's.
    """
    if isinstance(image, Image.Image):
        return image
    what = f"{len(image)} bytes" if isinstance(image, bytes) else one_line(os.fspath(image), 200)
    try:
        if not isinstance(image, bytes) and not stat.S_ISREG(os.stat(image).st_mode):
            raise ValueError("not a file")  # a pipe would be waited for
        opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=_formats())
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(f"{opened.width}x{opened.height} pixels, over {MOST_PIXELS}")
        return opened
    except Exception as error:  # Pillow's decoders raise what they like at damaged files
        # Pillow's own words for this hold an address in memory, and a policy may read them.
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise ValueError(
            f"{name}: cannot read the image ({what}): {reason}. Repair or remove the row."
        ) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def image_size(image: bytes | str | os.PathLike | Image.Image, name: str) -> tuple[int, int]:
    """(height, width) in pixels of an image seen upright, from the header. Raises like `open_image`."""
    if not isinstance(image, Image.Image):
        with open_image(image, name) as opened:
            return image_size(opened, name)
    sideways = _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if sideways else (image.height, image.width)


def upright(image: Image.Image) -> Image.Image:
    """An image turned upright: `PIL.ImageOps.exif_transpose`, which a damaged EXIF block does not stop.

    Decodes it; Pillow raises what it likes where the pixels are damaged.
    """
    image.load()
    turn = TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in METADATA:  # or it would be turned again
        turned.info.pop(key, None)
    return turned


def _orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8: how size and pixels are stored; 1 where that cannot be read, as viewers have it."""
    if isinstance(image, TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2:
        return 1  # Pillow turns these itself
    late = isinstance(image, PngImageFile) and image.fp and _metadata_after_pixels(image.fp)
    try:
        if late:
            image.load()
        # PNG's own decodes all pixels.
        exif = Image.Image.getexif(image) if isinstance(image, PngImageFile) else image.getexif()
        found = exif.get(ExifTags.Base.Orientation)
        return int(found) if found in TURNS else 1
    except Exception:  # Pillow raises what it likes at damaged blocks
        return 1


def _metadata_after_pixels(png: Any) -> bool:
    """True if a PNG has EXIF or XMP behind its pixels, as ExifTool writes it; Pillow reads that with them."""
    place, pixels, found = png.tell(), False, False
    png.seek(8)
    while not found and len(head := png.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        after = png.tell() + length + 4
        pixels = pixels or kind == b"IDAT"
        if pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            found = kind == b"eXIf" or png.read(30).partition(b"\0")[0].decode("latin-1") in METADATA
        png.seek(after)
    png.seek(place)
    return found


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) after resizing: multiples of ``factor``, area within limits, aspect ratio nearly kept.

    The rule of Qwen2-VL's image processor (transformers, ``smart_resize``). Raises ValueError if one side is
    more than 200 times the other, or if there is no pixel.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image of {width}x{height} pixels: there is nothing to see")
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"an image of {width}x{height} pixels: one side is over 200 times the other")
    rows, columns = round(height / factor), round(width / factor)
    area = factor * factor
    if rows * columns * area > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def grid_of(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """(rows, columns) of patches of an image of this (height, width). Raises like `smart_resize`."""
    height, width = smart_resize(*size, spec.patch * spec.merge, spec.min_pixels, spec.max_pixels)
    return height // spec.patch, width // spec.patch


def token_count(size: tuple[int, int], spec: ImageSpec) -> int:
    """Merged image tokens of an image of this (height, width) in pixels. Raises like `smart_resize`."""
    rows, columns = grid_of(size, spec)
    return rows * columns // spec.merge**2


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels, upright; what is transparent is put on white, as in transformers 5 (4.x dropped alpha).

    16 bits of grey are scaled to 8, where transformers, as Pillow, makes nearly all of them white. Raises
    ValueError for wider pixels, whose range nothing states.
    """
    deep = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG")
    image = upright(image)
    if deep:
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no stated range; store 8 or 16 bits")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def patchify(image: Image.Image, spec: ImageSpec, name: str) -> UInt8[np.ndarray, "n c"]:
    """Decode, turn upright, resize (bicubic) and cut an image into patches, one frame each.

    Patches come in merge-block order: blocks of merge x merge patches row by row, and row by row within a
    block. A patch's bytes are in order (channel, row, column).
    Raises ValueError naming the row if the pixels cannot be decoded.
    """
    rows, columns = grid_of(image_size(image, name), spec)
    (resized,) = resize(image, [(rows * spec.patch, columns * spec.patch)], name)
    return cut_patches(resized, spec.patch, spec.merge)


def resize(
    image: Image.Image, sizes: Sequence[tuple[int, int]], name: str
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Decode an image, turn it upright and resize it (bicubic) to each (height, width).

    Raises ValueError naming the row if the pixels cannot be decoded.
    """
    try:
        whole = to_rgb(image)
        return [np.asarray(whole.resize((w, h), Image.Resampling.BICUBIC)) for h, w in sizes]
    except Exception as error:  # as in `open_image`
        raise ValueError(
            f"{name}: the image's pixels cannot be decoded: {one_line(error)}. Repair or remove the row."
        ) from error


def cut_patches(pixels: UInt8[np.ndarray, "h w 3"], patch: int, merge: int) -> UInt8[np.ndarray, "n c"]:
    """Patches of a picture, in the order of `patchify`."""
    p, m = patch, merge
    rows, columns = pixels.shape[0] // p, pixels.shape[1] // p
    blocks = pixels.reshape(rows // m, m, p, columns // m, m, p, 3)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(rows * columns, 3 * p * p)


def pixel_values(patches: UInt8[np.ndarray, "n c"], spec: ImageLayout) -> Float32[np.ndarray, "n k"]:
    """Patches as transformers gives them to its models: scaled, normalised, every frame repeated.

    Bit for bit: scaled in double precision, rounded to float32, then normalised in float32.
    """
    scaled = (patches.astype(np.float64) * (1 / 255)).astype(np.float32).reshape(len(patches), 3, 1, -1)
    mean, std = (np.array(x, np.float32)[None, :, None, None] for x in (spec.mean, spec.std))
    return np.repeat((scaled - mean) / std, spec.temporal, axis=2).reshape(len(patches), -1)
