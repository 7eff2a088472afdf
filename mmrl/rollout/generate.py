"""A batch of prompts in, groups of responses out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt32

from mmrl.models.config import ModelConfig
from mmrl.rollout.engine import RolloutShape
from mmrl.rollout.episodes import Episode, single_turn
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import PromptGroup, Stats, roll_out
from mmrl.rollout.trajectory import Trajectory
from mmrl.types import Images, Observed, Params, Prompts, Responses


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Prompts,
    keys: Key[Array, "b"],
    *,
    group: int,
    sampling: Sampling,
    bias: Float[Array, "v"],
    text: Callable[[Sequence[int]], str] = str,
    prompt_slots: int = 0,
    slots_per_prompt: int = 0,
    chunk: int = 16,
    stats: Stats | None = None,
) -> Responses:
    """Sample ``group`` responses to each prompt; arrays of the host.

    The tokens depend on the prompt, its key and the sampling alone: not on what else is in the batch, nor on
    ``prompt_slots``, ``slots_per_prompt`` and ``chunk``.

    Args:
      params: weights of the policy, as `mmrl.rollout.engine.decoding_weights` lays them out.
      config: its sizes.
      prompts: the batch; fixed shapes compile once.
      keys: one random key for each prompt.
      group: responses a prompt.
      sampling: temperature, truncation, what stops a response.
      bias: added to the logits: 0, or `BANNED` for ids that must never be sampled.
      text: of token ids, where stop strings are looked for.
      prompt_slots: prompts decoded at once; 0: all.
      slots_per_prompt: responses of a prompt decoded at once; 0: the group.
      chunk: steps between two looks of the host.
      stats: added to.
    """
    prompts = jax.tree.map(np.asarray, prompts)
    count, width = prompts.tokens.shape
    shape = RolloutShape(prompt_slots, slots_per_prompt, width, sampling.max_tokens, chunk=chunk)
    shape = shape.within(count, group)
    data = np.asarray(jax.random.key_data(keys))
    groups = prompt_groups(prompts, data, group, lambda _: single_turn(sampling))

    def none(_: Any) -> Prompts:
        raise ValueError("an episode of one turn asks for no other prompt")

    done = roll_out(params, config, bias, groups, shape, text=text, collate=none, stats=stats or Stats())
    return to_responses(done, count, group, sampling.max_tokens)


def prompt_groups(
    prompts: Prompts,
    keys: UInt32[np.ndarray, "b k"],
    group: int,
    episode: Callable[[int], Episode],
    keep: Bool[np.ndarray, "b"] | None = None,
) -> Iterator[PromptGroup]:
    """Each prompt with ``group`` episodes, ``episode(b)`` for prompt ``b``; made as they are asked for.

    Groups of prompts where ``keep`` is False have no episodes.
    """
    for b, data in enumerate(response_keys(keys, group)):
        kept = keep is None or bool(keep[b])
        episodes = [episode(b) for _ in range(group)] if kept else []
        yield PromptGroup(jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], prompts), data, episodes)


def response_keys(keys: UInt32[np.ndarray, "b k"], group: int) -> UInt32[np.ndarray, "b g k"]:
    """Data of the random key of each response: that of its prompt and its number, nothing else."""
    return np.asarray(_member_keys(keys, group))


@partial(jax.jit, static_argnames="group")
def _member_keys(keys: UInt32[Array, "b k"], group: int) -> UInt32[Array, "b g k"]:
    members = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jax.numpy.arange(group)))
    made = members(jax.random.wrap_key_data(keys))
    return jax.random.key_data(made)


def to_responses(
    trajectories: Iterable[Trajectory],
    prompts: int,
    group: int,
    length: int,
    observation_patches: int = 0,
    patch_width: int = 0,
) -> Responses:
    """Trajectories as a batch, padded to ``length`` tokens; arrays of the host.

    With ``observation_patches``, the slots of the images that a response may read, there is room for what was
    read (`mmrl.types.Observed`), used or not. Raises ValueError if there is none, but a response has read.
    """
    grid = (prompts, group)

    def blank(*width: int, dtype: Any = np.int32, fill: int = 0) -> Any:
        return np.full((*grid, *width), fill, dtype)

    out = Responses(
        tokens=blank(length),
        mask=blank(length, dtype=bool),
        logprob=blank(length, dtype=np.float32),
        log_kept=blank(length, dtype=np.float32),
        stop=blank(),
        valid=blank(dtype=bool, fill=1),
    )
    observed = Observed(
        real=blank(length, dtype=bool),
        position=blank(length, 3),
        image_token=blank(length, fill=-1),
        images=Images(
            patches=blank(observation_patches, patch_width, dtype=np.uint8),
            position=blank(observation_patches, 2),
            image=blank(observation_patches, fill=-1),
        ),
    )
    for one in trajectories:
        slot, count = (one.group, one.member), len(one.tokens)
        out.tokens[slot][:count] = one.tokens
        out.mask[slot][:count] = one.written
        out.logprob[slot][:count] = one.logprob
        out.log_kept[slot][:count] = one.log_kept
        out.stop[slot] = one.stop
        if not observation_patches:
            if one.position is not None:
                raise ValueError("a response has read something: give all its observation_patches")
            continue
        observed.real[slot][:count] = True
        observed.position[slot][:count] = np.arange(count)[:, None] if one.position is None else one.position
        if one.image_token is not None:
            slots = len(one.patches)
            observed.image_token[slot][:count] = one.image_token
            observed.images.patches[slot][:slots] = one.patches
            observed.images.position[slot][:slots] = one.patch_position
            observed.images.image[slot][:slots] = one.patch_image
    return replace(out, observed=observed) if observation_patches else out
