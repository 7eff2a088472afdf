"""Packed rows: sequences of any lengths one after another, and who reads whom. `mmrl.packing` makes them."""

import numpy as np
from flax import struct
from jaxtyping import Array, Int

from mmrl.kernels.packed import BlockPairs, Segments


@struct.dataclass
class TokenRows:
    """Rows of tokens. ``n`` slots a row; ``k`` targets, of which the first ``count`` are real.

    A *target* is a token that the policy wrote, with the slot whose state predicts it.
    """

    tokens: Int[Array, "*b n"]
    position: Int[Array, "*b n 3"]  # mRoPE
    feature: Int[Array, "*b n"]  # which of the shard's image features stands there; -1 for text
    segments: Segments
    pairs: BlockPairs
    predictor: Int[Array, "*b k"]  # slot whose state predicts the target
    target: Int[Array, "*b k"]  # token id
    # Of the target in the shard's responses, flat ``b g r``; past their end if there is none.
    place: Int[Array, "*b k"]
    count: Int[Array, "*b"]


@struct.dataclass
class PatchRows:
    """Rows of image patches, whole windows of whole images one after another; four slots are one feature."""

    # Place in the shard's patches: those of prompts, flat, then of responses.
    source: Int[Array | np.ndarray, "*b n"]
    position: Int[Array, "*b n 2"]  # (row, column) in its image
    images: Segments  # who reads whom in layers of full attention
    image_pairs: BlockPairs
    windows: Segments  # and in layers of windows
    window_pairs: BlockPairs
