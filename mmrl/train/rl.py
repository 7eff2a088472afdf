"""The reinforcement-learning stage: what its steps and evaluations need, opened and given to the loop."""

import dataclasses
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mmrl import hosts
from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.passes import PERCEPTION
from mmrl.atomic import write_jsonl
from mmrl.config import Config, algorithm
from mmrl.data import pipeline
from mmrl.data.curriculum import CurriculumSampler, weights_by_rows
from mmrl.data.examples import thumbnail
from mmrl.data.sources import Source
from mmrl.hosts import say
from mmrl.mesh import batch_shards, local_rows, shard_batch, to_host
from mmrl.models.pieces import pieces_of
from mmrl.open import OpenModel, TrainingData, prompt_format, readers
from mmrl.train import programs
from mmrl.train.evaluate import evaluate, response_rows
from mmrl.train.guards import open_guards
from mmrl.train.loop import Stage, run_stage
from mmrl.train.metrics import Metrics
from mmrl.train.optimizer import make_optimizer
from mmrl.train.rollout_batch import RolloutBatch
from mmrl.train.rollouts import open_rollouts, prompt_keys
from mmrl.train.state import initial_state
from mmrl.train.step import Learner, take_step
from mmrl.train.stop_signal import StopSignal
from mmrl.train.writers import HeldoutExample, Wandb, Writer
from mmrl.types import Params

SHOWN = 8  # held-out prompts of which one response is shown
_PURPOSE = 2, 1  # of random keys: evaluation, and its corrupted images
_HEADLINE = {
    "reward": "reward/mean",
    "accuracy": "reward/accuracy",
    "heldout": "heldout/accuracy",
    "length": "response/length",
    "tok/s": "rollout/tokens_per_second",
    "slots/token": "padding/text",
    "slots/patch": "padding/patches",
    "slots/sampled": "padding/decode",
    "s": "time/step",
}


def train(
    config: Config,
    model: OpenModel,
    data: TrainingData,
    heldout: tuple[Source, ...],
    workdir: Path,
    stop: StopSignal,
    open_keys: Collection[str] = (),
) -> None:
    """Run the stage in ``workdir``, going on from its newest checkpoint if there is one.

    ``open_keys`` of the config were left open: what memory has chosen for them, lengths may choose again.

    Raises:
      Interrupted: a stop was requested; the last step that was taken is saved.
    """
    chosen, limits = algorithm(config), config.train
    slots: dict[str, Any] = {}
    total_updates = limits.steps * (config.rollout.prompts // limits.update_prompts)
    optimizer = make_optimizer(config.optimizer, total_updates)
    sampler = open_sampler(config, data)
    weights = [model.load()]  # taken out when the state is made, which then is all that holds them
    with open_rollouts(config, model, workdir, stop) as rollouts:
        learner = Learner(
            rollouts=rollouts,
            algorithm=chosen,
            optimizer=optimizer,
            models=_copy_reference(chosen, model, weights[0]),
            batches=_open_batches(config, model, data, sampler),
            guards=open_guards(
                workdir / "skipped_rows.jsonl",
                data.rows,
                config.data.max_broken,
                limits.max_skipped,
                data.broken,
            ),
            sampler=sampler,
            total_updates=total_updates,
            workdir=workdir,
            slots=slots,
            open_keys=frozenset(open_keys),
        )
        stage = Stage(
            name="rl",
            config=config,
            mesh=model.mesh,
            workdir=workdir,
            steps=limits.steps,
            batches=learner.batches,
            guards=learner.guards,
            phases=rollouts.phases,
            take_step=partial(take_step, learner),
            evaluate=partial(_evaluate, learner, heldout),
            sampler=sampler,
            slots=slots,
            checkpoint_every=limits.checkpoint_every,
            checkpoint_minutes=limits.checkpoint_minutes,
            keep=limits.keep_checkpoints,
            keep_best=limits.keep_best,
            writers=partial(_open_writers, config, workdir),
            headline=_HEADLINE,
        )
        run_stage(stage, lambda: initial_state(weights.pop(), optimizer, config.optimizer.freeze))


def _copy_reference(chosen: Algorithm, model: OpenModel, params: Params) -> dict[str, Params]:
    """Weights of the reference policy by its name, if it is read: an update gives its input's memory away.

    The model casts every weight before its product, so nothing is lost by keeping them in that type.
    """
    if "reference" not in chosen.models:
        return {}
    return {"reference": jax.tree.map(lambda leaf: jnp.array(leaf, model.config.dtype), params)}


def open_sampler(config: Config, data: TrainingData) -> CurriculumSampler | None:
    """The curriculum sampler; None where the seed alone decides the order."""
    if not (config.data.curriculum.active or len(data.mixtures) > 1):
        return None
    return CurriculumSampler(
        config.data.curriculum,
        data.sources,
        data.mixtures,
        data.difficulty,
        seed=config.seed,
        steps=config.train.steps,
        batch_size=config.rollout.prompts,
        temperature=config.data.temperature,
    )


def source_weights(config: Config, data: TrainingData) -> tuple[float, ...] | None:
    """Weights of the sources where the seed alone decides the order; None: each row counts the same."""
    mixture, temperature = data.mixtures[0], config.data.temperature
    if not mixture.by_rows:
        return mixture.weights
    if temperature == 1.0:
        return None
    return tuple(weights_by_rows(np.array([len(source) for source in data.sources]), temperature).tolist())


def _open_batches(
    config: Config, model: OpenModel, data: TrainingData, sampler: CurriculumSampler | None
) -> pipeline.Batches[pipeline.Batch]:
    return pipeline.prompts(
        data.sources,
        model.processor,
        prompt_format(config),
        seed=config.seed,
        batch_size=config.rollout.prompts,
        weights=source_weights(config, data),
        rows=local_rows(model.mesh, config.rollout.prompts),
        readers=readers(config),
        part=None if sampler is None else sampler.order_of,
    )


def _open_writers(config: Config, workdir: Path) -> list[Writer]:
    project = config.log.wandb
    return [Wandb(project, workdir, dataclasses.asdict(config), say)] if project else []


def _evaluate(
    learner: Learner, heldout: tuple[Source, ...], params: Params, step: int, metrics: Metrics
) -> dict[str, float]:
    """Held-out metrics, in the steps that have them; some of the responses are shown."""
    limits = learner.rollouts.config.train
    if not heldout or not (step == limits.steps or step % limits.evaluate_every == 0):
        return {}

    def show(batch: RolloutBatch) -> None:
        metrics.show(step, _choose_shown(learner, params, batch))

    values, responses = evaluate(learner.rollouts, params, heldout, on_first=show)
    if hosts.is_main_process():
        write_jsonl(learner.workdir / f"responses_{'after' if step else 'before'}.jsonl", responses)
    return {f"heldout/{name}": value for name, value in values.items()}


def _choose_shown(learner: Learner, params: Params, batch: RolloutBatch) -> list[HeldoutExample]:
    """The first response to each of the first prompts of a batch; for wandb with its tokens' perception.

    Every process calls this with its part of the batch; the first gets all of its own, the others nothing.
    """
    model = learner.rollouts.model
    shards = batch_shards(model.mesh) // jax.process_count() or 1
    count = min(-(-SHOWN // shards) * shards, len(batch.samples))
    wanted = bool(learner.rollouts.config.log.wandb)
    perception = _measure_perception(learner, params, batch, count) if wanted else None
    shown: list[HeldoutExample] = []
    rows = response_rows(batch)
    for b, sample in enumerate(batch.samples[: count if hosts.is_main_process() else 0]):
        if not batch.responses.valid[b, 0]:
            continue
        written = batch.responses.mask[b, 0]
        shown.append(
            HeldoutExample(
                row=rows[b][0],
                images=tuple(thumbnail(image, sample.id) for image in sample.images),
                pieces=pieces_of(batch.responses.tokens[b, 0][written].tolist(), model.processor),
                perception=None if perception is None else perception[b, 0][written],
            )
        )
    return shown


def _measure_perception(
    learner: Learner, params: Params, batch: RolloutBatch, count: int
) -> Float[np.ndarray, "b 1 r"]:
    """Exact KL, image present or corrupted, of each token of the first response to ``count`` prompts."""
    context = learner.rollouts
    mesh, total = context.model.mesh, count * jax.process_count()
    prompts = jax.tree.map(lambda leaf: leaf[:count], batch.prompts)
    responses = jax.tree.map(lambda leaf: leaf[:count, :1], batch.responses)
    mine = local_rows(mesh, total)
    keys = prompt_keys(context.config.seed, *_PURPOSE, total)[mine]
    asked, written, drawn = shard_batch((prompts, responses, keys), mesh)
    found = programs.score(
        {"policy": params},
        context.policy,
        programs.train_batch(
            asked,
            written,
            context.model.config,
            mesh,
            context.config.train.row_tokens,
            jax.random.wrap_key_data(drawn),
        ),
        learner.views,
        wanted=frozenset({PERCEPTION}),
    )
    return to_host(found[PERCEPTION])[mine]
