"""The order of the training rows where a curriculum makes it: opened, followed, told what came of it."""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Int32

from mmrl.config import Config
from mmrl.data.curriculum import State, beginning, update
from mmrl.data.rounds import Mixture, Rows, plan, weights_by_rows
from mmrl.data.sources import Source
from mmrl.open import TrainingData
from mmrl.train.rollout_batch import RowStats


@dataclass
class Course:
    """Where the order stands; the same in every process."""

    config: Config
    sources: tuple[Source, ...]
    mixtures: tuple[Mixture, ...]  # from their shares of the run on
    rows: Rows
    index: Int32[np.ndarray, "n"]  # of each row in its source, which may leave some out: -1
    state: State
    step: int = 0  # steps taken


def open_course(config: Config, data: TrainingData) -> Course | None:
    """The beginning of the order; None where the seed alone decides it."""
    if not (config.data.curriculum.active or len(data.mixtures) > 1):
        return None
    starts = np.array([0, *accumulate(source.table.length for source in data.sources)])
    index = np.full(int(starts[-1]), -1, np.int32)
    for source, start in zip(data.sources, starts[:-1], strict=True):
        chosen = np.arange(len(source)) if source.chosen is None else source.chosen
        index[start + chosen] = np.arange(len(source))
    rows = Rows(starts, index >= 0, data.difficulty)
    return Course(config, data.sources, data.mixtures, rows, index, beginning(len(index), len(data.sources)))


def fixed_weights(config: Config, data: TrainingData) -> tuple[float, ...] | None:
    """Weights of the sources where the seed alone decides the order; None: each row counts the same."""
    mixture, temperature = data.mixtures[0], config.data.temperature
    if not mixture.by_rows:
        return mixture.weights
    if temperature == 1.0:
        return None
    return tuple(weights_by_rows(np.array([len(source) for source in data.sources]), temperature).tolist())


def part(course: Course, given: int) -> tuple[int, list[tuple[int, int]]]:
    """The round that holds the batch of number ``given``, as `mmrl.data.pipeline.prompts` asks for it.

    It is planned if it begins with that batch.

    Raises:
      ValueError: a row of it cannot be used any more.
    """
    made = course.state.round
    end = made.first + len(made.rows) // course.config.rollout.prompts
    if given == end:
        course.state = _planned(course)
        made = course.state.round
    elif not made.first <= given < end:
        raise ValueError(f"batch {given} is not of the round of batches {made.first} to {end - 1}")
    which = np.searchsorted(course.rows.starts, made.rows, side="right") - 1
    for source, row in zip(which, made.rows, strict=True):
        if course.index[row] < 0:
            raise ValueError(
                f"{course.sources[source].name}:{row - course.rows.starts[source]} was to be drawn next when"
                " the run was saved, and cannot be used any more: put back the files that it names"
            )
    return made.first, list(zip(which.tolist(), course.index[made.rows].tolist(), strict=True))


def _planned(course: Course) -> State:
    """With the next round. It ends with its stage: each step draws one batch at least."""
    config, done = course.config, course.step
    steps = config.train.steps
    begins = [-int(-one.start * steps // 1) for one in course.mixtures]  # steps taken by then
    stage = max(k for k, begin in enumerate(begins) if begin <= done)
    left = [*begins, steps][stage + 1] - done
    made = plan(
        config.data.curriculum,
        course.rows,
        course.mixtures[stage],
        course.state.memory,
        course.state.round,
        seed=config.seed,
        share=done / steps,
        batches=max(1, min(config.data.curriculum.batches, left)),
        batch_size=config.rollout.prompts,
        temperature=config.data.temperature,
    )
    if len(course.mixtures) > 1:
        made = made._replace(figures={**made.figures, "curriculum/stage": float(stage)})
    return course.state._replace(round=made)


def learn(course: Course, whole: RowStats) -> None:
    """Remember what came of a batch, groups that are passed over included."""
    starts = dict(zip((source.name for source in course.sources), course.rows.starts.tolist(), strict=False))
    names = [name.rpartition(":") for name in whole.ids]
    memory = update(
        course.state.memory,
        np.array([starts[source] + int(row) for source, _, row in names]),
        whole.components.get("accuracy", whole.rewards),
        whole.valid,
        number=course.state.round.number,
        newest=course.config.data.curriculum.newest,
    )
    course.state = course.state._replace(memory=memory)
