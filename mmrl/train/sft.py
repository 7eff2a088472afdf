"""The supervised stage: imitate demonstrations, with the model, data path and optimizer of the RL stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import optax

from mmrl import hosts
from mmrl.config import ColdStartConfig, Config
from mmrl.data.pipeline import Batches, Skipped
from mmrl.data.sources import Source
from mmrl.hosts import say
from mmrl.mesh import local_rows, put, to_host
from mmrl.models import checkpoint as hf
from mmrl.open import OpenModel, prompt_format, readers
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.train import programs
from mmrl.train.demonstrations import Demonstrations, demonstrations
from mmrl.train.guards import Guards, open_guards
from mmrl.train.loop import Stage, run_stage
from mmrl.train.metrics import Phases, to_floats
from mmrl.train.optimizer import make_optimizer
from mmrl.train.rollouts import episode_maker, observation_slots
from mmrl.train.state import TrainState, initial_state
from mmrl.train.stop_signal import StopSignal


@dataclass(frozen=True)
class Imitator:
    """All that a supervised step needs beside weights."""

    config: ColdStartConfig
    model: OpenModel
    policy: Policy
    optimizer: optax.GradientTransformation
    batches: Batches[Demonstrations]
    guards: Guards
    stop: StopSignal
    phases: Phases
    workdir: Path


def sft(config: Config, model: OpenModel, source: Source, workdir: Path, out: Path, stop: StopSignal) -> None:
    """Train on ``turns`` or ``solution`` of each row, in ``workdir``; write a Hugging Face directory ``out``.

    Goes on from the newest checkpoint; when ``out`` exists the stage is done.

    Raises:
      Interrupted: a stop was requested; the last step that was taken is saved.
    """
    limits = config.cold_start
    hyper_parameters = replace(
        config.optimizer,
        learning_rate=limits.learning_rate,
        schedule="cosine",
        warmup_updates=limits.warmup,
    )
    optimizer = make_optimizer(hyper_parameters, limits.steps)
    imitator = Imitator(
        config=limits,
        model=model,
        policy=model.policy(limits.temperature),
        optimizer=optimizer,
        batches=_open_batches(config, model, source),
        guards=open_guards(
            workdir / "skipped_rows.jsonl", len(source), config.data.max_broken, config.train.max_skipped
        ),
        stop=stop,
        phases=Phases(),
        workdir=workdir,
    )
    stage = Stage(
        name="sft",
        config=config,
        mesh=model.mesh,
        workdir=workdir,
        steps=limits.steps,
        batches=imitator.batches,
        guards=imitator.guards,
        phases=imitator.phases,
        take_step=partial(take_step, imitator),
        checkpoint_every=limits.checkpoint_every,
        checkpoint_last=False,  # its result is written to ``out``
        headline={"loss": "loss/loss"},
        show_every=max(1, limits.steps // 40),
    )
    state = run_stage(stage, lambda: initial_state(model.load(), optimizer, config.optimizer.freeze))
    params = to_host(state.params)
    with hosts.on_main_process() as writes:
        if writes:
            hf.save(params, model.description, out, base=model.directory)


def _open_batches(config: Config, model: OpenModel, source: Source) -> Batches[Demonstrations]:
    limits = config.cold_start
    return demonstrations(
        source,
        model.processor,
        prompt_format(config),
        episode=episode_maker(config, model.processor, Sampling(max_tokens=limits.max_tokens)),
        max_tokens=limits.max_tokens,
        observation_patches=observation_slots(config),
        seed=config.seed,
        batch_size=limits.batch,
        rows=local_rows(model.mesh, limits.batch),
        readers=readers(config),
    )


def take_step(imitator: Imitator, state: TrainState, step: int) -> tuple[TrainState, dict[str, float]]:
    """One update on one batch of demonstrations; gives the new state and metrics.

    Raises:
      Interrupted: a stop was requested before the update.
      ValueError: too many rows of the data, or updates in a row, could not be used.
    """
    phases, limits = imitator.phases, imitator.config
    with phases("wait"):
        imitator.stop.check()
    with phases("data"):
        batch = next(imitator.batches)
    with phases("update"):
        state, made = programs.imitate(
            state,
            imitator.policy,
            *put((batch.prompts, batch.responses), imitator.model.mesh),
            optimizer=imitator.optimizer,
            micro_batches=limits.batch // limits.micro_batch,
        )
        values = {f"loss/{name}": value for name, value in to_floats(made).items()}
    with phases("wait"):
        parts = hosts.gather(
            {
                "skipped": [[row.id, row.reason] for row in batch.skipped],
                "episodes": [dict(facts) for facts in batch.facts],
                "ids": [sample.id for sample in batch.samples],
            }
        )
    skipped = [Skipped(*pair) for part in parts for pair in part["skipped"]]
    values |= _means([row for part in parts for row in part["episodes"]])
    values["data/skipped"] = float(len(skipped))
    imitator.guards.note_rows(skipped)
    if values["loss/skipped"]:
        ids = ", ".join(name for part in parts for name in part["ids"])
        say(f"step {step}: loss or gradient is not finite, the update is skipped; its rows are {ids}")
    imitator.guards.count_update(bool(values["loss/skipped"]), imitator.workdir)
    return state, values


def _means(episodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric averaged over the demonstrations that have it."""
    names = sorted({name for row in episodes for name in row})
    return {
        f"episode/{name}": float(np.mean([row[name] for row in episodes if name in row])) for name in names
    }
