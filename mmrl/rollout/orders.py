"""The host's arrays for the programs of `mmrl.rollout.engine`: static shapes, whatever there is to do."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mmrl.rollout.engine import Columns
from mmrl.rollout.members import Member
from mmrl.rollout.sampling import Options, Sampling, options_of
from mmrl.rollout.shape import Shape
from mmrl.types import Images, Prompts

STOP_SLOTS = 8  # stop ids that a request may have
_IDLE = Sampling(max_tokens=1)


def admission(rows: Sequence[tuple[int, Prompts]], shape: Shape) -> Iterator[tuple[Prompts, np.ndarray]]:
    """Batches of prompts with the lane of each; rows that fill a batch up go to no lane."""
    small, large = shape.turns
    rest = list(rows)
    while rest:
        size = large if 2 * len(rest) > large else small
        part, rest = rest[:size], rest[size:]
        filled = [part[k % len(part)][1] for k in range(size)]
        lanes = [lane for lane, _ in part] + [shape.lanes] * (size - len(part))
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *filled), np.array(lanes, np.int32)


def orders(shape: Shape, begins: Sequence[Member], halts: Sequence[tuple[int, int]]) -> Columns:
    """Members begin in their seats, seats of ``halts`` stop."""
    grid = (shape.lanes, shape.columns)

    def blank(*width: int, dtype: Any) -> Any:
        return np.zeros((*grid, *width), dtype)

    begin, halt, limit = blank(dtype=bool), blank(dtype=bool), blank(dtype=np.int32)
    width = len(begins[0].key) if begins else 2
    key = blank(width, dtype=np.uint32)
    samplings = np.full(grid, _IDLE, object)
    for seat in halts:
        halt[seat] = True
    for member in begins:
        assert member.seat is not None
        begin[member.seat] = True
        halt[member.seat] = False
        limit[member.seat] = member.limit(shape.max_tokens)
        key[member.seat] = member.key
        samplings[member.seat] = member.sampling
    options = options_of(samplings.reshape(-1).tolist(), STOP_SLOTS)
    options = jax.tree.map(lambda leaf: leaf.reshape(*grid, *leaf.shape[1:]), options)
    return Columns(begin, halt, limit, key, options)


def observations(
    shape: Shape, members: Sequence[Member], patch_width: int
) -> tuple[Prompts, np.ndarray, np.ndarray, np.ndarray, Options]:
    """Arguments of `mmrl.rollout.engine.append`, one member a lane at most; text alone has no patch slots."""
    lanes, length = shape.lanes, shape.observation + 1
    with_images = any(len(member.observation.patches) for member in members if member.observation)
    slots = shape.observation_patches if with_images else 0

    def blank(*width: int, dtype: Any = np.int32, fill: int = 0) -> Any:
        return np.full((lanes, *width), fill, dtype)

    tokens, mask = blank(length), blank(length, dtype=bool)
    position, following, image_token = blank(length, 3), blank(), blank(length, fill=-1)
    patches = blank(slots, patch_width, dtype=np.uint8)
    patch_position, patch_image = blank(slots, 2), blank(slots, fill=-1)
    column, kept, limit = blank(), blank(), blank()
    samplings = [_IDLE] * lanes
    for member in members:
        seen = member.observation
        assert member.seat is not None
        assert seen is not None
        assert member.sampling is not None
        lane, column[member.seat[0]] = member.seat
        count, slots_used, start = len(seen.tokens), len(seen.patches), member.prompt_next + member.position
        tokens[lane, : count + 1] = [member.pieces[-1].tokens[-1], *seen.tokens]
        mask[lane, : count + 1] = True
        position[lane, 0] = start - 1
        position[lane, 1 : count + 1] = start + seen.position
        following[lane] = start + seen.next_position
        image_token[lane, 1 : count + 1] = seen.image_token
        patches[lane, :slots_used] = seen.patches
        patch_position[lane, :slots_used] = seen.patch_position
        patch_image[lane, :slots_used] = seen.patch_image
        kept[lane] = member.count - 1
        limit[lane] = member.limit(shape.max_tokens)
        samplings[lane] = member.sampling
    images = Images(patches=patches, position=patch_position, image=patch_image)
    prompts = Prompts(tokens, mask, position, following, image_token, images)
    return prompts, column, kept, limit, options_of(samplings, STOP_SLOTS)
