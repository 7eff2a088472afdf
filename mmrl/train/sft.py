"""The supervised stage: imitate demonstrations, with the model, data path and optimizer of the RL stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optax

from mmrl import hosts
from mmrl.config import Config
from mmrl.data.pipeline import Batch, Batches, PromptFormat, Skipped, prompts, solution_tokens
from mmrl.data.sources import Source
from mmrl.hosts import say
from mmrl.mesh import local_rows, shard_batch, to_host
from mmrl.models import checkpoint as hf
from mmrl.models.processor import Processor
from mmrl.models.prompts import OverBudget, pad_prompts
from mmrl.open import OpenModel, prompt_format, readers, training_sizes
from mmrl.packing import computed_slots, real_sizes
from mmrl.rollout.episodes import Episode
from mmrl.rollout.generate import to_responses
from mmrl.rollout.replay import at_once, replay
from mmrl.rollout.sampling import Policy, Sampling
from mmrl.rollout.trajectory import Trajectory, WrittenTurn, assemble
from mmrl.sample import Sample
from mmrl.train import programs
from mmrl.train.guards import Guards, open_guards
from mmrl.train.loop import Stage, run_stage
from mmrl.train.metrics import Phases, padding_metrics, to_floats
from mmrl.train.optimizer import make_optimizer
from mmrl.train.programs import TrainBatch, train_batch
from mmrl.train.rollouts import episode_maker, observation_slots
from mmrl.train.state import TrainState, initial_state
from mmrl.train.stop_signal import StopSignal
from mmrl.types import Prompts, Responses, StopReason


@dataclass(frozen=True)
class Demonstrations:
    """Prompts with one response each (numpy arrays)."""

    samples: list[Sample]
    prompts: Prompts
    responses: Responses  # groups of one; those of empty slots hold no token
    facts: list[Mapping[str, float]]  # of each row's episode; none for a solution
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Imitator:
    """All that a supervised step needs beside weights."""

    config: Config
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
        config=config,
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
        headline={"loss": "loss/loss", "slots/token": "padding/text"},
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
    phases = imitator.phases
    with phases("wait"):
        imitator.stop.check()
    with phases("data"):
        batch = next(imitator.batches)
    with phases("pack"):
        packed = _pack(imitator, batch)
        prompt_tokens, patches, read = real_sizes(batch.prompts, batch.responses)
    with phases("update"):
        state, made = programs.imitate(state, imitator.policy, packed, optimizer=imitator.optimizer)
        values = {f"loss/{name}": value for name, value in to_floats(made).items()}
    with phases("wait"):
        parts = hosts.gather(
            {
                "skipped": [[row.id, row.reason] for row in batch.skipped],
                "episodes": [dict(facts) for facts in batch.facts],
                "ids": [sample.id for sample in batch.samples],
                "used": [int(prompt_tokens.sum() + read.sum()), int(patches.sum())],
            }
        )
    skipped = [Skipped(*pair) for part in parts for pair in part["skipped"]]
    values |= _means([row for part in parts for row in part["episodes"]])
    used = np.sum([part["used"] for part in parts], axis=0)
    values |= padding_metrics(computed_slots(packed.packed), used)
    values["data/skipped"] = float(len(skipped))
    imitator.guards.note_rows(skipped)
    if values["loss/skipped"]:
        ids = ", ".join(name for part in parts for name in part["ids"])
        say(f"step {step}: loss or gradient is not finite, the update is skipped; its rows are {ids}")
    imitator.guards.count_update(bool(values["loss/skipped"]), imitator.workdir)
    return state, values


def _pack(imitator: Imitator, batch: Demonstrations) -> TrainBatch:
    """The batch on the mesh, in rows, with the same shapes as every other."""
    config, model = imitator.config, imitator.model
    tokens, slots = training_sizes(config)
    padded = pad_prompts(batch.prompts, tokens, slots)
    prompts, responses = shard_batch((padded, batch.responses), model.mesh)
    return train_batch(prompts, responses, model.config, model.mesh, config.train.row_tokens)


def _means(episodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric averaged over the demonstrations that have it."""
    names = sorted({name for row in episodes for name in row})
    return {
        f"episode/{name}": float(np.mean([row[name] for row in episodes if name in row])) for name in names
    }


def demonstrations(
    source: Source,
    processor: Processor,
    form: PromptFormat,
    *,
    episode: Callable[[Sample], Episode],
    max_tokens: int,
    observation_patches: int = 0,
    **settings: Any,
) -> Batches[Demonstrations]:
    """Batches of `mmrl.data.pipeline.prompts`, with responses. A row without one leaves its slot empty.

    A row with ``turns`` is replayed, tools included (`mmrl.rollout.replay`); others give their ``solution``.

    Args:
      source, processor, form, settings: as for `prompts`.
      episode: in which a row's turns are played.
      max_tokens: most of a response, what it reads included; responses are padded to it.
      observation_patches: slots of all images that a response may read; 0 if episodes read nothing.
    """

    def collate(batch: Batch) -> Demonstrations:
        found = [(k, response) for k, response in enumerate(batch.extras) if response is not None]
        responses = to_responses(
            (replace(response, group=k) for k, response in found),
            len(batch.samples),
            1,
            max_tokens,
            observation_patches,
            batch.prompts.images.patches.shape[-1],
        )
        facts = [response.facts for _, response in found]
        return Demonstrations(batch.samples, batch.prompts, responses, facts, batch.skipped)

    demonstrate = partial(_demonstrate, processor=processor, episode=episode, longest=max_tokens)
    return prompts([source], processor, form, extra=demonstrate, **settings).map(collate)


def _demonstrate(
    sample: Sample, processor: Processor, episode: Callable[[Sample], Episode], longest: int
) -> Trajectory:
    """The response to imitate of a row. Raises `OverBudget` if it has over ``longest`` tokens."""
    if sample.turns:
        ((_, response),) = replay(episode(sample), sample.turns, processor, at_once, sample.id)
    else:
        written = WrittenTurn(solution_tokens(sample, processor).tolist())
        text = sample.solution or ""
        response = assemble([written], group=0, member=0, stop=StopReason.EOS, text=text, facts={})
    if len(response.tokens) > longest:
        what = "its episode" if sample.turns else "the solution"
        raise OverBudget(f"{sample.id}: {what} has {len(response.tokens)} tokens, over {longest}")
    return response
