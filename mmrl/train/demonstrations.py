"""Batches to imitate: prompts, each with one response as if it had been sampled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mmrl.data.pipeline import Batch, Batches, PromptFormat, Skipped, prompts, solution_tokens
from mmrl.data.sources import Source
from mmrl.models.processor import Processor
from mmrl.models.prompts import OverBudget
from mmrl.rollout.episodes import Episode
from mmrl.rollout.generate import to_responses
from mmrl.rollout.replay import at_once, replay
from mmrl.rollout.trajectory import Trajectory, WrittenTurn, assemble
from mmrl.sample import Sample
from mmrl.types import Prompts, Responses, StopReason


@dataclass(frozen=True)
class Demonstrations:
    """Prompts with one response each (numpy arrays)."""

    samples: list[Sample]
    prompts: Prompts
    responses: Responses  # groups of one; those of empty slots hold no token
    facts: list[Mapping[str, float]]  # of each row's episode; none for a solution
    skipped: tuple[Skipped, ...]


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
