"""Grading in killable processes, under a deadline and a memory limit for each sample."""

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from mmrl.rewards.judge import JUDGED
from mmrl.sample import Sample
from mmrl.workers.pool import Answer, WorkerPool

if TYPE_CHECKING:
    from mmrl.rewards.judge_client import JudgePool

TABLE = "mmrl.rewards.verifier"
LARGEST = 1e15  # size of a component: squares of rewards are added up over a batch, in float32


@dataclass(frozen=True)
class Graded:
    """What became of one response: its reward components, or why there are none.

    ``valid=False`` means that nobody knows the reward (the verifier raised, or ran out of time or memory).
    The row must be left out of statistics and of the loss; it is not a reward of 0.
    """

    components: dict[str, float]
    valid: bool = True
    error: str | None = None


class RewardPool:
    """Worker processes that grade responses; a context manager.

    ``workers``: processes. ``deadline_s``: seconds for one sample, after which its worker is killed and
    replaced. ``table``: an importable module with ``VERIFIERS`` and optionally ``LOADERS``, as in
    ``mmrl.rewards.verifier``. ``memory_bytes``: address space of a worker. See ``mmrl.workers.pool``.
    ``judge``: who is asked for the verifiers of `mmrl.rewards.judge`. ``own``: names of verifiers besides
    those of the table, "FILE.py:function".
    """

    def __init__(
        self,
        workers: int,
        deadline_s: float = 5.0,
        table: str = TABLE,
        memory_bytes: int = 2 << 30,
        judge: "JudgePool | None" = None,
        own: Sequence[str] = (),
    ) -> None:
        self._judge = judge
        self._pool = WorkerPool(
            workers, f"{table}:VERIFIERS", deadline_s, memory_bytes, noun="verifier", own=own
        )

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, sample: Sample, response: str) -> Future[Graded]:
        """Queues one response and returns at once; ``.result()`` of the handle is its ``Graded``.

        Several verifiers, joined by "+", each have the deadline for themselves; if one fails, all is invalid.
        Verifiers see the sample without its images; what they need of these belongs into ``facts``.
        ValueError if the pool is closed. ``.result()`` raises RuntimeError if workers cannot be started.
        """
        parts = [
            self._submit(
                replace(sample, verifier=name, images=()), response
            )  # images: megabytes nobody reads
            for name in sample.verifier.split("+")
        ]
        return parts[0] if len(parts) == 1 else _joined(sample, parts)

    def _submit(self, sample: Sample, response: str) -> Future[Graded]:
        if self._judge is not None and sample.verifier in JUDGED:
            return self._judge.submit(sample, response)
        graded: Future[Graded] = Future()

        def settle(answered: Future[Answer]) -> None:
            failure = answered.exception()
            if failure is not None:
                graded.set_exception(failure)
            else:
                graded.set_result(_graded(sample, answered.result()))

        self._pool.submit(sample.verifier, (sample, response)).add_done_callback(settle)
        return graded

    def grade(self, requests: list[tuple[Sample, str]]) -> list[Graded]:
        """Grades all ``requests`` and waits; results in the order of the requests."""
        handles = [self.submit(sample, response) for sample, response in requests]
        return [handle.result() for handle in handles]

    def judge_stats(self) -> dict[str, float]:
        """What the judge has cost since the pool was opened; empty without one."""
        return {} if self._judge is None else self._judge.stats()

    def close(self) -> None:
        """Kills the workers and waits for their end. What was not graded yet becomes invalid."""
        self._pool.close()


def _joined(sample: Sample, parts: Sequence[Future[Graded]]) -> Future[Graded]:
    """What several verifiers say of one response, when the last has spoken."""
    whole: Future[Graded] = Future()
    left = itertools.count(len(parts) - 1, -1)

    def settle(_: Future[Graded]) -> None:
        if next(left):  # atomic: who comes last settles it
            return
        failure = next((error for part in parts if (error := part.exception()) is not None), None)
        if failure is not None:
            whole.set_exception(failure)
        else:
            whole.set_result(_merged(sample, [part.result() for part in parts]))

    for part in parts:
        part.add_done_callback(settle)
    return whole


def _merged(sample: Sample, parts: Sequence[Graded]) -> Graded:
    errors = [part.error for part in parts if part.error is not None]
    if errors:
        return Graded({}, False, "; ".join(errors))
    names = [name for part in parts for name in part.components]
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        error = f"sample {sample.id}: two verifiers of {sample.verifier!r} report {twice[0]!r}"
        return Graded({}, False, error)
    return Graded({name: value for part in parts for name, value in part.components.items()})


def _graded(sample: Sample, answer: Answer) -> Graded:
    """A verifier's answer, checked: components are finite numbers that float32 can reckon with."""
    if answer.error is not None:
        return Graded({}, False, f"sample {sample.id}: {answer.error}")
    try:
        values = {name: float(value) for name, value in answer.value.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"verifier {sample.verifier!r} reported a value that is not finite: {values}")
        if any(abs(value) > LARGEST for value in values.values()):
            raise ValueError(f"verifier {sample.verifier!r} reported a value beyond {LARGEST:g}: {values}")
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        return Graded({}, False, f"sample {sample.id}: {type(error).__name__}: {error}"[:500])
    return Graded(values)
