"""One batch of experience: sample groups, grade them, and draw again where an algorithm filters groups."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from mmrl.config import Config
from mmrl.data.pipeline import Batch as PromptBatch
from mmrl.models.processor import Processor
from mmrl.models.prompts import collate
from mmrl.rewards.pool import RewardPool
from mmrl.rewards.verifier import score
from mmrl.rollout.episodes import Episode, single_turn, with_tools
from mmrl.rollout.generate import gather, groups_of
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.scheduler import Stats, roll_out
from mmrl.rollout.shape import Shape, cache_bytes, shape_for
from mmrl.rollout.tools import TABLE
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.assemble import Model
from mmrl.train.metrics import Phases
from mmrl.train.programs import Policy
from mmrl.types import Params, Prompts, Responses, StopReason
from mmrl.workers.pool import WorkerPool


@dataclass(frozen=True)
class Experience:
    """Graded groups of responses, on the host."""

    samples: list[Sample]
    prompts: Prompts
    responses: Responses  # ``valid`` is False where grading failed
    texts: list[list[str]]
    rewards: Float[np.ndarray, "b g"]
    components: dict[str, Float[np.ndarray, "b g"]]  # NaN where a verifier does not report it
    facts: dict[str, Float[np.ndarray, "b g"]] = field(default_factory=dict)  # of episodes; NaN likewise
    stats: dict[str, float] = field(default_factory=dict)  # how the rollout went, by metric

    @property
    def accuracy(self) -> Float[np.ndarray, "b g"]:
        """The "accuracy" component, or the reward where no verifier reports one."""
        return np.nan_to_num(self.components.get("accuracy", self.rewards))


def prompt_keys(seed: int, purpose: int, step: int, count: int, start: int = 0) -> Key[jax.Array, "b"]:
    """Random keys with the address (seed, purpose, step, prompt): no draw depends on another."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(start + jnp.arange(count))


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
    keys: Key[jax.Array, "b"],
    *,
    group: int,
    sampling: Sampling,
    config: Config,
    stats: Stats,
    tools: WorkerPool | None = None,
) -> Iterator[Trajectory]:
    """Play ``group`` episodes of each prompt; a trajectory is given out when it ends, while others go on.

    Neither ``config.rollout.lanes``, ``columns`` nor ``chunk`` changes what is sampled.
    """
    prompts = jax.tree.map(np.asarray, prompts)
    processor = model.processor
    episode = episodes_of(config, processor, sampling)
    shape = lanes_of(config, len(samples), prompts.tokens.shape[1], group, sampling.max_tokens)
    return roll_out(
        params,
        policy.model,
        policy.bias,
        groups_of(prompts, keys, group, lambda b: episode(samples[b])),
        shape,
        text=partial(processor.tokenizer.decode, skip_special_tokens=True),
        collate=lambda encoded: collate([encoded], processor, shape.prompt, prompts.images.image.shape[1]),
        stats=stats,
        tools=None if tools is None else lambda call: tools.submit(call.tool, call.arguments),
    )


def sample_and_grade(
    params: Params,
    policy: Policy,
    model: Model,
    batch: PromptBatch,
    keys: Key[jax.Array, "b"],
    *,
    group: int,
    sampling: Sampling,
    config: Config,
    pool: RewardPool,
    tools: WorkerPool | None,
    phases: Phases,
) -> Experience:
    """Play ``group`` episodes of each prompt and grade each as it ends; ``params`` are laid out for decoding.

    A verifier sees the facts of the episode as ``sample.facts["episode"]``.
    """
    reward, shape, stats = config.reward, (len(batch.samples), group), Stats()
    with phases("rollout"):
        ended: dict[tuple[int, int], Trajectory] = {}
        handles = {}
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
        ):
            sample = batch.samples[one.group]
            facts = {**sample.facts, "episode": dict(one.facts)} if one.facts else sample.facts
            sample = replace(sample, verifier=reward.verifier or sample.verifier, facts=facts)
            handles[one.group, one.member] = pool.submit(sample, one.text)
            ended[one.group, one.member] = one
        width = batch.prompts.images.patches.shape[-1]
        responses = gather(ended.values(), *shape, sampling.max_tokens, observed_slots(config), width)
    with phases("reward"):
        seats = sorted(ended)
        graded = [handles[seat].result() for seat in seats]
        valid: Any = np.array([item.valid for item in graded]).reshape(shape)
        rewards = [score(item.components, reward.weights) if item.valid else 0.0 for item in graded]
    texts = [ended[seat].text for seat in seats]
    return Experience(
        samples=batch.samples,
        prompts=batch.prompts,
        responses=replace(responses, valid=valid),
        texts=[texts[start : start + group] for start in range(0, len(texts), group)],
        rewards=np.array(rewards, np.float32).reshape(shape),
        components=_table([item.components for item in graded], shape),
        facts=_table([ended[seat].facts for seat in seats], shape),
        stats=stats.metrics(),
    )


def _table(rows: Sequence[Mapping[str, float]], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Named values of each response as arrays by name; NaN where a response has none."""
    names = sorted({name for row in rows for name in row})
    return {
        name: np.array([row.get(name, np.nan) for row in rows], np.float32).reshape(shape) for name in names
    }


def collect(
    draw: Callable[[int], Experience],
    keep: Callable[[Experience], np.ndarray],
    prompts: int,
    max_batches: int,
) -> tuple[Experience, dict[str, float]]:
    """Dynamic sampling: draw batches until ``prompts`` groups are worth training on, at most ``max_batches``.

    When the bound is reached, the batch is filled up with groups that were passed over; having no spread of
    rewards they do not move the policy, and the shapes stay as they are.

    Args:
      draw: the experience of the n-th batch of this step.
      keep: which of its groups to train on, ``Bool[b]``.
      prompts: groups wanted.
      max_batches: bound on the number of draws.

    Returns:
      The experience, and the counts "sampled_batches" and "kept_groups" (share of the groups seen).
    """
    drawn: list[Experience] = []
    kept: list[tuple[int, int]] = []
    passed: list[tuple[int, int]] = []
    while len(kept) < prompts and len(drawn) < max_batches:
        experience = draw(len(drawn))
        for row, good in enumerate(keep(experience)):
            (kept if good else passed).append((len(drawn), row))
        drawn.append(experience)
    seen = sum(len(experience.samples) for experience in drawn)
    metrics = {"rollout/batches": float(len(drawn)), "rollout/kept_groups": len(kept) / seen}
    chosen = (kept + passed)[:prompts]
    if len(drawn) == 1:
        chosen = sorted(chosen)
    return _choose(drawn, chosen), metrics


def _choose(drawn: Sequence[Experience], chosen: Sequence[tuple[int, int]]) -> Experience:
    """The chosen groups as one batch; prompts of different buckets are padded to the longest."""

    def chosen_rows(leaves: Sequence[np.ndarray], fill: Any = 0) -> np.ndarray:
        axis_one = max(leaf.shape[1] for leaf in leaves) if leaves[0].ndim > 1 else 0
        rows = []
        for batch, row in chosen:
            value = np.asarray(leaves[batch][row])
            if value.ndim and value.shape[0] < axis_one:
                padding = [(0, axis_one - value.shape[0])] + [(0, 0)] * (value.ndim - 1)
                value = np.pad(value, padding, constant_values=fill)
            rows.append(value)
        return np.stack(rows)

    def merge(trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: chosen_rows(leaves), *trees)

    prompts = merge([experience.prompts for experience in drawn])
    # -1, not 0, stands for "no image" in these two.
    image_token = chosen_rows([np.asarray(experience.prompts.image_token) for experience in drawn], -1)
    image = chosen_rows([np.asarray(experience.prompts.images.image) for experience in drawn], -1)
    prompts = replace(prompts, image_token=image_token, images=replace(prompts.images, image=image))
    missing = np.full(drawn[0].rewards.shape, np.nan, np.float32)

    def merge_tables(tables: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        names = sorted({name for table in tables for name in table})
        return {name: chosen_rows([table.get(name, missing) for table in tables]) for name in names}

    return Experience(
        samples=[drawn[batch].samples[row] for batch, row in chosen],
        prompts=prompts,
        responses=merge([experience.responses for experience in drawn]),
        texts=[drawn[batch].texts[row] for batch, row in chosen],
        rewards=chosen_rows([experience.rewards for experience in drawn]),
        components=merge_tables([experience.components for experience in drawn]),
        facts=merge_tables([experience.facts for experience in drawn]),
        stats=drawn[-1].stats,
    )


def describe(experience: Experience) -> dict[str, float]:
    """Metrics of sampled and graded responses."""
    responses, valid = experience.responses, np.asarray(experience.responses.valid)
    lengths = responses.mask.sum(axis=-1)
    out = {
        "reward/mean": _mean(experience.rewards, valid),
        "reward/invalid": float(1.0 - valid.mean()),
        "reward/equal_groups": float(_without_spread(experience.rewards, valid).mean()),
        "response/length": float(lengths.mean()),
        "response/longest": float(lengths.max()),
        "response/truncated": float((responses.stop == StopReason.LENGTH).mean()),
        "padding/prompt": float(1.0 - experience.prompts.mask.mean()),
        "padding/patches": float(1.0 - (experience.prompts.images.image >= 0).mean()),
        "padding/response": float(1.0 - responses.mask.mean()),
    }
    for kind, table in (("reward", experience.components), ("episode", experience.facts)):
        for name, values in table.items():
            out[f"{kind}/{name}"] = _mean(values, valid & ~np.isnan(values))
    return out | experience.stats


def _without_spread(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Groups whose valid rewards are all equal: they have no advantage to learn from."""
    highest = np.where(valid, rewards, -np.inf).max(axis=1)
    lowest = np.where(valid, rewards, np.inf).min(axis=1)
    return highest <= lowest


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0
