"""Prompts as large as their buckets, made without a processor: what plans and benchmarks compute."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.models.config import ModelConfig
from mmrl.models.positions import patch_grid, positions, window_blocks
from mmrl.types import Images, Prompts


def full_prompts(model: ModelConfig, b: int, p: int, n: int) -> Prompts:
    """``b`` times the same prompt, without padding: text, an image, text."""
    merge, slots, block = model.vision.merge, model.window_slots, model.token_patches
    side = math.isqrt(slots) // merge
    windows = min(n, block * p) // slots
    high = max((size for size in range(1, math.isqrt(windows) + 1) if windows % size == 0), default=0)
    rows, columns = high * side, windows // max(high, 1) * side  # in merged tokens; whole windows
    start = (p - rows * columns) // 2
    position, following = positions(p, [(start, rows, columns)])
    image_token = np.full(p, -1, np.int32)
    patch_position, image = np.zeros((n, 2), np.int32), np.full(n, -1, np.int32)
    if windows:
        place = window_blocks(rows, columns, side)
        slot = (block * place[:, None] + np.arange(block)).reshape(-1)
        image_token[start : start + rows * columns] = place
        patch_position[slot] = patch_grid(merge * rows, merge * columns, merge)
        image[slot] = 0
    of_tokens, of_patches = jax.random.split(jax.random.key(0))
    row = Prompts(
        tokens=jax.random.randint(of_tokens, (p,), 0, model.vocabulary),
        mask=jnp.ones(p, bool),
        position=jnp.asarray(position, jnp.int32),
        next_position=jnp.int32(following),
        image_token=jnp.asarray(image_token),
        images=Images(
            patches=jax.random.bits(of_patches, (n, model.patch_bytes), jnp.uint8),
            position=jnp.asarray(patch_position),
            image=jnp.asarray(image),
        ),
    )
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (b, *leaf.shape)), row)
