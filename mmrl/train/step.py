"""One step of reinforcement learning: rollout, reward, score, prepare, update."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from mmrl import hosts
from mmrl.algorithms.algorithm import Algorithm, keep_groups
from mmrl.config import Config
from mmrl.data import pipeline
from mmrl.data.sources import Source
from mmrl.hosts import say
from mmrl.mesh import local_rows, put
from mmrl.open import OpenModel, sampling_of
from mmrl.rewards.pool import RewardPool
from mmrl.rollout.sampling import Policy
from mmrl.rollout.stats import Stats, merged
from mmrl.train import programs
from mmrl.train.course import Course, learn
from mmrl.train.experience import Experience, Overview, collect, describe, on_devices
from mmrl.train.graded_rollouts import sample_and_grade
from mmrl.train.incidents import count_skipped, save_incident
from mmrl.train.metrics import Phases
from mmrl.train.preemption import Notice
from mmrl.train.programs import Batch, ImageCorruption, TrainState
from mmrl.train.rollouts import acting_weights, prompt_keys
from mmrl.train.scores import describe_scores
from mmrl.train.skipped import Ledger, note
from mmrl.types import Params
from mmrl.workers.pool import WorkerPool

_ROLLOUT, _CORRUPTION = 0, 1  # purposes of random keys


@dataclasses.dataclass(frozen=True)
class Stage:
    """All that stays the same from step to step."""

    config: Config
    model: OpenModel
    policy: Policy
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    reference: Params | None  # weights of the reference policy, where the algorithm asks for it
    heldout: tuple[Source, ...]  # none: nothing is evaluated
    pool: RewardPool
    tools: WorkerPool | None
    notice: Notice
    total_updates: int
    workdir: Path

    @property
    def corruption(self) -> ImageCorruption:
        """How the contrast image is made."""
        return ImageCorruption(self.config.corruption.method, self.config.corruption.probability)


@dataclasses.dataclass
class Run:
    """What changes from step to step beside the weights."""

    step: int  # steps taken
    batches: pipeline.Batches[pipeline.Batch]
    ledger: Ledger
    course: Course | None = None  # where a curriculum makes the order of the batches
    unlucky: int = 0  # updates skipped in a row
    pending: dict[str, float] | None = None  # metrics of ``step``, whose evaluation was interrupted
    saved: float = dataclasses.field(default_factory=time.monotonic)


def take_step(
    stage: Stage, state: TrainState, run: Run, phases: Phases
) -> tuple[TrainState, dict[str, float]]:
    """One batch of experience and the updates on it; gives the new state and metrics.

    Raises:
      Interrupted: the run was asked to stop before the first update; ``state`` is still good then.
      ValueError: too many rows of the data, or updates in a row, could not be used.
    """
    config, step = stage.config, run.step + 1
    with phases("rollout"):
        acting = acting_weights(state.params, stage.model)
    stats = Stats()
    draw = partial(_draw, stage, acting, step, run, stats, phases)
    keep = partial(_worth_training, stage.algorithm)
    bound = config.rollout.max_batches if stage.algorithm.group_filter else 1
    drawn, chosen, whole, values = collect(draw, keep, config.rollout.prompts, bound)
    note(run.ledger, whole.skipped)
    if whole.failures:
        say(f"step {step}: responses are left out, as they could not be graded: {whole.failures[0]}")
    values |= describe(whole) | merged(hosts.gather(dataclasses.asdict(stats))).metrics()
    values |= {f"judge/{name}": value for name, value in stage.pool.judge_stats().items()}
    if run.course is not None:
        values |= run.course.state.round.figures
    del acting
    with phases("score"):
        mesh = stage.model.mesh
        prompts, responses = on_devices(drawn, chosen, mesh)
        mine = local_rows(mesh, config.rollout.prompts)
        keys = prompt_keys(config.seed, _CORRUPTION, step, config.rollout.prompts)[mine]
        batch = Batch(
            prompts=prompts,
            responses=responses,
            corruption_keys=jax.random.wrap_key_data(put(keys, mesh)),
        )
        graded = put((whole.rewards[mine], whole.accuracy[mine].astype(np.float32)), mesh)
        scores = _score(stage, state.params, batch)
    totals: dict[str, float] = {}
    size = config.train.update_prompts
    for start in range(0, config.rollout.prompts, size):
        rows = slice(start, start + size)
        with phases("prepare"):
            part = _rows((batch, graded, scores), rows)
        state, made, scored = _update(stage, state, part, phases)
        scores |= scored
        for name, value in made.items():
            totals[name] = totals.get(name, 0.0) + value * size / config.rollout.prompts
        if made["loss/skipped"]:
            _tell_skipped(stage, step, whole.ids[rows], drawn, made)
        folder = stage.workdir / "incidents"
        run.unlucky = count_skipped(run.unlucky, bool(made["loss/skipped"]), config.train.max_skipped, folder)
    with phases("score"):
        told = describe_scores(scores, responses)
        values |= totals | {name: float(value) for name, value in jax.device_get(told).items()}
    values["rollout/tokens_per_second"] = float(whole.lengths.sum()) / max(phases.seconds["rollout"], 1e-9)
    return state, values


def _draw(
    stage: Stage,
    params: Params,
    step: int,
    run: Run,
    stats: Stats,
    phases: Phases,
    number: int,
) -> tuple[Experience, Overview]:
    config, count = stage.config, stage.config.rollout.prompts
    with phases("data"):
        batch = next(run.batches)
    experience, whole = sample_and_grade(
        params,
        stage.policy,
        stage.model,
        batch,
        prompt_keys(config.seed, _ROLLOUT, step, count, start=number * count)[batch.rows],
        group=config.rollout.group,
        sampling=sampling_of(config),
        config=config,
        pool=stage.pool,
        tools=stage.tools,
        stats=stats,
        phases=phases,
        notice=stage.notice,
        progress=(step - 1) / config.train.steps,
    )
    if run.course is not None:
        learn(run.course, whole)
    return experience, whole


def _worth_training(chosen: Algorithm, whole: Overview) -> np.ndarray:
    return keep_groups(chosen, whole.accuracy, whole.valid)


def _score(stage: Stage, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Statistics of the policy before the update, and of the reference policy where they are asked for.

    If all that is wanted of the policy is its logprob, and there is one update on the batch, that update
    finds it on its way.
    """
    needs, train = stage.algorithm.needs, stage.config.train
    run = partial(
        programs.score,
        policy=stage.policy,
        batch=batch,
        corruption=stage.corruption,
        micro_batches=stage.config.rollout.prompts // train.micro_prompts,
    )
    scores = {}
    if needs - {"reference"} or train.update_prompts < stage.config.rollout.prompts:
        scores = run(params, wanted=needs - {"reference"})
    if stage.reference is not None:
        scores["reference"] = run(stage.reference, wanted=frozenset())["logprob"]
    return scores


def _update(
    stage: Stage,
    state: TrainState,
    inputs: tuple[Batch, tuple[jax.Array, jax.Array], dict[str, jax.Array]],
    phases: Phases,
) -> tuple[TrainState, dict[str, float], dict[str, jax.Array]]:
    """One optimizer step on some groups; its statistics are taken over all of them together.

    Also gives what it has found out of the policy before the step, unless that was known.
    """
    batch, (rewards, accuracy), scores = inputs
    train = stage.config.train
    with phases("prepare"):
        targets = programs.prepare(
            stage.algorithm,
            rewards,
            accuracy,
            batch.responses.valid,
            batch.responses.mask,
            scores,
            state.updates,
            stage.total_updates,
        )
    with phases("update"):
        state, made = programs.update(
            state,
            stage.policy,
            batch,
            targets,
            stage.corruption,
            algorithm=stage.algorithm,
            optimizer=stage.optimizer,
            micro_batches=train.update_prompts // train.micro_prompts,
        )
        scored = {"logprob": made.pop("logprob")} if "logprob" in made else {}
        values = {f"loss/{name}": float(value) for name, value in jax.device_get(made).items()}
    return state, values, scored


def _tell_skipped(
    stage: Stage, step: int, ids: list[str], drawn: list[Experience], metrics: dict[str, float]
) -> None:
    """Keep what the step was made of; each process its own rows."""
    for number, experience in enumerate(drawn):
        folder = save_incident(stage.workdir, step, experience, metrics, jax.process_index(), number)
    say(
        f"step {step}: loss or gradient is not finite, the update is skipped; its batch is kept in {folder}; "
        f"its rows are {', '.join(ids)}"
    )


def _rows(tree: Any, rows: slice) -> Any:
    def cut(leaf: jax.Array) -> jax.Array:
        return leaf if rows == slice(0, leaf.shape[0]) else leaf[rows]

    return jax.tree.map(cut, tree)
