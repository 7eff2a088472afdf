"""Images cut into tiles of one size, with a thumbnail: the rule of InternVL (arXiv:2404.16821, section 3.3).

An image becomes a grid of tiles whose shape is nearest to its own, and is stretched to fill it; pixels are
those of transformers' image processor of InternVL.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mmrl.models.images import Shown, cut_patches, image_size, resize


@dataclass(frozen=True)
class TileSpec:
    """The layout that cuts images into tiles, which are read one by one."""

    flat: ClassVar[bool] = True
    temporal: ClassVar[int] = 1

    tile: int  # pixels of a side
    min_tiles: int  # of an image, without the thumbnail that follows where there are several
    max_tiles: int
    patch: int  # pixels of a side
    merge: int  # patches
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    before: int  # token before an image
    after: int  # and after it

    @property
    def min_pixels(self) -> int:
        """Pixels of the fewest tiles."""
        return self.min_tiles * self.tile**2

    @property
    def max_pixels(self) -> int:
        """Pixels of the most tiles."""
        return self.max_tiles * self.tile**2

    def limited(self, low: int, high: int) -> TileSpec:
        """The same with as many tiles as have at least ``low`` and at most ``high`` pixels, but for one."""
        most = max(1, high // self.tile**2)
        return replace(self, min_tiles=min(most, max(1, -(-low // self.tile**2))), max_tiles=most)

    def shown(self, size: tuple[int, int]) -> Shown:
        """How an image of this (height, width) is shown. Raises ValueError if it has no pixel."""
        rows, columns = tile_grid(size, self)
        count, side = rows * columns, self.tile // self.patch
        pictures = count + (count > 1)
        frame = ((self.before,), *[()] * (pictures - 1), (self.after,))
        return Shown(((side, side),) * pictures, frame)

    def cut(self, image: Image.Image, name: str) -> UInt8[np.ndarray, "n c"]:
        """Decode, turn upright, resize and cut an image: the patches of its tiles row by row, then of it all.

        Patches of each tile are in the order of `mmrl.models.images.patchify`, which raises alike.
        """
        rows, columns = tile_grid(image_size(image, name), self)
        t = self.tile
        sizes = [(rows * t, columns * t), *[(t, t)] * (rows * columns > 1)]
        whole, *thumbnail = resize(image, sizes, name)
        tiles = whole.reshape(rows, t, columns, t, 3).swapaxes(1, 2).reshape(-1, t, t, 3)
        return np.concatenate([cut_patches(tile, self.patch, self.merge) for tile in [*tiles, *thumbnail]])


def tile_grid(size: tuple[int, int], spec: TileSpec) -> tuple[int, int]:
    """(rows, columns) of tiles of an image of this (height, width). Raises ValueError if it has no pixel.

    The shape nearest to the image's own; of those that are equally near the one of most tiles, as long as the
    image has over half of their pixels.
    """
    height, width = size
    if min(height, width) < 1:
        raise ValueError(f"an image of {width}x{height} pixels: there is nothing to see")
    best, nearest = (1, 1), float("inf")
    for rows, columns in _grids(spec.min_tiles, spec.max_tiles):
        distance = abs(width / height - columns / rows)
        larger = distance == nearest and 2 * height * width > rows * columns * spec.tile**2
        if distance < nearest or larger:
            best, nearest = (rows, columns), distance
    return best


@functools.cache
def _grids(low: int, high: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of all grids of ``low`` to ``high`` tiles, by their number, then by columns."""
    sides = range(1, high + 1)
    grids = [(rows, columns) for columns in sides for rows in sides if low <= rows * columns <= high]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
