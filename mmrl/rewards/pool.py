"""Reward pool: grading in killable processes, and by the judge, with a deadline for each sample."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace

from mmrl.rewards.judge import JUDGED
from mmrl.rewards.judge_client import JudgeClient
from mmrl.rewards.verifier import Graded
from mmrl.rewards.verifiers import load_verifiers
from mmrl.sample import Sample
from mmrl.workers.pool import Answer, WorkerPool

TABLE = "mmrl.rewards.verifiers"
MAX_COMPONENT = 1e15  # in size: squares of rewards are added up over a batch, in float32


class RewardPool(AbstractContextManager["RewardPool"]):
    """Worker processes that grade responses; a context manager.

    ``workers``: processes. ``deadline_s``: seconds for one sample, after which its worker is killed and
    replaced. ``table``: an importable module with ``VERIFIERS`` and optionally ``LOADERS``, as in
    ``mmrl.rewards.verifiers``. ``memory_bytes``: address space of a worker. See ``mmrl.workers.pool``.
    ``judge``: grades for the verifiers of `mmrl.rewards.judge`. ``user_verifiers``: further verifiers,
    "FILE.py:function".
    """

    def __init__(
        self,
        workers: int,
        deadline_s: float = 5.0,
        table: str = TABLE,
        memory_bytes: int = 2 << 30,
        judge: JudgeClient | None = None,
        user_verifiers: Sequence[str] = (),
    ) -> None:
        self._judge = judge
        verifiers = load_verifiers(user_verifiers).items()
        self._see_images = {name for name, verifier in verifiers if getattr(verifier, "needs_images", False)}
        self._pool = WorkerPool(
            workers, f"{table}:VERIFIERS", deadline_s, memory_bytes, "verifier", user_verifiers
        )

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, sample: Sample, response: str) -> Future[Graded]:
        """Queues one response and returns at once.

        Several verifiers, joined by "+", each have the deadline for themselves; if one fails, all is invalid.
        Verifiers see the sample without its images, megabytes that few read, unless they ask for them.
        ValueError if the pool is closed. ``.result()`` raises RuntimeError if workers cannot be started.
        """
        graded: Future[Graded] = Future()
        parts: list[Future[Graded] | Future[Answer]] = []
        waiting = iter(range(sample.verifier.count("+"), -1, -1))

        def settle(_: Future[Graded] | Future[Answer]) -> None:
            if next(waiting):  # atomic: the last part settles it
                return
            try:
                graded.set_result(_combine(sample, [_graded(sample, part.result()) for part in parts]))
            except RuntimeError as error:
                graded.set_exception(error)

        for name in sample.verifier.split("+"):
            images = sample.images if name in self._see_images else ()
            part = replace(sample, verifier=name, images=images)
            if self._judge is not None and name in JUDGED:
                parts.append(self._judge.submit(part, response))
            else:
                parts.append(self._pool.submit(name, (part, response)))
        for future in parts:
            future.add_done_callback(settle)
        return graded

    def grade(self, requests: Sequence[tuple[Sample, str]]) -> list[Graded]:
        """Grades all ``requests`` and waits; results in the order of the requests."""
        futures = [self.submit(sample, response) for sample, response in requests]
        return [future.result() for future in futures]

    def judge_stats(self) -> dict[str, float]:
        """The judge's cost since the pool was opened; empty without one."""
        return {} if self._judge is None else self._judge.stats()

    def close(self) -> None:
        """Kills the workers and waits for their end. What was not graded yet becomes invalid."""
        self._pool.close()


def _graded(sample: Sample, answer: Graded | Answer) -> Graded:
    """A verifier's answer, checked: components are finite numbers that float32 can reckon with."""
    if isinstance(answer, Graded):
        return answer
    if answer.error is not None:
        return Graded({}, False, f"sample {sample.id}: {answer.error}")
    try:
        values = {name: float(value) for name, value in answer.value.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"verifier {sample.verifier!r} reported a value that is not finite: {values}")
        if any(abs(value) > MAX_COMPONENT for value in values.values()):
            raise ValueError(
                f"verifier {sample.verifier!r} reported a value beyond {MAX_COMPONENT:g}: {values}"
            )
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        return Graded({}, False, f"sample {sample.id}: {type(error).__name__}: {error}"[:500])
    return Graded(values)


def _combine(sample: Sample, parts: Sequence[Graded]) -> Graded:
    errors = [part.error for part in parts if part.error is not None]
    if errors:
        return Graded({}, False, "; ".join(errors))
    names = [name for part in parts for name in part.components]
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        error = f"sample {sample.id}: two verifiers of {sample.verifier!r} report {twice[0]!r}"
        return Graded({}, False, error)
    return Graded({name: value for part in parts for name, value in part.components.items()})
