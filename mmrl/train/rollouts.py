"""One batch of experience: play the episodes of its prompts, and grade what they wrote."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from mmrl.config import Config
from mmrl.data.pipeline import Batch as PromptBatch
from mmrl.mesh import own_copy, own_mesh
from mmrl.models.processor import Processor
from mmrl.models.prompts import collate
from mmrl.rewards.pool import Graded, RewardPool
from mmrl.rollout.engine import decoding_weights
from mmrl.rollout.episodes import Episode, single_turn, with_tools
from mmrl.rollout.generate import gather, groups_of
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import roll_out
from mmrl.rollout.shape import Shape, cache_bytes, shape_for
from mmrl.rollout.stats import Stats
from mmrl.rollout.tools import TABLE
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.assemble import Model
from mmrl.train.experience import Experience, Overview, overview
from mmrl.train.grading import facts_of, paid, rules_of, told
from mmrl.train.metrics import Phases
from mmrl.train.preemption import Notice, interrupt
from mmrl.train.programs import Policy
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


def acting_weights(params: Params, model: Model) -> Params:
    """The weights as this process samples with them, on its own part of the mesh (`decoding_weights`)."""
    weights = decoding_weights(params, model.config)
    mesh = own_mesh(model.mesh)
    return weights if mesh is model.mesh else own_copy(weights, mesh)


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


def lanes_of(config: Config, prompts: int, width: int, group: int, max_tokens: int) -> Shape:
    """How much is decoded at once of ``prompts`` of ``width`` tokens, by ``config.rollout``."""
    rollout, limits = config.rollout, config.episode
    return shape_for(
        prompts,
        group,
        prompt=width,
        max_tokens=max_tokens,
        lanes=rollout.lanes,
        columns=rollout.columns,
        chunk=rollout.chunk,
        observation=limits.observation_tokens if limits.tools else 0,
        observation_patches=limits.observation_patches if limits.tools else 0,
    )


def stated(config: Config, model: Model) -> str:
    """What the keys and values of a rollout take, for people to read before it is computed."""
    rollout = config.rollout
    shape = lanes_of(
        config, rollout.prompts, max(config.data.prompt_buckets), rollout.group, rollout.max_tokens
    )
    size = cache_bytes(model.config, shape) / 2**20
    return (
        f"rollout: {shape.lanes} lanes of {shape.columns} responses, prompts of up to {shape.prompt} tokens, "
        f"responses of up to {shape.max_tokens}; keys and values take up to {size:,.1f} MiB over "
        f"{model.mesh.devices.size} devices"
    )


def play(
    params: Params,
    policy: Policy,
    model: Model,
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
    shape = lanes_of(config, len(samples), prompts.tokens.shape[1], group, sampling.max_tokens)
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


def sample_and_grade(
    params: Params,
    policy: Policy,
    model: Model,
    batch: PromptBatch,
    keys: UInt32[np.ndarray, "b k"],
    *,
    group: int,
    sampling: Sampling,
    config: Config,
    pool: RewardPool,
    tools: WorkerPool | None,
    stats: Stats,
    phases: Phases,
    notice: Notice,
    progress: float,
) -> tuple[Experience, Overview]:
    """Play ``group`` episodes of each prompt of this process, and grade each as it ends.

    ``params`` are laid out for decoding on this process's part of the mesh; ``progress`` is the share of the
    run that is done. A verifier sees the facts of the episode as ``sample.facts["episode"]``, and those of
    the rollout as ``sample.facts["rollout"]``. Every process of the run must call this.

    Raises:
      Interrupted: one of the processes was asked to stop.
    """
    rules, shape = rules_of(config), (len(batch.samples), group)
    ended: dict[tuple[int, int], Trajectory] = {}
    handles = {}
    with phases("rollout"), jax.set_mesh(own_mesh(model.mesh)):
        for one in play(
            params,
            policy,
            model,
            batch.samples,
            batch.prompts,
            keys,
            group=group,
            sampling=sampling,
            config=config,
            stats=stats,
            tools=tools,
            keep=batch.keep,
            given_up=lambda: notice.given is not None,
        ):
            sample = batch.samples[one.group]
            rollout = facts_of(one, sampling.max_tokens, progress)
            sample = told(sample, rules(sample), rollout, one.facts)
            handles[one.group, one.member] = pool.submit(sample, one.text)
            ended[one.group, one.member] = one
    interrupt(notice)
    with phases("rollout"):
        width = batch.prompts.images.patches.shape[-1]
        responses = gather(ended.values(), *shape, sampling.max_tokens, observed_slots(config), width)
    with phases("reward"):
        graded = {seat: handle.result() for seat, handle in handles.items()}
    nothing = Graded({}, valid=False)
    seats = [(b, g) for b in range(shape[0]) for g in range(group)]
    valid: Any = np.array([graded.get(seat, nothing).valid for seat in seats]).reshape(shape)
    lengths = responses.mask.sum(axis=-1)
    rewards: list[float] = []
    components: list[dict[str, float]] = []
    for b, sample in enumerate(batch.samples):
        of_group = [graded.get((b, g), nothing) for g in range(group)]
        pay = paid(rules(sample), of_group, lengths[b].tolist(), sampling.max_tokens, progress)
        rewards += pay[0]
        components += pay[1]
    experience = Experience(
        rows=batch.rows,
        samples=batch.samples,
        prompts=batch.prompts,
        responses=replace(responses, valid=valid),
        texts=[[ended[b, g].text if (b, g) in ended else "" for g in range(group)] for b in range(shape[0])],
        rewards=np.array(rewards, np.float32).reshape(shape),
        components=_table(components, shape),
        facts=_table([ended[seat].facts if seat in ended else {} for seat in seats], shape),
        skipped=batch.skipped,
        failures=tuple(row.error for row in graded.values() if row.error is not None),
    )
    with phases("wait"):
        return experience, overview(experience)


def _table(rows: Sequence[Mapping[str, float]], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Named values of each response as arrays by name; NaN where a response has none."""
    names = sorted({name for row in rows for name in row})
    return {
        name: np.array([row.get(name, np.nan) for row in rows], np.float32).reshape(shape) for name in names
    }
