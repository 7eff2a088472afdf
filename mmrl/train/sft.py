"""The supervised stage: imitate demonstrations, with the model, data path and optimizer of the RL stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from mmrl import hosts
from mmrl.config import ColdStart, Config, Optimizer
from mmrl.data import pipeline
from mmrl.data.sources import Source
from mmrl.mesh import own_rows, put, whole
from mmrl.models import checkpoint as hf
from mmrl.rollout.sampling import Sampling
from mmrl.train import checkpoint, programs
from mmrl.train.assemble import Model, prompt_format, readers
from mmrl.train.incidents import count_skipped
from mmrl.train.metrics import CompileCounter, Metrics, Phases, Progress, say
from mmrl.train.optimizer import initial_state, make_optimizer
from mmrl.train.preemption import Interrupted, Notice
from mmrl.train.rollouts import episodes_of, observed_slots
from mmrl.train.skipped import note, open_ledger


def sft(config: Config, model: Model, source: Source, workdir: Path, out: Path, notice: Notice) -> None:
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
    batches = pipeline.solutions(
        source,
        model.processor,
        prompt_format(config),
        episode=episodes_of(config, model.processor, Sampling(max_tokens=stage.max_tokens)),
        max_tokens=stage.max_tokens,
        observation_patches=observed_slots(config),
        seed=config.seed,
        batch_size=stage.batch,
        rows=own_rows(model.mesh, stage.batch),
        readers=readers(config),
    )
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
    with jax.set_mesh(model.mesh), manager, hosts.noticing_loss(), CompileCounter() as compiles:
        for step in range(first + 1, stage.steps + 1):
            with phases("data"):
                batch = next(batches)
            with phases("update"):
                state, made = programs.imitate(
                    state,
                    policy,
                    *put((batch.prompts, batch.responses), model.mesh),
                    optimizer=optimizer,
                    micro_batches=stage.batch // stage.micro_batch,
                )
                values = {f"loss/{name}": float(value) for name, value in jax.device_get(made).items()}
            with phases("wait"):
                told = hosts.exchange(
                    {
                        "facts": list(map(dict, batch.facts)),
                        "skipped": [[one.id, one.reason] for one in batch.skipped],
                        "ids": [sample.id for sample in batch.samples],
                        "notice": notice.given,
                    }
                )
            skipped = [pipeline.Skipped(*pair) for part in told for pair in part["skipped"]]
            note(ledger, skipped)
            values |= _means([row for part in told for row in part["facts"]])
            values |= {"data/skipped": float(len(skipped))}
            if values["loss/skipped"]:
                ids = ", ".join(name for part in told for name in part["ids"])
                say(f"step {step}: loss or gradient is not finite, the update is skipped; its rows are {ids}")
            unlucky = count_skipped(unlucky, bool(values["loss/skipped"]), config.train.max_skipped, workdir)
            last = step == stage.steps
            metrics.write(step, {**values, **phases.metrics(), "compiles": float(compiles.count)})
            if last or step % shown_every == 0:
                progress.show(step, loss=values["loss/loss"])
            phases = Phases()
            given = [part["notice"] for part in told if part["notice"]]
            if not last and (given or step % stage.checkpoint_every == 0):
                with phases("checkpoint"):
                    checkpoint.save(manager, step, state, {"batches": batches.given, "unlucky": unlucky})
            if given and not last:
                raise Interrupted(given[0])
    metrics.close()
    params = whole(state.params)
    with hosts.first_alone() as writes:
        if writes:
            hf.save(params, model.description, out, base=model.directory)


def _means(facts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each fact averaged over the demonstrations that have it."""
    names = sorted({name for row in facts for name in row})
    return {f"episode/{name}": float(np.mean([row[name] for row in facts if name in row])) for name in names}


def _optimizer(stage: ColdStart, base: Optimizer) -> Optimizer:
    return dataclasses.replace(
        base, learning_rate=stage.learning_rate, schedule="cosine", warmup_updates=stage.warmup
    )
