"""How much of a rollout is on the devices at once, and what it takes."""

from dataclasses import dataclass

import numpy as np

from mmrl.models.qwen2_5_vl_config import Config

_SMALLEST = 256  # response slots that columns have room for at first


@dataclass(frozen=True)
class Shape:
    """How much is decoded at once; the shapes of all programs of a rollout follow from it."""

    lanes: int  # prompts
    columns: int  # responses of a prompt
    prompt: int  # tokens of a prompt
    max_tokens: int  # of a response, what it reads included
    observation: int = 0  # tokens of one observation
    observation_patches: int = 0  # patch slots of one
    chunk: int = 16  # steps between two looks of the host

    @property
    def slots(self) -> tuple[int, ...]:
        """Sizes of a column's cache: it grows with its responses, up to the last."""
        sizes = [self.max_tokens]
        while sizes[0] > _SMALLEST:
            sizes.insert(0, -(-sizes[0] // 2))
        return tuple(sizes)

    @property
    def turns(self) -> tuple[int, int]:
        """Prompts of one prefill: an eighth of the lanes where few are free, or all."""
        return max(1, self.lanes // 8), self.lanes


def shape_for(
    prompts: int,
    group: int,
    *,
    prompt: int,
    max_tokens: int,
    lanes: int,
    columns: int,
    chunk: int,
    observation: int = 0,
    observation_patches: int = 0,
) -> Shape:
    """The shape for so many prompts and responses to each: never larger; 0 lanes or columns take all."""
    return Shape(
        lanes=min(lanes or prompts, prompts),
        columns=min(columns or group, group),
        prompt=prompt,
        max_tokens=max_tokens,
        observation=observation,
        observation_patches=observation_patches,
        chunk=min(chunk, max_tokens),
    )


def cache_bytes(config: Config, shape: Shape) -> int:
    """Bytes of the keys and values of a rollout at its largest, over all devices."""
    token = 2 * config.layers * config.kv_heads * config.head_dim * np.dtype(config.dtype).itemsize
    return token * shape.lanes * (shape.prompt + shape.columns * shape.max_tokens)
