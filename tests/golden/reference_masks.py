"""Masking as the released code of PAPO and VPPO does it, on the host, for reproduction and comparison.

PAPO (github.com/MikeWangWZHL/PAPO, ``random_patch_blackening``) masks the original image, which the image
processor then resizes. VPPO (github.com/huaixuheqing/VPPO-RL, ``perc_utils``) masks the image after
`resized`. The same function does both.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool
from PIL import Image


def random_cells(
    rng: np.random.RandomState, height: int, width: int, probability: float, patch: int = 14
) -> Bool[np.ndarray, "rows columns"]:
    """Cells to blacken in an image of height x width pixels: one draw each, row by row; edge cells count."""
    return rng.rand(-(-height // patch), -(-width // patch)) < probability


def blacken(image: Image.Image, cells: Bool[np.ndarray, "rows columns"], patch: int = 14) -> Image.Image:
    """Set every channel of the chosen cells of patch x patch pixels to zero.

    On the stored values, whatever they mean: alpha goes to transparent, palette images become gray images of
    their indices, and four channels come back as RGBA, so that zero is transparent where CMYK had white.
    """
    pixels = np.array(image).astype(np.uint8)
    rows, columns = (np.arange(size) // patch for size in pixels.shape[:2])
    pixels[cells[rows[:, None], columns]] = 0
    return Image.fromarray(pixels)


def fill(image: Image.Image, value: int | tuple[int, ...]) -> Image.Image:
    """One value, or one for each channel, in place of every pixel (VPPO's ``complete_masking``)."""
    pixels = np.array(image).astype(np.uint8)
    return Image.fromarray(np.full_like(pixels, value))


def resized(size: tuple[int, int], min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """(width, height) in pixels after the step PAPO and VPPO take before the image processor.

    The area is brought under max_pixels, then above min_pixels, cutting fractions of a pixel each time.
    """
    width, height = size
    for limit, outside in ((max_pixels, int.__gt__), (min_pixels, int.__lt__)):
        if limit is not None and outside(width * height, limit):
            factor = math.sqrt(limit / (width * height))
            width, height = int(width * factor), int(height * factor)
    return width, height
