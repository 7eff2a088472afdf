"""Scores of given responses to given prompts, batch by batch in shapes that seldom differ."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from mmrl.analysis.keys import corruption_keys
from mmrl.config import Config
from mmrl.mesh import batch_shards, put
from mmrl.models.prompts import Encoded, collate, padded
from mmrl.open import OpenModel, check_corruption
from mmrl.train.programs import Batch, ImageCorruption, score
from mmrl.types import Params, Responses

Scores = dict[str, Float[np.ndarray, "r"]]  # of one response
Progress = Callable[[int, int], None]  # is told (responses done, of how many) after each batch


def scored(
    params: Params,
    prompts: Sequence[Encoded],
    groups: Sequence[Sequence[Int[np.ndarray, "_"]]],
    ids: Sequence[str],
    *,
    model: OpenModel,
    config: Config,
    wanted: frozenset[str],
    seed: int = 0,
    progress: Progress | None = None,
) -> list[list[Scores]]:
    """`mmrl.train.programs.score` of the responses of each prompt: their tokens' values, in order.

    Args:
      params, model, config: weights; the model; how its prompts are padded, the corruption and temperature.
      prompts: unpadded; ``groups`` has the token ids of the responses to each, ``ids`` the name of its row,
        which its image is corrupted by, together with ``seed``.
      wanted: besides "logprob", as for `score`.
      progress: told after each batch.

    Raises ValueError if the corruption is unknown, and `OverBudget` if a prompt is over all buckets.
    """
    check_corruption(config)
    if not prompts:
        return []
    longest = max(len(one.tokens) for one in prompts), max(len(one.patches) for one in prompts)
    tokens, slots = padded(*longest, model.processor, config.data.prompt_buckets, config.data.patch_buckets)
    length = _rounded(max(len(ids) for group in groups for ids in group), config.rollout.max_tokens)
    width = _rounded(max(map(len, groups)), config.rollout.group)
    most = config.train.micro_prompts or batch_shards(model.mesh)
    size = min(_rounded(len(prompts), most), most)
    size += -size % batch_shards(model.mesh)
    policy = model.policy(config.rollout.temperature)
    measure = partial(
        score,
        params,
        # A few passes do not pay for compiling the layers apart.
        replace(policy, model=replace(policy.model, unroll=1)),
        corruption=ImageCorruption(config.corruption.method, config.corruption.probability),
        wanted=wanted,
        micro_batches=1,
    )
    total = sum(map(len, groups))
    out: list[list[Scores]] = []
    with jax.set_mesh(model.mesh):
        for start in range(0, len(prompts), size):
            # The last batch is filled up with its first prompt, without responses.
            here = _filled(groups[start : start + size], size, [])
            batch = (
                collate(
                    _filled(prompts[start : start + size], size, prompts[start]),
                    model.processor,
                    tokens,
                    slots,
                ),
                _laid(here, width, length),
                corruption_keys(_filled(ids[start : start + size], size, ""), seed),
            )
            asked, written, keys = put(batch, model.mesh)
            scores = jax.device_get(measure(Batch(asked, written, jax.random.wrap_key_data(keys))))
            for b in range(min(size, len(prompts) - start)):
                out.append(
                    [
                        {name: values[b, g, : len(one)] for name, values in scores.items()}
                        for g, one in enumerate(here[b])
                    ]
                )
            if progress:
                progress(sum(map(len, out)), total)
    return out


def _filled(rows: Sequence[Any], size: int, filling: Any) -> list[Any]:
    return [*rows, *[filling] * (size - len(rows))]


def _laid(groups: Sequence[Sequence[np.ndarray]], width: int, length: int) -> Responses:
    """Responses padded to ``[b, width, length]``, on the host."""
    grid = (len(groups), width)
    tokens: Any = np.zeros((*grid, length), np.int32)  # numpy until put on the device
    mask: Any = np.zeros((*grid, length), bool)
    logprob: Any = np.zeros(mask.shape, np.float32)
    zeros: Any = np.zeros(grid, np.int32)
    for b, members in enumerate(groups):
        for g, ids in enumerate(members):
            tokens[b, g, : len(ids)] = ids
            mask[b, g, : len(ids)] = True
    return Responses(
        tokens=tokens,
        mask=mask,
        logprob=logprob,
        log_kept=np.zeros_like(logprob),
        stop=zeros,
        valid=mask.any(axis=-1),
    )


def _rounded(count: int, most: int) -> int:
    """The power of two from ``count``, but ``most`` where that lies between: few shapes are compiled."""
    power = 1 << max(count - 1, 0).bit_length()
    return most if count <= most < power else power
