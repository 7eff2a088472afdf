"""Batches of graded responses: each process samples and grades its rows, and has the statistics of all."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt32

from mmrl import hosts
from mmrl.data.pipeline import Batch, Skipped
from mmrl.grading import SELF_JUDGE, Rewards, group_rewards, response_info, rewards_of, verifier_input
from mmrl.mesh import constrain, local_mesh, shard_batch
from mmrl.models.prompts import pad_prompts
from mmrl.packing import real_sizes
from mmrl.rewards.verifier import Graded
from mmrl.rollout.generate import response_keys, to_responses
from mmrl.rollout.sampling import Sampling
from mmrl.rollout.trajectory import Trajectory
from mmrl.sample import Sample
from mmrl.train.rollouts import RolloutContext, observation_slots, play
from mmrl.train.self_judge import judge_responses
from mmrl.train.stop_signal import StopSignal
from mmrl.types import Params, Prompts, Responses, StopReason

Cell = tuple[int, int]  # prompt, response in its group
Table = dict[str, np.ndarray]  # [b g] by name; NaN where a response has no such value

_POLL_S = 0.2  # between looks whether the run is to stop
_UNJUDGED = "the policy's question about it does not fit config.data.prompt_buckets"


@struct.dataclass
class RowStats:
    """Statistics of rows, a pytree of numpy arrays with the rows in front."""

    ids: np.ndarray  # [b]
    sources: np.ndarray  # [b], the data set of each row
    rewards: np.ndarray  # [b g]
    valid: np.ndarray  # [b g], False where grading failed and in empty slots
    lengths: np.ndarray  # [b g], tokens that the policy wrote
    truncated: np.ndarray  # [b g]
    components: Table  # of the reward
    episode_metrics: Table
    digests: np.ndarray  # [b], of each row's id and the tokens sampled
    prompt_tokens: np.ndarray  # [b]
    patches: np.ndarray  # [b], of the prompt's images and of those that responses looked at
    read: np.ndarray  # [b g], tokens of a response to compute: what it reads, too; 0 where it is not valid

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each group that there are to compute, the prompt once."""
        return self.prompt_tokens + self.read.sum(axis=1)

    @property
    def accuracy(self) -> np.ndarray:
        """The component "accuracy", or the reward where no verifier reports one."""
        return np.nan_to_num(self.components.get("accuracy", self.rewards))


@dataclass(frozen=True)
class RolloutBatch:
    """This process's rows of a batch, sampled and graded; arrays of the host."""

    rows: Int[np.ndarray, "b"]  # which of the whole batch they are
    samples: list[Sample]
    prompts: Prompts
    responses: Responses  # ``valid`` is False where grading failed and in empty slots
    texts: list[list[str]]
    stats: RowStats  # of all rows of the batch, those of other processes included
    skipped: tuple[Skipped, ...] = ()  # rows that could not be used, of all processes
    failures: tuple[str, ...] = ()  # the first reason for which a grading failed, of each process

    @property
    def local_stats(self) -> RowStats:
        """The statistics of this process's rows."""
        return take_rows(self.stats, self.rows)


def sample_and_grade(
    context: RolloutContext,
    params: Params,
    batch: Batch,
    keys: UInt32[np.ndarray, "b k"],
    *,
    group: int,
    sampling: Sampling,
    progress: float = 1.0,
    on_response: Callable[[int], None] = lambda tokens: None,
) -> RolloutBatch:
    """Play ``group`` episodes of each prompt of this process, and grade each as it ends.

    A verifier sees the metrics of the episode as ``sample.facts["episode"]``, and those of the rollout as
    ``sample.facts["rollout"]``. Every process of the run must call this.

    Args:
      context, params, batch, keys, group, sampling: as for `play`.
      progress: share of the run that is done, for rewards that change over it.
      on_response: called with the tokens of each response when it ends.

    Raises:
      Interrupted: one of the processes was asked to stop.
    """
    config, phases, pool = context.config, context.phases, context.rewards
    assert pool is not None
    reward_for, shape = rewards_of(config), (len(batch.samples), group)
    ended: dict[Cell, Trajectory] = {}
    grading: dict[Cell, Future[Graded]] = {}
    with phases("rollout"), jax.set_mesh(local_mesh(context.model.mesh)):
        for response in play(context, params, batch, keys, group=group, sampling=sampling):
            cell = response.group, response.member
            sample = batch.samples[response.group]
            rollout = response_info(response, sampling.max_tokens, progress)
            sample = verifier_input(sample, reward_for(sample), rollout, response.facts)
            grading[cell] = pool.submit(sample, response.text)
            ended[cell] = response
            on_response(int(response.written.sum()))
    with phases("rollout"):
        width = batch.prompts.images.patches.shape[-1]
        slots = observation_slots(config)
        responses = to_responses(ended.values(), *shape, sampling.max_tokens, slots, width)
    with phases("reward"):
        graded = _wait_for_grades(grading, context.stop)
    context.stop.check()
    texts = [[ended[b, g].text if (b, g) in ended else "" for g in range(group)] for b in range(shape[0])]
    if config.reward.self_judge.question:
        with phases("self_judge"):
            graded = _add_verdicts(context, params, batch, keys, texts, graded, reward_for)
        context.stop.check()
    nothing = Graded({}, valid=False)
    valid: Any = np.zeros(shape, bool)
    rewards = np.zeros(shape, np.float32)
    components: list[dict[str, float]] = []
    for b, sample in enumerate(batch.samples):
        grades = [graded.get((b, g), nothing) for g in range(group)]
        lengths = [int(ended[b, g].written.sum()) if (b, g) in ended else 0 for g in range(group)]
        valid[b] = [grade.valid for grade in grades]
        reward = reward_for(sample)
        rewards[b], of_group = group_rewards(reward, grades, lengths, sampling.max_tokens, progress)
        components += of_group
    with phases("wait"):
        return make_rollout_batch(
            batch,
            replace(responses, valid=valid),
            texts,
            rewards,
            components,
            [ended[cell].facts if cell in ended else {} for cell in np.ndindex(shape)],
            [grade.error for grade in graded.values() if grade.error is not None],
        )


def _wait_for_grades(grading: Mapping[Cell, Future[Graded]], stop: StopSignal) -> dict[Cell, Graded]:
    """All gradings; fewer after a stop signal, as a judge may take minutes."""
    left = set(grading.values())
    while left and not stop.should_stop():
        left = wait(left, timeout=_POLL_S).not_done
    return {cell: future.result() for cell, future in grading.items() if future.done()}


def _add_verdicts(
    context: RolloutContext,
    params: Params,
    batch: Batch,
    keys: UInt32[np.ndarray, "b k"],
    texts: list[list[str]],
    graded: Mapping[Cell, Graded],
    reward_for: Rewards,
) -> dict[Cell, Graded]:
    """Gradings with the component "self_judge"; invalid where it is asked for and there is none."""
    shape = (len(texts), len(texts[0]))
    keep: Any = np.array([cell in graded and graded[cell].valid for cell in np.ndindex(shape)]).reshape(shape)
    # The key of a member that no group has: no response was sampled with it.
    own_keys = response_keys(keys, shape[1] + 1)[:, -1]
    verdicts = judge_responses(context, params, batch.samples, texts, keep, own_keys)
    out = {}
    for cell, grade in graded.items():
        sample = batch.samples[cell[0]]
        if grade.valid and not np.isnan(verdicts[cell]):
            grade = replace(grade, components={**grade.components, SELF_JUDGE: float(verdicts[cell])})
        elif grade.valid and SELF_JUDGE in reward_for(sample).needs:
            grade = Graded({}, False, f"sample {sample.id}: {_UNJUDGED}")
        out[cell] = grade
    return out


def make_rollout_batch(
    batch: Batch,
    responses: Responses,
    texts: list[list[str]],
    rewards: np.ndarray,
    components: Sequence[Mapping[str, float]],
    episode_metrics: Sequence[Mapping[str, float]],
    failures: Sequence[str] = (),
) -> RolloutBatch:
    """Add the statistics of all rows; every process of the run must call this.

    ``components`` and ``episode_metrics`` have a dict a response, in the order of the array ``rewards``.
    """
    notes = hosts.gather(
        {
            "skipped": [[row.id, row.reason] for row in batch.skipped],
            "failures": list(failures[:1]),
            "names": [_names(rows) for rows in (components, episode_metrics)],
        }
    )
    names = [_names(part["names"][k] for part in notes) for k in (0, 1)]
    prompts = batch.prompts
    sizes = real_sizes(prompts, responses)
    ids = [sample.id.encode() for sample in batch.samples]
    arrays = {
        "rewards": np.asarray(rewards, np.float32),
        "valid": np.asarray(responses.valid),
        "lengths": responses.mask.sum(axis=-1).astype(np.int32),
        "truncated": responses.mask.any(axis=-1) & (responses.stop == StopReason.LENGTH),
        "components": _table(components, names[0], rewards.shape),
        "episode_metrics": _table(episode_metrics, names[1], rewards.shape),
        "digests": np.array(
            [zlib.crc32(responses.tokens[b].tobytes(), zlib.crc32(name)) for b, name in enumerate(ids)],
            np.uint32,
        ),
        **{
            name: size.astype(np.int32)
            for name, size in zip(("prompt_tokens", "patches", "read"), sizes, strict=True)
        },
    }
    labels = hosts.gather_rows(batch.rows, [(sample.id, sample.source) for sample in batch.samples])
    found, sources = np.array(labels).reshape(-1, 2).T
    return RolloutBatch(
        rows=batch.rows,
        samples=batch.samples,
        prompts=prompts,
        responses=responses,
        texts=texts,
        stats=RowStats(ids=found, sources=sources, **hosts.gather_arrays(batch.rows, arrays)),
        skipped=tuple(Skipped(*pair) for part in notes for pair in part["skipped"]),
        failures=tuple(reason for part in notes for reason in part["failures"]),
    )


def _names(rows: Iterable[Iterable[str]]) -> list[str]:
    """All names that stand in some of the rows, sorted."""
    return sorted({name for row in rows for name in row})


def _table(rows: Sequence[Mapping[str, float]], names: Sequence[str], shape: tuple[int, ...]) -> Table:
    return {
        name: np.array([row.get(name, np.nan) for row in rows], np.float32).reshape(shape) for name in names
    }


def take_rows(tree: Any, index: Any) -> Any:
    """Some of the rows of every array: a slice, or their numbers."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def concatenate(parts: Sequence[RowStats]) -> RowStats:
    """The rows of several batches, one after another."""

    def columns(stats: RowStats, kind: str) -> Table:
        missing = np.full(stats.rewards.shape, np.nan, np.float32)
        names = _names(getattr(part, kind) for part in parts)
        return {name: getattr(stats, kind).get(name, missing) for name in names}

    alike = [
        replace(
            part,
            components=columns(part, "components"),
            episode_metrics=columns(part, "episode_metrics"),
        )
        for part in parts
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *alike)


def collect(
    draw: Callable[[int], RolloutBatch],
    keep: Callable[[RowStats], np.ndarray],
    prompts: int,
    max_batches: int,
) -> tuple[list[RolloutBatch], list[int], RowStats, dict[str, float]]:
    """Dynamic sampling: draw batches until ``prompts`` groups are worth training on, at most ``max_batches``.

    When the bound is reached, the batch is filled up with groups that were passed over; having no spread of
    rewards they do not move the policy, and the shapes stay as they are.

    Args:
      draw: the n-th batch of this step.
      keep: which of its groups to train on, ``Bool[b]``.
      prompts: groups wanted, of all processes.
      max_batches: bound on the number of draws.

    Returns:
      What was drawn; which groups were chosen, counted through all of it; their statistics; and the counts
      "rollout/batches" and "rollout/kept_groups" (share of the groups seen).
    """
    drawn: list[RolloutBatch] = []
    kept = np.zeros(0, bool)
    while kept.sum() < prompts and len(drawn) < max_batches:
        drawn.append(draw(len(drawn)))
        kept = np.concatenate([kept, keep(drawn[-1].stats)])
    chosen = [*np.flatnonzero(kept).tolist(), *np.flatnonzero(~kept).tolist()][:prompts]
    if len(drawn) == 1:
        chosen = sorted(chosen)
    metrics = {
        "rollout/batches": float(len(drawn)),
        "rollout/kept_groups": float(kept.sum()) / len(kept),
    }
    return drawn, chosen, take_rows(concatenate([batch.stats for batch in drawn]), chosen), metrics


def put_on_mesh(
    drawn: Sequence[RolloutBatch], chosen: Sequence[int], mesh: Mesh, tokens: int, slots: int
) -> tuple[Prompts, Responses]:
    """The chosen groups as one batch over the mesh, in their order.

    Prompts are padded to ``tokens`` and patch ``slots``, so that no batch brings shapes of its own.
    """
    placed = [
        shard_batch((pad_prompts(batch.prompts, tokens, slots), batch.responses), mesh) for batch in drawn
    ]
    if len(drawn) == 1 and [*chosen] == [*range(len(drawn[0].stats.ids))]:
        return placed[0]
    return _take_rows(tuple(placed), np.array(chosen, np.int32))


@jax.jit
def _take_rows(batches: tuple[Any, ...], chosen: Int[Array, "b"]) -> Any:
    def take(*leaves: Array) -> Array:
        return constrain(jnp.concatenate(leaves)[chosen], "batch", *[None] * (leaves[0].ndim - 1))

    return jax.tree.map(take, *batches)


def rollout_metrics(stats: RowStats) -> dict[str, float]:
    """Metrics of sampled and graded responses; apart for each data set where there are several.

    "rollout/digest" is equal in two runs that have drawn the same rows in the same order and sampled the same
    tokens.
    """
    valid, lengths = stats.valid, stats.lengths
    sampled = lengths > 0  # False in empty slots
    out = {
        "rollout/digest": float(zlib.crc32(stats.digests.astype(np.int64).tobytes())),
        "reward/mean": _mean(stats.rewards, valid),
        "reward/invalid": _mean(~valid, sampled),
        "reward/equal_groups": float(_equal_rewards(stats.rewards, valid).mean()),
        "response/length": _mean(lengths, sampled),
        "response/longest": float(lengths.max()),
        "response/truncated": _mean(stats.truncated, sampled),
    }
    for kind, table in (("reward", stats.components), ("episode", stats.episode_metrics)):
        for name, values in table.items():
            out[f"{kind}/{name}"] = _mean(values, valid & ~np.isnan(values))
    names = sorted({*stats.sources.tolist()} - {""})
    for name in names if len(names) > 1 else ():
        of = (stats.sources == name)[:, None]
        out[f"source/{name}/share"] = float(of.mean())
        out[f"source/{name}/reward"] = _mean(stats.rewards, valid & of)
        for component, values in {"accuracy": stats.accuracy, **stats.components}.items():
            known = valid & of & ~np.isnan(values)
            if known.any():
                out[f"source/{name}/{component}"] = _mean(values, known)
        out[f"source/{name}/length"] = _mean(lengths, np.broadcast_to(of, lengths.shape))
    return out


def _equal_rewards(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Groups whose valid rewards are all equal: they have no advantage to learn from."""
    highest = np.where(valid, rewards, -np.inf).max(axis=1)
    lowest = np.where(valid, rewards, np.inf).min(axis=1)
    return highest <= lowest


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0
