"""The supervised stage: imitate demonstrations, with the model, data path and optimizer of the RL stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from mmrl import hosts
from mmrl.config import ColdStartConfig, Config, OptimizerConfig
from mmrl.data.pipeline import Batches, Skipped
from mmrl.data.sources import Source
from mmrl.hosts import say
from mmrl.mesh import local_rows, put, to_host
from mmrl.models import checkpoint as hf
from mmrl.open import OpenModel, prompt_format, readers
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.train import checkpoint, programs
from mmrl.train.demonstrations import Demonstrations, demonstrations
from mmrl.train.incidents import count_skipped
from mmrl.train.metrics import CompileCounter, Metrics, Phases, Progress
from mmrl.train.optimizer import initial_state, make_optimizer
from mmrl.train.preemption import Interrupted, Notice, interrupt
from mmrl.train.programs import TrainState
from mmrl.train.rollouts import episodes_of, observed_slots
from mmrl.train.skipped import note, open_ledger


def sft(config: Config, model: OpenModel, source: Source, workdir: Path, out: Path, notice: Notice) -> None:
    """Train on ``turns`` or ``solution`` of each row, in ``workdir``; write a Hugging Face directory ``out``.

    Goes on from the newest checkpoint; when ``out`` exists the stage is done.

    Raises:
      Interrupted: ``notice`` was given; the last step that was taken is saved.
    """
    stage = config.cold_start
    params = model.load()
    optimizer = make_optimizer(_optimizer(stage, config.optimizer), params, stage.steps)
    state = initial_state(params, optimizer)
    del params  # the update gives its input's memory away
    batches = _batches(config, model, source)
    ledger = open_ledger(workdir / "skipped_rows.jsonl", len(source), config.data.max_broken, ())
    manager = checkpoint.open_manager(workdir / "checkpoints", keep=2)
    saved = checkpoint.restore(manager, state, say)
    first, unlucky = 0, 0
    if saved is not None:
        first, state, unlucky = saved.step, saved.state, saved.facts["unlucky"]
        batches.seek(saved.facts["batches"])
        say(f"resuming the supervised stage after step {first} of {stage.steps}")
    metrics = Metrics(workdir, first)
    policy = model.policy(stage.temperature)
    progress = Progress("sft", stage.steps)
    shown_every = max(1, stage.steps // 40)
    phases = Phases()

    def save(step: int) -> None:
        checkpoint.save(manager, step, state, {"batches": batches.given, "unlucky": unlucky})

    with jax.set_mesh(model.mesh), manager, hosts.exit_on_lost_process(), CompileCounter() as compiles:
        for step in range(first + 1, stage.steps + 1):
            try:
                with phases("wait"):
                    interrupt(notice)
            except Interrupted:
                if step > 1:
                    save(step - 1)
                raise
            with phases("data"):
                batch = next(batches)
            with phases("update"):
                state, values = _update(stage, model, policy, optimizer, state, batch)
            with phases("wait"):
                skipped, told = _told(batch)
            values |= told
            note(ledger, skipped)
            if values["loss/skipped"]:
                _say_skipped(step, batch)
            unlucky = count_skipped(unlucky, bool(values["loss/skipped"]), config.train.max_skipped, workdir)
            metrics.write(step, {**values, **phases.metrics(), "compiles": float(compiles.count)})
            last = step == stage.steps
            if last or step % shown_every == 0:
                progress.show(step, loss=values["loss/loss"])
            phases = Phases()
            if step % stage.checkpoint_every == 0 and not last:
                with phases("checkpoint"):
                    save(step)
    metrics.close()
    params = to_host(state.params)
    with hosts.on_main_process() as writes:
        if writes:
            hf.save(params, model.description, out, base=model.directory)


def _batches(config: Config, model: OpenModel, source: Source) -> Batches[Demonstrations]:
    stage = config.cold_start
    return demonstrations(
        source,
        model.processor,
        prompt_format(config),
        episode=episodes_of(config, model.processor, Sampling(max_tokens=stage.max_tokens)),
        max_tokens=stage.max_tokens,
        observation_patches=observed_slots(config),
        seed=config.seed,
        batch_size=stage.batch,
        rows=local_rows(model.mesh, stage.batch),
        readers=readers(config),
    )


def _update(
    stage: ColdStartConfig,
    model: OpenModel,
    policy: Policy,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Demonstrations,
) -> tuple[TrainState, dict[str, float]]:
    state, made = programs.imitate(
        state,
        policy,
        *put((batch.prompts, batch.responses), model.mesh),
        optimizer=optimizer,
        micro_batches=stage.batch // stage.micro_batch,
    )
    return state, {f"loss/{name}": float(value) for name, value in jax.device_get(made).items()}


def _told(batch: Demonstrations) -> tuple[list[Skipped], dict[str, float]]:
    """Rows of all processes that could not be used, and metrics of the rows that could."""
    told = hosts.gather(
        [[[one.id, one.reason] for one in batch.skipped], [dict(facts) for facts in batch.facts]]
    )
    skipped = [Skipped(*pair) for pairs, _ in told for pair in pairs]
    return skipped, {**_means([row for _, rows in told for row in rows]), "data/skipped": float(len(skipped))}


def _say_skipped(step: int, batch: Demonstrations) -> None:
    ids = ", ".join(name for part in hosts.gather([one.id for one in batch.samples]) for name in part)
    say(f"step {step}: loss or gradient is not finite, the update is skipped; its rows are {ids}")


def _means(facts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each fact averaged over the demonstrations that have it."""
    names = sorted({name for row in facts for name in row})
    return {f"episode/{name}": float(np.mean([row[name] for row in facts if name in row])) for name in names}


def _optimizer(stage: ColdStartConfig, base: OptimizerConfig) -> OptimizerConfig:
    return dataclasses.replace(
        base, learning_rate=stage.learning_rate, schedule="cosine", warmup_updates=stage.warmup
    )
