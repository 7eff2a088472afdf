"""Playing episodes: what all rollouts have in common, and the responses to a batch of prompts."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from mmrl.config import Config
from mmrl.data.pipeline import Batch
from mmrl.hosts import say
from mmrl.mesh import batch_shards, local_copy, local_mesh
from mmrl.models.processor import Processor
from mmrl.models.prompts import collate
from mmrl.open import OpenModel, expand_workdir
from mmrl.rewards.judge_client import JudgeClient
from mmrl.rewards.pool import RewardPool
from mmrl.rewards.reward import user_verifiers
from mmrl.rollout.engine import RolloutShape, decoding_weights
from mmrl.rollout.episodes import Episode, single_turn, with_tools
from mmrl.rollout.generate import prompt_groups
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.rollout.scheduler import Stats, roll_out
from mmrl.rollout.slots import choose_slots, smaller_shapes
from mmrl.rollout.tools import TABLE
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.fit import max_prompt_slots
from mmrl.train.memory import Widths, on_cpu
from mmrl.train.metrics import Phases
from mmrl.train.stop_signal import StopSignal
from mmrl.types import Params, Prompts
from mmrl.workers.pool import WorkerPool

# Operations that a device does in the time it reads a byte: TPUs and GPUs, about; and cores of a CPU, as
# measured (docs/performance.md).
_FLOPS_PER_BYTE, _CPU_FLOPS_PER_BYTE = 200.0, 5.0


@dataclass(frozen=True)
class RolloutContext:
    """All that rollouts have in common: the config, the model without its weights, pools of processes."""

    config: Config
    model: OpenModel
    policy: Policy
    tools: WorkerPool | None = None
    rewards: RewardPool | None = None  # needed to grade
    stop: StopSignal = field(default_factory=StopSignal)
    phases: Phases = field(default_factory=Phases)  # where time is booked
    stats: Stats = field(default_factory=Stats)  # of sampling, added to
    slots: Mapping[str, Any] = field(default_factory=dict)  # of a `RolloutShape`, instead of the config's


@contextmanager
def open_rollouts(
    config: Config, model: OpenModel, workdir: Path | None, stop: StopSignal | None = None
) -> Iterator[RolloutContext]:
    """A context with the pools of tools and of rewards that ``config`` asks for.

    Raises ValueError for a judge that cannot work.
    """
    policy = model.policy(config.rollout.temperature)
    with reward_pool(config, workdir) as rewards, tool_pool(config) as tools:
        yield RolloutContext(config, model, policy, tools, rewards, stop or StopSignal())


@contextmanager
def reward_pool(config: Config, workdir: Path | None) -> Iterator[RewardPool]:
    """Processes that grade as ``config.reward`` says, and where an endpoint is named the judge's threads.

    Without a ``workdir``, a judge's cache that would lie in it is in memory. Of several processes each has a
    cache of its own, as not all share a disk that locks files, and its part of the budget.
    """
    reward, judge = config.reward, config.reward.judge
    cache = judge.cache
    if workdir is None and expand_workdir(cache, Path()) != cache:
        cache = ""
    cache, processes = expand_workdir(cache, workdir or Path()), jax.process_count()
    if processes > 1:
        most = judge.max_requests and max(judge.max_requests // processes, 1)
        judge = replace(judge, max_requests=most)
        cache = cache and f"{cache}.{jax.process_index()}"
    judge = replace(judge, cache=cache)
    asked = JudgeClient(judge, seed=config.seed, say=say) if judge.endpoint else nullcontext()
    names = tuple(user_verifiers(asdict(reward)))
    with (
        asked as judges,
        RewardPool(reward.workers, reward.deadline_seconds, judge=judges, user_verifiers=names) as pool,
    ):
        yield pool


def tool_pool(config: Config) -> AbstractContextManager[WorkerPool | None]:
    """Processes for the tools of ``config.episode``; none where it has none."""
    if not config.episode.tools:
        return nullcontext()
    return WorkerPool(config.episode.workers, TABLE, config.episode.deadline_seconds)


def rollout_weights(params: Params, model: OpenModel) -> Params:
    """The weights as this process samples with them, on its own part of the mesh (`decoding_weights`)."""
    weights = decoding_weights(params, model.config)
    mesh = local_mesh(model.mesh)
    return weights if mesh is model.mesh else local_copy(weights, mesh)


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


def episode_maker(config: Config, processor: Processor, sampling: Sampling) -> Callable[[Sample], Episode]:
    """A function that makes the episode of a sample as ``config.episode`` says; ``sampling`` is of a turn."""
    limits = config.episode
    sampling = replace(sampling, stop_ids=processor.stop)

    def make_episode(sample: Sample) -> Episode:
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

    return make_episode


def observation_slots(config: Config) -> int:
    """Patch slots of all images that one response may read; 0 where it reads nothing."""
    limits = config.episode
    return max(limits.images, 1) * limits.observation_patches if limits.tools else 0


def adapt_slots(
    context: RolloutContext, prompts: Prompts, lengths: Int[np.ndarray, "b g"], free: Collection[str]
) -> dict[str, Any]:
    """Numbers of slots for batches like that of ``prompts``, whose responses had these lengths.

    For episodes without tools, whose time would not be known. Every process finds the same, as all of them
    have as many prompts. ``free``: keys of the config that were left open; what others say stays.
    """
    config, model = context.config, context.model
    mesh = local_mesh(model.mesh)
    shards, count = batch_shards(mesh), len(prompts.tokens)
    most = choose_shape(config, model, prompts, config.rollout.group, config.rollout.max_tokens)
    shapes = smaller_shapes(
        most,
        shards,
        fewer_prompts="rollout.prompt_slots" in free,
        fewer_responses="rollout.slots_per_prompt" in free,
    )
    flops_per_byte = _CPU_FLOPS_PER_BYTE if on_cpu(mesh) else _FLOPS_PER_BYTE
    shape = choose_slots(lengths[:count], shapes, shards, model.config, flops_per_byte)
    return {name: getattr(shape, name) for name in ("prompt_slots", "slots_per_prompt", "compacts")}


def choose_shape(
    config: Config, model: OpenModel, prompts: Prompts, group: int, max_tokens: int
) -> RolloutShape:
    """The shape of decoding of ``prompts``, by ``config.rollout`` or by what memory is free."""
    count, width = prompts.tokens.shape
    config = replace(config, rollout=replace(config.rollout, group=group, max_tokens=max_tokens))
    rollout, limits = config.rollout, config.episode
    widths = Widths(width, prompts.images.image.shape[1])
    prompt_slots = rollout.prompt_slots or max_prompt_slots(
        config, model.config, local_mesh(model.mesh), widths, count
    )
    shape = RolloutShape(prompt_slots, rollout.slots_per_prompt, width, max_tokens, chunk=rollout.chunk)
    if limits.tools:
        read = limits.observation_tokens, limits.observation_patches
        shape = replace(shape, observation=read[0], observation_patches=read[1])
    return shape.within(count, group)


def play(
    context: RolloutContext,
    params: Params,
    batch: Batch,
    keys: UInt32[np.ndarray, "b k"],
    *,
    group: int,
    sampling: Sampling,
) -> Iterator[Trajectory]:
    """Play ``group`` episodes of each prompt; a trajectory is given out when it ends, while others go on.

    ``params`` are `rollout_weights`. Prompts are left out where ``batch.keep`` is False; after a stop signal
    nothing more is sampled and the rest is lost. How much is decoded at once never changes what is sampled.
    """
    processor, tools = context.model.processor, context.tools
    prompts = jax.tree.map(np.asarray, batch.prompts)
    make_episode = episode_maker(context.config, processor, sampling)
    shape = choose_shape(context.config, context.model, prompts, group, sampling.max_tokens)
    shape = replace(shape, **context.slots)
    return roll_out(
        params,
        context.policy.model,
        jnp.asarray(np.asarray(context.policy.bias)),  # on this process's devices
        prompt_groups(prompts, keys, group, lambda b: make_episode(batch.samples[b]), batch.keep),
        shape,
        text=partial(processor.tokenizer.decode, skip_special_tokens=True),
        collate=lambda encoded: collate([encoded], processor, shape.prompt, prompts.images.image.shape[1]),
        stats=context.stats,
        tools=None if tools is None else lambda call: tools.submit(call.tool, call.arguments),
        should_stop=context.stop.should_stop,
    )
