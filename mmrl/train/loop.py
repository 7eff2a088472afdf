"""The reinforcement-learning stage, top to bottom: rollout, reward, score, prepare, update, log."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmrl.algorithms.algorithm import Algorithm, keep_groups
from mmrl.config import Config, algorithm
from mmrl.data import pipeline
from mmrl.data.sources import Source
from mmrl.mesh import put
from mmrl.rewards.pool import RewardPool
from mmrl.rollout.engine import decoding_weights
from mmrl.train import checkpoint, programs
from mmrl.train.assemble import Model, prompt_format, sampling_of
from mmrl.train.evaluate import evaluate, write_responses
from mmrl.train.metrics import CompileCounter, Metrics, Phases, Progress, say
from mmrl.train.optimizer import initial_state, make_optimizer
from mmrl.train.programs import Batch, ImageCorruption, Policy, TrainState
from mmrl.train.rollouts import (
    Experience,
    collect,
    describe,
    prompt_keys,
    sample_and_grade,
    tool_pool,
)
from mmrl.types import Params
from mmrl.workers.pool import WorkerPool

_ROLLOUT, _CORRUPTION = 0, 1  # purposes of random keys


@dataclasses.dataclass(frozen=True)
class Stage:
    """All that stays the same from step to step."""

    config: Config
    model: Model
    policy: Policy
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    reference: Params | None  # weights of the reference policy, where the algorithm asks for it
    pool: RewardPool
    tools: WorkerPool | None
    total_updates: int

    @property
    def corruption(self) -> ImageCorruption:
        """How the contrast image is made."""
        return ImageCorruption(self.config.corruption.method, self.config.corruption.probability)


def train(config: Config, model: Model, source: Source, heldout: Source | None, workdir: Path) -> None:
    """Run the stage in ``workdir``, going on from its newest checkpoint if there is one.

    Order on resuming: (1) weights, optimizer and update count, (2) the data iterator, (3) the metrics file,
    cut back to the checkpoint's step. Random draws need no restoring: each has the step in its address.
    """
    params = model.load()
    chosen = algorithm(config)
    updates_per_step = config.rollout.prompts // config.train.update_prompts
    total_updates = config.train.steps * updates_per_step
    optimizer = make_optimizer(config.optimizer, params, total_updates)
    # The update gives its input's memory away, so the reference policy needs weights of its own. The model
    # casts every weight before its product, so that nothing is lost by keeping them in that type.
    reference = None
    if "reference" in chosen.needs:
        reference = jax.tree.map(lambda leaf: jnp.array(leaf, model.config.dtype), params)
    state = initial_state(params, optimizer)
    del params
    batches = _batches(config, model, source)
    manager = checkpoint.open_manager(workdir / "checkpoints", config.train.keep_checkpoints)
    saved = checkpoint.restore(manager, state, say)
    first = 0
    if saved is not None:
        first, state = saved.step, saved.state
        batches.set_state(saved.facts["data"])
        say(f"resuming after step {first} of {config.train.steps}")
    metrics = Metrics(workdir, first)
    with (
        jax.set_mesh(model.mesh),
        manager,
        CompileCounter() as compiles,
        RewardPool(config.reward.workers, config.reward.deadline_seconds) as pool,
        tool_pool(config) as tools,
    ):
        stage = Stage(
            config=config,
            model=model,
            policy=model.policy(config.rollout.temperature),
            algorithm=chosen,
            optimizer=optimizer,
            reference=reference,
            pool=pool,
            tools=tools,
            total_updates=total_updates,
        )
        _run(stage, state, first, batches, heldout, manager, metrics, compiles, workdir)
    metrics.close()


def _run(
    stage: Stage,
    state: TrainState,
    first: int,
    batches: pipeline.Batches,
    heldout: Source | None,
    manager: Any,
    metrics: Metrics,
    compiles: CompileCounter,
    workdir: Path,
) -> None:
    config = stage.config
    progress = Progress("rl", config.train.steps)
    if first == 0 and heldout is not None:
        values = _evaluate(stage, state.params, heldout, workdir / "responses_before.jsonl")
        metrics.write(0, values)
        say(f"before: {_headline(values)}")
    for step in range(first + 1, config.train.steps + 1):
        last = step == config.train.steps
        phases = Phases()
        state, values = _step(stage, state, step, batches, phases)
        if heldout is not None and (last or step % config.train.evaluate_every == 0):
            with phases("evaluate"):
                values |= _evaluate(stage, state.params, heldout, workdir / "responses_after.jsonl")
        if last or step % config.train.checkpoint_every == 0:
            with phases("checkpoint"):
                checkpoint.save(manager, step, state, {"data": batches.get_state()})
        values |= {**phases.metrics(), "compiles": float(compiles.count)}
        metrics.write(step, values)
        progress.show(step, **_shown(values))
    manager.wait_until_finished()


def _step(
    stage: Stage, state: TrainState, step: int, batches: Iterator[pipeline.Batch], phases: Phases
) -> tuple[TrainState, dict[str, float]]:
    """One batch of experience and the updates on it."""
    config = stage.config
    with phases("rollout"):
        acting = decoding_weights(state.params, stage.model.config)
    draw = partial(_draw, stage, acting, step, batches, phases)
    keep = partial(_worth_training, stage.algorithm)
    bound = config.rollout.max_batches if stage.algorithm.group_filter else 1
    experience, values = collect(draw, keep, config.rollout.prompts, bound)
    values |= describe(experience)
    del acting
    with phases("score"):
        prompts, responses = put((experience.prompts, experience.responses), stage.model.mesh)
        batch = Batch(
            prompts=prompts,
            responses=responses,
            corruption_keys=prompt_keys(config.seed, _CORRUPTION, step, config.rollout.prompts),
        )
        scores = _score(stage, state.params, batch)
    totals: dict[str, float] = {}
    size = config.train.update_prompts
    for start in range(0, config.rollout.prompts, size):
        rows = slice(start, start + size)
        inputs = _rows((batch, scores), rows)
        state, made, scored = _update(stage, state, step, inputs, experience, rows, phases)
        scores |= scored
        for name, value in made.items():
            totals[name] = totals.get(name, 0.0) + value * size / config.rollout.prompts
    with phases("score"):
        values |= totals | _score_metrics(scores, experience)
    sampled = float(experience.responses.mask.sum())
    values["rollout/tokens_per_second"] = sampled / max(phases.seconds["rollout"], 1e-9)
    return state, values


def _draw(
    stage: Stage, params: Params, step: int, batches: Iterator[pipeline.Batch], phases: Phases, number: int
) -> Experience:
    config = stage.config
    with phases("data"):
        batch = next(batches)
    count = config.rollout.prompts
    return sample_and_grade(
        params,
        stage.policy,
        stage.model,
        batch,
        prompt_keys(config.seed, _ROLLOUT, step, count, start=number * count),
        group=config.rollout.group,
        sampling=sampling_of(config),
        config=config,
        pool=stage.pool,
        tools=stage.tools,
        phases=phases,
    )


def _worth_training(chosen: Algorithm, experience: Experience) -> np.ndarray:
    return keep_groups(chosen, experience.accuracy, experience.responses.valid)


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
    step: int,
    inputs: tuple[Batch, dict[str, jax.Array]],
    experience: Experience,
    rows: slice,
    phases: Phases,
) -> tuple[TrainState, dict[str, float], dict[str, jax.Array]]:
    """One optimizer step on the groups ``rows``; its statistics are taken over all of them together.

    Also gives what it has found out of the policy before the step, unless that was known.
    """
    batch, scores = inputs
    train = stage.config.train
    with phases("prepare"):
        targets = programs.prepare(
            stage.algorithm,
            experience.rewards[rows],
            experience.accuracy[rows].astype(np.float32),
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
    if values["loss/skipped"]:
        ids = ", ".join(sample.id for sample in experience.samples[rows])
        say(f"step {step}: loss or gradient is not finite, the update is skipped; its rows are {ids}")
    return state, values, scored


def _score_metrics(scores: dict[str, jax.Array], experience: Experience) -> dict[str, float]:
    """How far sampler and scorer disagree, and what the scores say of the responses.

    The sampler's logprobs are renormalised over what top-k, top-p and min-p keep, the scorer's are not: with
    truncation the difference holds the mass cut off as well as the rounding.
    """
    mask = experience.responses.mask & experience.responses.valid[..., None]
    host = {name: np.asarray(value)[mask] for name, value in scores.items()}
    if not mask.any():
        return {}
    difference = np.abs(host["logprob"] - experience.responses.logprob[mask])
    out = {
        "sampler/logprob_difference_mean": float(difference.mean()),
        "sampler/logprob_difference_max": float(difference.max()),
        "policy/sampled_entropy": float(-host["logprob"].mean()),
    }
    if "entropy" in host:
        out["policy/entropy"] = float(host["entropy"].mean())
    perception = host.get("perception")
    if perception is None and "corrupted" in host:
        # The sampled-token estimate k3 of KL(image present || corrupted).
        log_ratio = np.clip(host["corrupted"] - host["logprob"], -20, 20)
        perception = np.clip(np.expm1(log_ratio) - log_ratio, 0, 10)
    if perception is not None:
        out["perception/mean"] = float(perception.mean())
        for percent in (50, 90):
            out[f"perception/p{percent}"] = float(np.percentile(perception, percent))
    if "reference" in host:
        log_ratio = host["reference"] - host["logprob"]
        out["policy/reference_kl"] = float((np.expm1(log_ratio) - log_ratio).mean())
    return out


def _evaluate(stage: Stage, params: Params, heldout: Source, path: Path) -> dict[str, float]:
    values, experiences = evaluate(
        params, stage.policy, stage.model, heldout, stage.pool, stage.tools, stage.config
    )
    write_responses(path, experiences)
    return {f"heldout/{name}": value for name, value in values.items()}


def _rows(tree: Any, rows: slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _batches(config: Config, model: Model, source: Source) -> pipeline.Batches:
    return pipeline.prompts(
        source,
        model.processor,
        prompt_format(config),
        seed=config.seed,
        batch_size=config.rollout.prompts,
        workers=config.data.workers,
    )


def _headline(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _shown(values: dict[str, float]) -> dict[str, float]:
    """What the progress line has room for."""
    names = {
        "reward": "reward/mean",
        "accuracy": "reward/accuracy",
        "heldout": "heldout/accuracy",
        "length": "response/length",
        "tok/s": "rollout/tokens_per_second",
        "busy": "rollout/occupancy",
        "s": "time/step",
    }
    return {short: values[name] for short, name in names.items() if name in values}
