"""Playing the episodes of a batch of prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from mmrl.config import Config
from mmrl.mesh import local_copy, local_mesh
from mmrl.models.processor import Processor
from mmrl.models.prompts import collate
from mmrl.open import OpenModel
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.episodes import Episode, single_turn, with_tools
from mmrl.rollout.generate import groups_of
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.rollout.scheduler import roll_out
from mmrl.rollout.shape import Shape, shape_for
from mmrl.rollout.stats import Stats
from mmrl.rollout.tools import TABLE
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.fit import most_lanes
from mmrl.train.memory import Widths
from mmrl.types import Params, Prompts
from mmrl.workers.pool import WorkerPool


def prompt_keys(seed: int, purpose: int, step: int, count: int, start: int = 0) -> UInt32[np.ndarray, "b k"]:
    """Data of random keys with the address (seed, purpose, step, prompt): no draw depends on another."""
    return np.asarray(_prompt_keys(*map(np.uint32, (seed, purpose, step, start)), count))


@partial(jax.jit, static_argnames="count")
def _prompt_keys(
    seed: UInt32[Array, ""],
    purpose: UInt32[Array, ""],
    step: UInt32[Array, ""],
    start: UInt32[Array, ""],
    count: int,
) -> UInt32[Array, "b k"]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(start + jnp.arange(count))
    return jax.random.key_data(keys)


def acting_weights(params: Params, model: OpenModel) -> Params:
    """The weights as this process samples with them, on its own part of the mesh (`decoding_weights`)."""
    weights = decoding_weights(params, model.config)
    mesh = local_mesh(model.mesh)
    return weights if mesh is model.mesh else local_copy(weights, mesh)


def tool_pool(config: Config) -> AbstractContextManager[WorkerPool | None]:
    """Processes for the tools of ``config.episode``; none where it has none."""
    if not config.episode.tools:
        return nullcontext()
    return WorkerPool(config.episode.workers, TABLE, config.episode.deadline_seconds)


def episodes_of(config: Config, processor: Processor, sampling: Sampling) -> Callable[[Sample], Episode]:
    """How an episode of a sample is made, as ``config.episode`` has it; ``sampling`` is that of a turn."""
    limits = config.episode
    sampling = replace(sampling, stop_ids=processor.stop)

    def episode(sample: Sample) -> Episode:
        if not limits.tools:
            return single_turn(sampling)
        return with_tools(
            processor,
            sample.images,
            sampling,
            tools=limits.tools,
            turns=limits.turns,
            most_images=limits.images,
            observation_tokens=limits.observation_tokens,
            observation_patches=limits.observation_patches,
            name=sample.id,
        )

    return episode


def observed_slots(config: Config) -> int:
    """Patch slots of all images that one response may read; 0 where it reads nothing."""
    limits = config.episode
    return max(limits.images, 1) * limits.observation_patches if limits.tools else 0


def lanes_of(config: Config, model: OpenModel, prompts: Prompts, group: int, max_tokens: int) -> Shape:
    """How much is decoded at once of ``prompts``, by ``config.rollout`` or by what memory is free."""
    count, width = prompts.tokens.shape
    config = replace(config, rollout=replace(config.rollout, group=group, max_tokens=max_tokens))
    rollout, limits = config.rollout, config.episode
    widths = Widths(width, prompts.images.image.shape[1])
    lanes = rollout.lanes or most_lanes(config, model.config, local_mesh(model.mesh), widths, count)
    return shape_for(
        count,
        group,
        prompt=width,
        max_tokens=max_tokens,
        lanes=lanes,
        columns=rollout.columns,
        chunk=rollout.chunk,
        observation=limits.observation_tokens if limits.tools else 0,
        observation_patches=limits.observation_patches if limits.tools else 0,
    )


def play(
    params: Params,
    policy: Policy,
    model: OpenModel,
    samples: Sequence[Sample],
    prompts: Prompts,
    keys: UInt32[np.ndarray, "b k"],
    *,
    group: int,
    sampling: Sampling,
    config: Config,
    stats: Stats,
    tools: WorkerPool | None = None,
    keep: Bool[np.ndarray, "b"] | None = None,
    given_up: Callable[[], bool] = bool,
) -> Iterator[Trajectory]:
    """Play ``group`` episodes of each prompt; a trajectory is given out when it ends, while others go on.

    Prompts are left out where ``keep`` is False; ``given_up`` is as for `mmrl.rollout.scheduler.roll_out`.
    Neither ``config.rollout.lanes``, ``columns`` nor ``chunk`` changes what is sampled.
    """
    prompts = jax.tree.map(np.asarray, prompts)
    processor = model.processor
    episode = episodes_of(config, processor, sampling)
    shape = lanes_of(config, model, prompts, group, sampling.max_tokens)
    return roll_out(
        params,
        policy.model,
        jnp.asarray(np.asarray(policy.bias)),  # on this process's devices
        groups_of(prompts, keys, group, lambda b: episode(samples[b]), keep),
        shape,
        text=partial(processor.tokenizer.decode, skip_special_tokens=True),
        collate=lambda encoded: collate([encoded], processor, shape.prompt, prompts.images.image.shape[1]),
        stats=stats,
        tools=None if tools is None else lambda call: tools.submit(call.tool, call.arguments),
        given_up=given_up,
    )
