"""Batches of prompts, by Grain.

The order of rows is a pure function of the seed, and slot b of batch k holds the row at position k B + b of
that order. So the whole state of an iterator is the number of batches it has given, whatever the number of
processes that share a batch and of workers that read ahead of need.

A row that cannot be used, though the look through its source before the run did not see it (damaged pixels),
leaves its slot empty: the order of all others stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Bool, Int, Int32

from mmrl import hosts
from mmrl.data.sources import Source
from mmrl.models.processor import Processor
from mmrl.models.prompts import (
    Encoded,
    OverBudget,
    chat_messages,
    collate,
    encode,
    largest_bucket,
    padded,
    text_ids,
)
from mmrl.sample import Sample
from mmrl.types import Prompts

OVERLONG = ("drop", "error", "resize")
Order: TypeAlias = grain.MapDataset | Sequence[tuple[int, int]]  # (source, row) at each position


@dataclass(frozen=True)
class PromptFormat:
    """The form in which rows become prompts, and the shapes their batches may have.

    ``overlong`` says what happens to a prompt over the largest bucket, which is never truncated: "drop" (and
    count) it, raise an "error", or "resize" its images (see `mmrl.models.prompts.encode`) and drop it only
    if that does not help. Without buckets there is no limit, and batches are padded to a round length.
    """

    prompt_buckets: tuple[int, ...]  # tokens
    patch_buckets: tuple[int, ...]  # patch slots; multiples of Processor.slots
    system: str | None = None  # replaces the chat template's default system message
    suffix: str = ""  # the format instruction, appended to every problem
    overlong: str = "drop"

    def __post_init__(self) -> None:
        if self.overlong not in OVERLONG:
            raise ValueError(f"overlong is {self.overlong!r}; it must be one of {OVERLONG}")


@dataclass(frozen=True)
class Readers:
    """Readers and preprocessors ahead of need: threads of this process, or of so many other processes."""

    threads: int = 4
    processes: int = 0


@dataclass(frozen=True)
class Skipped:
    """A row that could not be used after all."""

    id: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """This process's prompts of a batch (numpy arrays), and the samples they were made of."""

    rows: Int[np.ndarray, "b"]  # which of the whole batch they are
    samples: list[Sample]
    prompts: Prompts
    keep: Bool[np.ndarray, "b"]  # False: an empty slot
    skipped: tuple[Skipped, ...]  # why slots are empty; an evaluation's last batch may just not be full
    extras: tuple[Any, ...] = ()  # of each slot, what ``extra`` made of it (see `prompts`)


B = TypeVar("B")
C = TypeVar("C")


class Batches(Generic[B]):
    """An endless iterator of batches, whose state is how many it has given."""

    def __init__(self, start: Callable[[int], Iterator[B]]) -> None:
        self._start = start
        self.seek(0)

    def __iter__(self) -> Batches[B]:
        return self

    def __next__(self) -> B:
        batch = next(self._rest)
        self.given += 1
        return batch

    def seek(self, given: int) -> None:
        """Go on as if ``given`` batches had been given; what is read ahead does not count as given."""
        self.given = given
        self._rest = self._start(given)

    def map(self, function: Callable[[B], C]) -> Batches[C]:
        """Batches that ``function`` makes of these."""
        return Batches(lambda given: map(function, self._start(given)))


def prompts(
    sources: Sequence[Source],
    processor: Processor,
    form: PromptFormat,
    *,
    seed: int,
    batch_size: int,
    weights: Sequence[float] | None = None,
    rows: Int[np.ndarray, "b"] | None = None,
    readers: Readers = Readers(),
    part: Callable[[int], tuple[int, Order]] | None = None,
    extra: Callable[[Sample], Any] | None = None,
) -> Batches[Batch]:
    """Batches for ever; a batch may span epochs, so short sources repeat.

    Args:
      sources: each in an order of its own, another one every epoch.
      processor, form: how rows become prompts.
      seed: of the orders.
      batch_size: prompts of all processes together.
      weights: shares of the sources in the batches; by default their numbers of rows.
      rows: which slots of a batch this process reads; by default all.
      readers: who reads ahead.
      part: of an order that is made as the run goes on, instead of one by ``seed`` and ``weights``: gives the
        part that holds a batch, as the number of its first batch and (source, row) at each position. Called
        when that batch is asked for; no reader goes beyond the part.
      extra: made of each sample besides, by the readers. If it raises ValueError the slot stays empty.
    """
    mine = np.arange(batch_size) if rows is None else rows
    work = partial(_item, sources=tuple(sources), processor=processor, form=form, make_extra=extra)
    endless = _order(sources, weights, seed)

    def worked(given: int) -> Iterator[list[_Item]]:
        while True:
            first, order = part(given) if part else (0, endless)
            stop = len(order) // batch_size
            yield from _ahead(order, work, mine, batch_size, given - first, stop, readers)
            given = first + stop

    def start(given: int) -> Iterator[Batch]:
        return (_batch(mine, items, processor, form) for items in worked(given))

    return Batches(start)


def evaluation(
    sources: Sequence[Source],
    processor: Processor,
    form: PromptFormat,
    *,
    batch_size: int,
    rows: Int[np.ndarray, "b"] | None = None,
    readers: Readers = Readers(),
) -> Iterator[Batch]:
    """Every row once, in order, source after source; the last batch may have empty slots.

    Arguments as for `prompts`.
    """
    mine = np.arange(batch_size) if rows is None else rows
    work = partial(_item, sources=tuple(sources), processor=processor, form=form)
    order = [(k, row) for k, source in enumerate(sources) for row in range(len(source))]
    for items in _ahead(order, work, mine, batch_size, 0, -(-len(order) // batch_size), readers):
        yield _batch(mine, items, processor, form)


def solution_tokens(sample: Sample, processor: Processor) -> Int32[np.ndarray, "r"]:
    """The solution's token ids and the id that ends the turn, the only control token among them.

    Raises ValueError naming the row if it has no solution.
    """
    if sample.solution is None:
        raise ValueError(
            f"{sample.id}: no solution to imitate. The supervised stage needs the column 'solution' or"
            " 'turns'."
        )
    return np.array([*text_ids(processor, sample.solution, sample.id), processor.eos], np.int32)


@dataclass(frozen=True)
class _Item:
    """A row that was worked on."""

    sample: Sample
    encoded: Encoded | None  # None: an empty slot
    extra: Any = None
    reason: str = ""  # why the slot is empty, where a row was to fill it


_NOBODY = _Item(Sample(id="", problem="", answer=""), None)


def _order(sources: Sequence[Source], weights: Sequence[float] | None, seed: int) -> grain.MapDataset:
    """(source, row) at each position, for ever."""
    orders = []
    for k, source in enumerate(sources):
        # Grain adds the epoch to the seed; hashed first, the epochs of neighbouring seeds are unrelated.
        words = np.random.SeedSequence([seed, k] if k else seed).generate_state(1)
        rows = grain.MapDataset.range(len(source)).shuffle(int(words[0])).repeat()
        orders.append(rows.map(lambda row, k=k: (k, row)))
    if len(orders) == 1:
        return orders[0]
    shares = [float(len(source)) for source in sources] if weights is None else [*weights]
    return grain.MapDataset.mix(orders, [share / sum(shares) for share in shares])


def _ahead(
    order: Order,
    work: Callable[[int, int], _Item],
    mine: Int[np.ndarray, "b"],
    batch_size: int,
    start: int,
    stop: int,
    readers: Readers,
) -> Iterator[list[_Item]]:
    """The rows ``mine`` of the batches from ``start`` to ``stop``, worked on ahead of need."""
    count = len(mine)

    def item(index: int) -> _Item:
        batch, slot = divmod(index, count)
        position = batch * batch_size + int(mine[slot])
        return work(*order[position]) if position < len(order) else _NOBODY

    last = min(stop * count, sys.maxsize)
    options = grain.ReadOptions(num_threads=readers.threads, prefetch_buffer_size=max(readers.threads, count))
    rows = grain.MapDataset.range(start * count, last).map(item).to_iter_dataset(options)
    if readers.processes:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, which programs without absl never parse
        rows = rows.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=readers.processes), worker_init_fn=_without_devices
        )
    worked = iter(rows)
    for _ in range(start, stop):
        yield [next(worked) for _ in range(count)]


def _without_devices(worker: int, workers: int) -> None:
    """A reader must not take the accelerator from the process that reads for it."""
    jax.config.update("jax_platforms", "cpu")


def _item(
    number: int,
    row: int,
    *,
    sources: Sequence[Source],
    processor: Processor,
    form: PromptFormat,
    make_extra: Callable[[Sample], Any] | None = None,
) -> _Item:
    source = sources[number]
    try:
        sample = source[row]
        extra = None if make_extra is None else make_extra(sample)
        return _Item(sample, encode_sample(sample, processor, form), extra)
    except ValueError as error:
        if isinstance(error, OverBudget) and form.overlong == "error":
            raise
        nothing = Sample(id=source.id(row), problem="", answer="", source=source.name)
        return _Item(nothing, None, reason=str(error))


def encode_sample(sample: Sample, processor: Processor, form: PromptFormat) -> Encoded:
    """The prompt of a row, unpadded. Raises ValueError and `OverBudget` as `encode` does, naming the row."""
    return encode(
        processor,
        chat_messages(sample.problem, form.system, form.suffix),
        sample.images,
        name=sample.id,
        prompt_budget=largest_bucket(form.prompt_buckets),
        patch_budget=largest_bucket(form.patch_buckets),
        overlong="resize" if form.overlong == "resize" else "error",
    )


def _batch(
    rows: Int[np.ndarray, "b"], items: Sequence[_Item], processor: Processor, form: PromptFormat
) -> Batch:
    """A batch in the smallest buckets that hold the rows of all processes."""
    encoded = [item.encoded or encode(processor, chat_messages("")) for item in items]
    widths = hosts.maximum(max(len(e.tokens) for e in encoded), max(len(e.patches) for e in encoded))
    tokens, slots = padded(widths[0], widths[1], processor, form.prompt_buckets, form.patch_buckets)
    return Batch(
        rows=rows,
        samples=[item.sample for item in items],
        prompts=collate(encoded, processor, tokens, slots),
        keep=np.array([item.encoded is not None for item in items]),
        skipped=tuple(Skipped(item.sample.id, item.reason) for item in items if item.reason),
        extras=tuple(item.extra for item in items),
    )
