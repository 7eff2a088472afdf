"""Batches of prompts for rollouts, evaluation and imitation, by Grain.

The order of rows is a pure function of the seed, so the whole state of an iterator is how many rows it has
consumed: restoring it gives the very batches that would have followed. Rows are read, decoded and tokenised
ahead of need by threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import grain
import numpy as np
from jaxtyping import Bool, Int32

from mmrl.data.sources import Source
from mmrl.models.processor import Processor
from mmrl.models.prompts import Encoded, OverBudget, bucket, collate, encode, messages
from mmrl.rollout.episodes import Episode
from mmrl.rollout.generate import gather
from mmrl.rollout.replay import at_once, replay
from mmrl.rollout.trajectory import Trajectory, Written, assemble
from mmrl.sample import Sample
from mmrl.types import Prompts, Responses, StopReason

OVERLONG = ("drop", "error", "resize")


@dataclass(frozen=True)
class PromptFormat:
    """How rows become prompts, and the shapes their batches may have.

    ``overlong`` says what happens to a prompt over the largest bucket, which is never truncated: "drop" (and
    count) it, raise an "error", or "resize" its images (see `mmrl.models.prompts.encode`) and drop it only
    if that does not help.
    """

    prompt_buckets: tuple[int, ...]  # tokens
    patch_buckets: tuple[int, ...]  # patch slots; multiples of Processor.slots
    system: str | None = None  # replaces the chat template's default system message
    suffix: str = ""  # the format instruction, appended to every problem
    overlong: str = "drop"

    def __post_init__(self) -> None:
        if self.overlong not in OVERLONG:
            raise ValueError(f"overlong is {self.overlong!r}; it must be one of {OVERLONG}")
        for name in ("prompt_buckets", "patch_buckets"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one length")


@dataclass(frozen=True)
class Batch:
    """Prompts (numpy arrays), the samples they were made of, and the rows dropped on the way to them."""

    samples: list[Sample]
    prompts: Prompts
    keep: Bool[np.ndarray, "b"]  # False: a repeated row that only fills the last batch of an evaluation
    dropped: int


@dataclass(frozen=True)
class SolutionBatch:
    """Prompts with one response each to imitate, as if it had been sampled (numpy arrays)."""

    samples: list[Sample]
    prompts: Prompts
    responses: Responses  # groups of one
    facts: list[Mapping[str, float]]  # of each row's episode; none for a solution
    dropped: int


B = TypeVar("B")


class Batches(Generic[B]):
    """An endless iterator of batches whose state is a small JSON-able dictionary."""

    def __init__(self, rows: grain.DatasetIterator, take: Callable[[grain.DatasetIterator], B]) -> None:
        self._rows, self._take = rows, take

    def __iter__(self) -> Batches[B]:
        return self

    def __next__(self) -> B:
        return self._take(self._rows)

    def get_state(self) -> dict[str, Any]:
        """The place after the last batch that was given out; rows read ahead do not count."""
        return self._rows.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a place saved by `get_state` of an iterator made with the same arguments."""
        self._rows.set_state(state)


def prompts(
    source: Source,
    processor: Processor,
    form: PromptFormat,
    *,
    seed: int,
    batch_size: int,
    shuffle: bool = True,
    workers: int = 4,
) -> Batches[Batch]:
    """Batches for ever, every epoch in an order of its own; a batch may span epochs, so short sources repeat.

    Raises ValueError, when a batch is drawn, for a row that cannot be used (see `encode`), or if an epoch
    passes in which every prompt is over budget.
    """

    def work(index: int) -> tuple[Sample, Encoded | None]:
        sample = source[index]
        return sample, _encoded(sample, processor, form)

    def take(rows: grain.DatasetIterator) -> Batch:
        kept, dropped = _draw(rows, batch_size, source)
        samples, encoded = map(list, zip(*kept, strict=True))
        return Batch(samples, _collated(encoded, processor, form), np.ones(batch_size, bool), dropped)

    return Batches(_rows(source, work, seed, shuffle, workers, batch_size), take)


def solutions(
    source: Source,
    processor: Processor,
    form: PromptFormat,
    *,
    episode: Callable[[Sample], Episode],
    response_buckets: Sequence[int],
    observation_patches: int = 0,
    seed: int,
    batch_size: int,
    workers: int = 4,
) -> Batches[SolutionBatch]:
    """Batches for the supervised stage, like `prompts`. A response over the largest bucket drops its row.

    A row with ``turns`` is replayed, tools included (`mmrl.rollout.replay`); others give their ``solution``.

    Args:
      source, processor, form, seed, batch_size, workers: as for `prompts`.
      episode: in which a row's turns are played.
      response_buckets: tokens of a response, what it reads included.
      observation_patches: slots of all images that a response may read; 0 if episodes read nothing.

    Raises ValueError, when a batch is drawn, for a row that gives nothing to imitate, whose turns are not
    those of an ``episode``, or as `prompts` does.
    """

    def work(index: int) -> tuple[Sample, tuple[Encoded, Trajectory] | None]:
        sample = source[index]
        try:
            response = _demonstration(sample, processor, episode, max(response_buckets))
        except OverBudget:
            if form.overlong == "error":
                raise
            return sample, None
        encoded = _encoded(sample, processor, form)
        return sample, None if encoded is None else (encoded, response)

    def take(rows: grain.DatasetIterator) -> SolutionBatch:
        kept, dropped = _draw(rows, batch_size, source)
        encoded, responses = zip(*(pair for _, pair in kept), strict=True)
        length = bucket(max(len(one.tokens) for one in responses), response_buckets)
        batch = _collated(encoded, processor, form)
        placed = (replace(one, group=k) for k, one in enumerate(responses))
        width = batch.images.patches.shape[-1]
        gathered = gather(placed, batch_size, 1, length, observation_patches, width)
        samples, facts = [sample for sample, _ in kept], [one.facts for one in responses]
        return SolutionBatch(samples, batch, gathered, facts, dropped)

    return Batches(_rows(source, work, seed, True, workers, batch_size), take)


def evaluation(
    source: Source, processor: Processor, form: PromptFormat, *, batch_size: int, workers: int = 4
) -> Iterator[Batch]:
    """Every row once, in order. The last batch is filled up by repeated rows, marked False in ``keep``.

    Raises ValueError for a row that cannot be used, or if every prompt is over budget.
    """

    def work(index: int) -> tuple[Sample, Encoded | None]:
        sample = source[index]
        return sample, _encoded(sample, processor, form)

    rows = grain.MapDataset.range(len(source)).map(work).to_iter_dataset(_ahead(workers, batch_size))
    waiting: list[tuple[Sample, Encoded]] = []
    dropped, given = 0, 0

    def batch() -> Batch:
        keep = np.arange(batch_size) < len(waiting)
        filled = [waiting[k % len(waiting)] for k in range(batch_size)]
        samples, encoded = map(list, zip(*filled, strict=True))
        return Batch(samples, _collated(encoded, processor, form), keep, dropped)

    for sample, encoded in rows:
        if encoded is None:
            dropped += 1
            continue
        waiting.append((sample, encoded))
        if len(waiting) == batch_size:
            yield batch()
            waiting, dropped, given = [], 0, given + 1
    if waiting:
        yield batch()
    elif not given:
        raise _all_dropped(source)


def check_demonstration(sample: Sample, processor: Processor) -> None:
    """Raises ValueError naming the row if it has nothing to imitate, or what holds vision tokens."""
    for turn in sample.turns:
        _ids(turn, "a turn", sample, processor)
    if not sample.turns:
        solution_tokens(sample, processor)


def solution_tokens(sample: Sample, processor: Processor) -> Int32[np.ndarray, "r"]:
    """The solution's token ids and the id that ends the turn.

    Raises ValueError naming the row if it has no solution, or one that holds vision tokens.
    """
    if sample.solution is None:
        raise ValueError(
            f"{sample.id}: no solution to imitate. The supervised stage needs the column 'solution' or"
            " 'turns'."
        )
    return np.array([*_ids(sample.solution, "the solution", sample, processor), processor.eos], np.int32)


def _ids(text: str, what: str, sample: Sample, processor: Processor) -> list[int]:
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if set(ids) & set(processor.placeholders):
        raise ValueError(f"{sample.id}: {what} holds vision tokens, which no response may contain")
    return ids


def _demonstration(
    sample: Sample, processor: Processor, episode: Callable[[Sample], Episode], longest: int
) -> Trajectory:
    """What to imitate of a row. Raises `OverBudget` if that has over ``longest`` tokens."""
    if sample.turns:
        ((_, response),) = replay(episode(sample), sample.turns, processor, at_once, sample.id)
    else:
        written = Written(solution_tokens(sample, processor).tolist())
        text = sample.solution or ""
        response = assemble([written], group=0, member=0, stop=StopReason.EOS, text=text, facts={})
    if len(response.tokens) > longest:
        what = "its episode" if sample.turns else "the solution"
        raise OverBudget(f"{sample.id}: {what} has {len(response.tokens)} tokens, over {longest}")
    return response


def _encoded(sample: Sample, processor: Processor, form: PromptFormat) -> Encoded | None:
    """A sample's prompt, or None if it is over budget and to be dropped."""
    try:
        return encode(
            processor,
            messages(sample.problem, form.system, form.suffix),
            sample.images,
            name=sample.id,
            prompt_budget=max(form.prompt_buckets),
            patch_budget=max(form.patch_buckets),
            overlong="resize" if form.overlong == "resize" else "error",
        )
    except OverBudget:
        if form.overlong == "error":
            raise
        return None


def _collated(encoded: Sequence[Encoded], processor: Processor, form: PromptFormat) -> Prompts:
    """A batch in the smallest buckets that hold it."""
    tokens = bucket(max(len(e.tokens) for e in encoded), form.prompt_buckets)
    slots = bucket(max(len(e.patches) for e in encoded), form.patch_buckets)
    return collate(encoded, processor, tokens, slots)


def _rows(
    source: Source, work: Callable[[int], Any], seed: int, shuffle: bool, workers: int, batch_size: int
) -> grain.DatasetIterator:
    """Worked-on rows for ever, read ahead by threads."""
    rows = grain.MapDataset.range(len(source))
    if shuffle:
        # Grain adds the epoch to the seed; hashed first, the epochs of neighbouring seeds are unrelated.
        rows = rows.shuffle(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    return iter(rows.repeat().map(work).to_iter_dataset(_ahead(workers, batch_size)))


def _ahead(workers: int, batch_size: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(workers, batch_size))


def _draw(
    rows: grain.DatasetIterator, batch_size: int, source: Source
) -> tuple[list[tuple[Sample, Any]], int]:
    """The next ``batch_size`` rows that fit their budget, and how many were passed over."""
    kept: list[tuple[Sample, Any]] = []
    dropped, run = 0, 0  # run: dropped in a row
    while len(kept) < batch_size:
        sample, value = next(rows)
        if value is not None:
            kept.append((sample, value))
            run = 0
            continue
        dropped, run = dropped + 1, run + 1
        if run > 2 * len(source):  # two epochs in a row: no order of rows leaves out a fitting one
            raise _all_dropped(source)
    return kept, dropped


def _all_dropped(source: Source) -> ValueError:
    return ValueError(
        f"{source.name}: all {len(source)} prompts are over budget. Raise the largest prompt or patch bucket,"
        ' or set overlong="resize".'
    )
