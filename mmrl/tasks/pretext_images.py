"""The pictures that pretext questions are made of: those of a folder, or of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmrl.data.folders import METADATA
from mmrl.data.sources import Source, read
from mmrl.models.images import open_image, to_rgb
from mmrl.tasks.entries import ImageFolder

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
)
LEAST_SIDE = 64  # pixels; smaller images have nothing to ask about


class Pictures(NamedTuple):
    """Encoded images by number."""

    length: int
    id: Callable[[int], str]
    image: Callable[[int], bytes | str]  # encoded bytes or a path; ValueError if there is none


def find_pictures(spec: str) -> Pictures:
    """The images of a folder at any depth, by name; or the first image of each row of a data set.

    Raises ValueError if there are none, or no data set can be opened.
    """
    folder = Path(spec)
    if folder.is_dir() and not any((folder / name).is_file() for name in METADATA):
        files = _files(folder)
        if files:
            return Pictures(len(files), lambda k: files[k], lambda k: str(folder / files[k]))
    source = read(spec)
    return Pictures(len(source), source.id, lambda k: _first_image(source, k))


def captioned_pictures(spec: str, names: list[str]) -> Pictures:
    """The images of a folder that have these names. Raises ValueError if it is no folder."""
    if not Path(spec).is_dir():
        raise ValueError(f"{spec} is no folder: captions name the images of one")
    images = ImageFolder(Path(spec).absolute())
    return Pictures(len(names), lambda k: names[k], lambda k: images.path(names[k]))


def square(image: bytes | str, name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """The largest square of an image, anywhere along its longer side, at ``side`` pixels.

    Raises ValueError if the image cannot be read or is too small.
    """
    picture = decoded(image, name, side)
    least = min(picture.size)
    left = int(rng.integers(picture.width - least + 1))
    top = int(rng.integers(picture.height - least + 1))
    box = (left, top, left + least, top + least)
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def whole(image: bytes | str, name: str, side: int) -> Image.Image:
    """An image with its longer side at most ``side`` pixels. Raises ValueError likewise."""
    picture = decoded(image, name, side)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return picture


def decoded(image: bytes | str, name: str, side: int) -> Image.Image:
    """An image in RGB, upright, of ``2 * side`` pixels or more where it has them."""
    with open_image(image, name) as opened:
        if min(opened.size) < LEAST_SIDE:
            raise ValueError(f"{opened.width}x{opened.height} pixels are too few to ask about")
        try:
            opened.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a part of its size
            return to_rgb(opened)
        except Exception as error:  # Pillow's decoders raise what they like at damaged files
            raise ValueError(f"its pixels cannot be decoded: {error}") from error


def _files(folder: Path) -> list[str]:
    found = [
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    return sorted(found)


def _first_image(source: Source, row: int) -> bytes | str:
    images = source[row].images
    if not images:
        raise ValueError("a row without an image")
    return images[0]
