"""One step of reinforcement learning: rollout, reward, score, prepare, update."""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from mmrl import hosts
from mmrl.algorithms.algorithm import Algorithm, keep_groups
from mmrl.algorithms.passes import LOGPROB, Score
from mmrl.data import pipeline
from mmrl.data.curriculum import CurriculumSampler
from mmrl.hosts import say
from mmrl.mesh import batch_shards, local_rows, shard_batch
from mmrl.open import sampling_of, training_sizes
from mmrl.packing import balanced_order, computed_slots
from mmrl.rollout.scheduler import Stats, merged
from mmrl.train import programs
from mmrl.train.guards import Guards, save_incident
from mmrl.train.metrics import padding_metrics, to_floats
from mmrl.train.programs import TrainBatch, Views, train_batch, views_of
from mmrl.train.rollout_batch import (
    RolloutBatch,
    RowStats,
    collect,
    put_on_mesh,
    rollout_metrics,
    sample_and_grade,
    take_rows,
)
from mmrl.train.rollouts import RolloutContext, adapt_slots, prompt_keys, rollout_weights
from mmrl.train.state import TrainState
from mmrl.types import Params

_ROLLOUT, _CORRUPTION = 0, 1  # purposes of random keys


@dataclass(frozen=True)
class Learner:
    """All that a step needs beside weights: algorithm, rollouts, optimizer and data."""

    rollouts: RolloutContext
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    models: dict[str, Params]  # weights of the models that the algorithm reads beside the policy, by name
    batches: pipeline.Batches[pipeline.Batch]
    guards: Guards
    sampler: CurriculumSampler | None
    total_updates: int
    workdir: Path
    slots: dict[str, Any]  # to decode in, as for `RolloutContext`; filled in by the first step
    open_keys: frozenset[str]  # of the config, which lengths may decide

    @property
    def views(self) -> Views:
        """The views that the algorithm may ask for."""
        return views_of(self.rollouts.config)


def take_step(learner: Learner, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
    """One batch of rollouts and the updates on it; gives the new state and metrics.

    Raises:
      Interrupted: the run was asked to stop before the first update; ``state`` is still good then.
      ValueError: too many rows of the data, or updates in a row, could not be used.
    """
    algorithm, slots = learner.algorithm, learner.slots
    context = replace(learner.rollouts, stats=Stats(), slots=dict(slots))
    config, mesh, phases = context.config, context.model.mesh, context.phases
    count, size = config.rollout.prompts, config.train.update_prompts
    if learner.sampler is not None:
        learner.sampler.step = step - 1

    # Rollout and reward: groups of graded responses, drawn until enough of them are worth training on.
    with phases("rollout"):
        weights = rollout_weights(state.params, context.model)
    drawn, chosen, stats, values = collect(
        partial(_draw, learner, context, weights, step),
        partial(_worth_training, algorithm),
        count,
        config.rollout.max_batches if algorithm.group_filter else 1,
    )
    del weights
    values |= _rollout_values(learner, context, step, drawn, stats)
    if not slots and not config.episode.tools:
        slots |= adapt_slots(context, drawn[0].prompts, drawn[0].stats.lengths, learner.open_keys)
        say("slots to decode in, by the lengths seen: " + json.dumps(slots))

    # Groups, in an order by which each device has equal work in each update, packed in rows of real tokens.
    with phases("pack"):
        order = _update_order(stats.tokens, size, batch_shards(mesh))
        stats = take_rows(stats, order)
        ordered = [chosen[k] for k in order]
        prompts, responses = put_on_mesh(drawn, ordered, mesh, *training_sizes(config))
        mine = local_rows(mesh, count)
        keys = prompt_keys(config.seed, _CORRUPTION, step, count)[order][mine]
        keys = jax.random.wrap_key_data(shard_batch(keys, mesh))
        graded = shard_batch((stats.rewards[mine], stats.accuracy[mine].astype(np.float32)), mesh)
        pack = partial(train_batch, model=context.model.config, mesh=mesh, row_tokens=config.train.row_tokens)
        batch = pack(prompts, responses, view_keys=keys)

    # Score: logprobs of policy and reference on the same tokens, and what else the algorithm needs.
    with phases("score"):
        scores = _score(learner, state.params, batch)

    # Prepare and update: statistics are taken over all groups of an update together.
    totals: dict[str, float] = {}
    computed: Any = np.zeros(2, np.int64)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        part = batch, graded, scores
        if size < count:
            with phases("pack"):
                asked, written, drawn_keys, *others = take_rows(
                    (prompts, responses, keys, graded, scores), rows
                )
                part = pack(asked, written, view_keys=drawn_keys), *others
        computed += computed_slots(part[0].packed)
        state, made, scored = _update(learner, state, *part)
        scores |= scored
        for name, value in made.items():
            totals[name] = totals.get(name, 0.0) + value * size / count
        if made["loss/skipped"]:
            _keep_incident(learner, step, stats.ids[rows], drawn, made)
        learner.guards.count_update(bool(made["loss/skipped"]), learner.workdir / "incidents")
    with phases("score"):
        values |= totals | to_floats(programs.score_metrics(scores, responses))
    values |= padding_metrics(computed, np.array([stats.tokens.sum(), stats.patches.sum()]))
    _log_lengths(learner.workdir, step, stats)
    values["rollout/tokens_per_second"] = float(stats.lengths.sum()) / max(phases.seconds["rollout"], 1e-9)
    return state, values


def _draw(learner: Learner, context: RolloutContext, weights: Params, step: int, number: int) -> RolloutBatch:
    """Batch ``number`` of the step, sampled and graded."""
    config, count = context.config, context.config.rollout.prompts
    with context.phases("data"):
        batch = next(learner.batches)
    graded = sample_and_grade(
        context,
        weights,
        batch,
        prompt_keys(config.seed, _ROLLOUT, step, count, start=number * count)[batch.rows],
        group=config.rollout.group,
        sampling=sampling_of(config),
        progress=(step - 1) / config.train.steps,
    )
    if learner.sampler is not None:
        stats = graded.stats
        learner.sampler.update(stats.ids, stats.components.get("accuracy", stats.rewards), stats.valid)
    return graded


def _log_lengths(workdir: Path, step: int, stats: RowStats) -> None:
    """Add what a step trained on to ``lengths.jsonl`` (`mmrl.run_folder.read_lengths`)."""
    if not hosts.is_main_process():
        return
    row = {
        "step": step,
        "prompts": stats.prompt_tokens.tolist(),
        "patches": stats.patches.tolist(),
        "responses": stats.read.tolist(),
    }
    with (workdir / "lengths.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _worth_training(algorithm: Algorithm, stats: RowStats) -> np.ndarray:
    return keep_groups(algorithm, stats.accuracy, stats.valid)


def _rollout_values(
    learner: Learner, context: RolloutContext, step: int, drawn: list[RolloutBatch], stats: RowStats
) -> dict[str, float]:
    """Metrics of the rollout; rows that could not be used are noted."""
    skipped = [row for batch in drawn for row in batch.skipped]
    failures = [reason for batch in drawn for reason in batch.failures]
    learner.guards.note_rows(skipped)
    if failures:
        say(f"step {step}: responses are left out, as they could not be graded: {failures[0]}")
    values = {**rollout_metrics(stats), "data/skipped": float(len(skipped))}
    values |= merged(hosts.gather(asdict(context.stats))).metrics()
    if context.rewards is not None:
        values |= {f"judge/{name}": value for name, value in context.rewards.judge_stats().items()}
    return values if learner.sampler is None else {**values, **learner.sampler.state.plan.metrics}


def _update_order(tokens: np.ndarray, size: int, shards: int) -> np.ndarray:
    """The order of groups in which each update of ``size`` of them gives each shard as many ``tokens``."""
    starts = range(0, len(tokens), size)
    return np.concatenate([at + balanced_order(tokens[at : at + size].tolist(), shards) for at in starts])


def _score(learner: Learner, params: Params, batch: TrainBatch) -> dict[Score, jax.Array]:
    """Scores that the algorithm needs before the update, of each model that it reads.

    If all that is wanted of the policy is its logprob, and there is one update on the batch, that update
    finds it on its way.
    """
    algorithm, config = learner.algorithm, learner.rollouts.config
    score = partial(
        programs.score,
        policy=learner.rollouts.policy,
        batch=batch,
        views=learner.views,
    )
    scores = {}
    wanted = algorithm.needs_of("policy")
    if wanted or config.train.update_prompts < config.rollout.prompts:
        scores = score({"policy": params}, wanted=wanted | {LOGPROB})
    for name, weights in learner.models.items():
        scores |= score({name: weights}, wanted=algorithm.needs_of(name))
    return scores


def _update(
    learner: Learner,
    state: TrainState,
    batch: TrainBatch,
    graded: tuple[jax.Array, jax.Array],
    scores: dict[Score, jax.Array],
) -> tuple[TrainState, dict[str, float], dict[Score, jax.Array]]:
    """One optimizer step on some groups.

    Also gives the scores that it has found of the policy before the step, unless they were known.
    """
    phases = learner.rollouts.phases
    with phases("prepare"):
        targets = programs.prepare(
            learner.algorithm,
            *graded,
            batch.responses.valid,
            batch.responses.mask,
            scores,
            state.updates,
            learner.total_updates,
        )
    with phases("update"):
        state, made = programs.update(
            state,
            learner.rollouts.policy,
            batch,
            targets,
            learner.views,
            algorithm=learner.algorithm,
            optimizer=learner.optimizer,
        )
        scored = {LOGPROB: made.pop("logprob")} if "logprob" in made else {}
        values = {name if "/" in name else f"loss/{name}": value for name, value in to_floats(made).items()}
    return state, values, scored


def _keep_incident(
    learner: Learner, step: int, ids: np.ndarray, drawn: list[RolloutBatch], metrics: dict[str, float]
) -> None:
    """Keep what a skipped update was made of; each process its own rows."""
    for number, batch in enumerate(drawn):
        folder = save_incident(learner.workdir, step, batch, metrics, jax.process_index(), number)
    say(
        f"step {step}: loss or gradient is not finite, the update is skipped; its batch is kept in {folder}; "
        f"its rows are {', '.join(ids)}"
    )
