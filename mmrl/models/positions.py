"""Positions: mRoPE positions of the tokens of a prompt, and window slots of the patches of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32


def positions(length: int, spans: Sequence[tuple[int, int, int]]) -> tuple[Int32[np.ndarray, "p 3"], int]:
    """Multimodal rotary positions (temporal, row, column) of a prompt, and the position that follows it.

    Text advances all three axes by one. An image of rows x columns merged tokens stands at one temporal
    position, spreads over the other two, and advances all three by max(rows, columns).

    Args: prompt length in tokens; spans (start, rows, columns), in order, of the images' tokens.
    Source: Qwen2-VL (arXiv 2409.12191), section 2.1; equal to transformers' ``get_rope_index`` for images.
    """
    position = np.empty((length, 3), np.int32)
    cursor, current = 0, 0  # index in the prompt, position on all axes
    for start, rows, columns in spans:
        position[cursor:start] = (current + np.arange(start - cursor))[:, None]
        current += start - cursor
        cursor = start + rows * columns
        position[start:cursor, 0] = current
        position[start:cursor, 1] = current + np.repeat(np.arange(rows), columns)
        position[start:cursor, 2] = current + np.tile(np.arange(columns), rows)
        current += max(rows, columns)
    position[cursor:] = (current + np.arange(length - cursor))[:, None]
    return position, current + length - cursor


def window_count(rows: int, columns: int, window: int) -> int:
    """Attention windows over rows x columns merge blocks, windows ``window`` blocks a side (edges cut)."""
    return -(-rows // window) * -(-columns // window)


def window_blocks(rows: int, columns: int, window: int) -> Int32[np.ndarray, "m"]:
    """The place of each merge block, given row by row, when every window takes window * window places.

    Windows follow one another row by row; within a window blocks stand row by row, and a window cut by the
    edge leaves its last places empty. Without the empty places this is the order of transformers'
    ``get_vision_window_index``.
    """
    row, column = np.divmod(np.arange(rows * columns, dtype=np.int32), columns)
    across = -(-columns // window)
    width = np.minimum(window, columns - column // window * window)  # of the block's own window
    place = (row // window * across + column // window) * window**2
    return (place + row % window * width + column % window).astype(np.int32)


def patch_grid(rows: int, columns: int, merge: int) -> Int32[np.ndarray, "n 2"]:
    """(row, column) of each patch of a rows x columns grid in merge-block order."""
    grid = np.moveaxis(np.indices((rows, columns), np.int32), 0, -1)
    blocks = grid.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(rows * columns, 2)
