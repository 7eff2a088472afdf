"""Grading by a text model over an OpenAI-compatible endpoint: threads, retries, a cache on disk, a budget."""

import hashlib
import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

from mmrl.rewards.judge import JUDGED, REMINDER, Message
from mmrl.rewards.judge_cache import Cache
from mmrl.rewards.judge_http import LONGEST_WAIT_S, Fault, Line, completion_of, endpoint_of
from mmrl.rewards.pool import Graded
from mmrl.sample import Sample

FIRST_WAIT_S = 0.5  # before the first retry; twice as long before each further one
MOST_WAIT_S = 30.0
_WATCH_S = 0.1  # how often it is looked whether requests are past their time
_JOIN_S = 1.0  # for threads to end; one that is still connecting may take its whole timeout
_CLOSED = "the pool was closed before this was graded"


@dataclass(frozen=True)
class Judge:
    """Which model judges, and what it may cost."""

    endpoint: str = ""  # of an OpenAI-compatible server, such as http://localhost:8000/v1
    model: str = ""  # as the server calls it
    key_variable: str = ""  # the environment variable that holds the API key; "": none is sent
    concurrency: int = 8  # requests at once
    timeout_seconds: float = 60.0  # of one request, from connecting to the last byte
    retries: int = 4  # of one grading, after which it is invalid
    max_requests: int = 0  # of a run, retries included; 0: any number
    max_tokens: int = 256  # of a reply; a model that thinks needs more
    # File of replies and of what was spent; "{workdir}" stands for the run's folder, "" keeps it in memory.
    cache: str = "{workdir}/judge.sqlite3"


def check(judge: Judge) -> None:
    """Ask the judge for a word, so that a run does not begin in vain.

    Raises ValueError naming the key of the config and the fix: a value out of range, no or an unsuitable API
    key, nobody at the endpoint, a model that the server does not have. A server that is merely busy passes.
    """
    line = Line(endpoint_of(_sensible(judge).endpoint), _key_of(judge))
    body = _body(judge, [{"role": "user", "content": "Reply with the word ready."}])
    try:
        completion_of(line.post(body, judge.timeout_seconds))
    except Fault as fault:
        if fault.status in (401, 403):
            fix = (
                f"; set the variable {judge.key_variable!r} (config.reward.judge.key_variable) to a good key"
            )
        elif fault.status:
            fix = "; fix config.reward.judge.endpoint or .model"
        else:
            fix = "; start the server, or fix config.reward.judge.endpoint"
        if not (fault.status and fault.again):
            raise ValueError(f"the judge {judge.model!r} at {judge.endpoint}: {fault}{fix}") from None
    finally:
        line.close()


@dataclass(eq=False)
class _Job:
    """One question, and everybody who waits for its answer."""

    key: str
    messages: list[Message]
    waiting: list[tuple[Sample, Future[Graded]]] = field(default_factory=list)


@dataclass
class _Counts:
    requests: int = 0
    cached: int = 0
    shared: int = 0
    unasked: int = 0
    retries: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0


class JudgePool:
    """Threads that have responses graded by a text model; a context manager, used like `RewardPool`.

    ``judge``: which model. ``run``: whose budget is spent, among those that share a cache. ``seed``: of the
    jitter of retries. ``say``: tells people, once, that the budget is used up. Raises ValueError for settings
    that cannot work; `check` says whether the server is there.
    """

    def __init__(
        self, judge: Judge, *, run: str = "", seed: int = 0, say: Callable[[str], None] = print
    ) -> None:
        endpoint, key = endpoint_of(_sensible(judge).endpoint), _key_of(judge)
        self._judge, self._seed, self._say = judge, seed, say
        self._cache = Cache(judge.cache, run, say)
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._asked: dict[str, _Job] = {}
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._not_before = 0.0  # a server that asks to wait means all threads
        self._told = False
        self._lines = [Line(endpoint, key) for _ in range(judge.concurrency)]
        self._threads = [
            threading.Thread(target=self._serve, args=(line,), name=f"judge-{k}", daemon=True)
            for k, line in enumerate(self._lines)
        ]
        self._threads.append(threading.Thread(target=self._watch, name="judge-watch", daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "JudgePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, sample: Sample, response: str) -> Future[Graded]:
        """Queues one response for the judged verifier ``sample.verifier``; returns at once.

        Where there is nothing to judge, all components are 0 and nobody is asked; nor is the same asked twice
        at a time. A row that is wrong, a judge that cannot be reached or whose replies cannot be read, and a
        budget that is used up make the response invalid. ValueError if the pool is closed.
        """
        if self._closed.is_set():
            raise ValueError("the judge's pool is closed; submit inside its context")
        future: Future[Graded] = Future()
        future.set_running_or_notify_cancel()
        try:
            if sample.verifier not in JUDGED:
                raise ValueError(f"{sample.verifier!r} is not judged; there are {', '.join(JUDGED)}")
            messages = JUDGED[sample.verifier].request(sample, response)
        except ValueError as error:
            future.set_result(Graded({}, False, f"sample {sample.id}: ValueError: {error}"[:500]))
            return future
        if messages is None:
            self._count(unasked=1)
            future.set_result(Graded(dict.fromkeys(JUDGED[sample.verifier].components, 0.0)))
            return future
        self._queue(_Job(self._name(messages), messages), sample, future)
        return future

    def _queue(self, job: _Job, sample: Sample, future: Future[Graded]) -> None:
        with self._lock:
            if self._closed.is_set():
                future.set_result(_failed(sample, _CLOSED))
                return
            known = self._asked.setdefault(job.key, job)
            known.waiting.append((sample, future))
            if known is job:
                self._jobs.put(job)
            else:
                self._counts.shared += 1

    def stats(self) -> dict[str, float]:
        """Since the pool was opened: ``requests`` (retries included), ``retries``, ``failed`` gradings,
        ``tokens``, mean ``seconds`` of a request; questions that were ``cached``, gradings that ``shared``
        one under way or were ``unasked``; and ``spent``, the requests of the run against its budget.
        """
        with self._lock:
            counts = dict(vars(self._counts))
        counts["seconds"] /= max(counts["requests"], 1)
        return {
            **{name: float(value) for name, value in counts.items()},
            "spent": float(self._cache.spent()[0]),
        }

    def close(self) -> None:
        """Ends requests under way. What was not graded yet becomes invalid."""
        with self._lock:
            self._closed.set()
            left, self._asked = list(self._asked.values()), {}
        for line in self._lines:
            line.cut()
            self._jobs.put(None)
        for job in left:
            for sample, future in job.waiting:
                future.set_result(_failed(sample, _CLOSED))
        end = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._cache.close()

    def _watch(self) -> None:
        while not self._closed.wait(_WATCH_S):
            for line in self._lines:
                line.expire(time.monotonic())

    def _serve(self, line: Line) -> None:
        """One thread: answers a job at a time for all who wait for it."""
        while (job := self._jobs.get()) is not None:
            reason, components = "", None
            try:
                components = self._components(job, line)
            except Fault as fault:
                reason = str(fault)
            except Exception as error:  # of any kind: whoever waits must hear of it
                reason = f"{type(error).__name__} in the judge's client"
            with self._lock:
                waiting = job.waiting if self._asked.pop(job.key, None) else []
                self._counts.failed += len(waiting) if components is None else 0
            for sample, future in waiting:
                whole = None if components is None else Graded(dict(components))
                future.set_result(whole or _failed(sample, reason))
        line.close()

    def _components(self, job: _Job, line: Line) -> dict[str, float]:
        """What a reply that can be read says. Raises `Fault` with the last reason why there is none."""
        sample = job.waiting[0][0]
        read = JUDGED[sample.verifier].verdict
        known = self._cache.get(job.key)
        components = None if known is None else read(sample, known)
        if components is not None:
            self._count(cached=1)
            return components
        messages, last, wait = job.messages, Fault("", again=True), 0.0
        for attempt in range(self._judge.retries + 1):
            self._pause(wait)
            self._spend()
            self._count(retries=int(attempt > 0))
            try:
                reply = self._ask(messages, line)
            except Fault as fault:
                if not fault.again:
                    raise
                last, wait = fault, self._wait(job.key, attempt, fault)
                continue
            components = read(sample, reply)
            if components is not None:
                self._cache.put(job.key, reply)
                return components
            last, wait = Fault(f"its reply cannot be read: {line.hidden(reply)[:80]!r}", again=True), 0.0
            if reply.strip():  # at temperature 0, the same question would have the same reply
                said: Message = {"role": "assistant", "content": reply[:2000]}
                messages = [*job.messages, said, {"role": "user", "content": REMINDER}]
        raise last

    def _ask(self, messages: list[Message], line: Line) -> str:
        """The text of one reply. Raises `Fault` if there is none."""
        start, tokens = time.monotonic(), 0
        try:
            answer = line.post(_body(self._judge, messages), self._judge.timeout_seconds)
            text, tokens, cut = completion_of(answer)
            if cut:
                limit = self._judge.max_tokens
                raise Fault(f"its reply is cut off by config.reward.judge.max_tokens={limit}", again=False)
            return text
        finally:
            self._count(requests=1, tokens=tokens, seconds=time.monotonic() - start)
            if tokens:
                self._cache.add_tokens(tokens)

    def _spend(self) -> None:
        """Count a request against the budget of the run. Raises `Fault` if none is left."""
        if self._cache.spend(self._judge.max_requests):
            return
        reason = f"the judge's budget of {self._judge.max_requests} requests is used up"
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._say(
                f"{reason}: what it has not replied to before is invalid from now on; raise"
                " config.reward.judge.max_requests and resume the run"
            )
        raise Fault(reason, again=False)

    def _pause(self, wait: float) -> None:
        """Wait before a retry, and as long as the server asks any thread to. Raises `Fault` on closing."""
        now = time.monotonic()
        until = max(now + wait, self._not_before)
        if self._closed.wait(max(0.0, until - now)):
            raise Fault(_CLOSED, again=False)

    def _wait(self, key: str, attempt: int, fault: Fault) -> float:
        """Seconds before the next attempt: what the server asks for; without that twice as long each time,
        and shortened by chance, so that those who failed together do not come back together.
        """
        if fault.wait:
            self._not_before = max(self._not_before, time.monotonic() + min(fault.wait, LONGEST_WAIT_S))
        chance = random.Random(f"{self._seed}:{key}:{attempt}").uniform(0.5, 1.0)
        return max(fault.wait, min(MOST_WAIT_S, FIRST_WAIT_S * 2**attempt) * chance)

    def _name(self, messages: list[Message]) -> str:
        """The key of a question: all of it that decides the reply, but not where the server is."""
        return hashlib.sha256(_body(self._judge, messages)).hexdigest()

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self._counts, name, getattr(self._counts, name) + value)


def _body(judge: Judge, messages: Sequence[Message]) -> bytes:
    settings = {"model": judge.model, "temperature": 0, "max_tokens": judge.max_tokens}
    return json.dumps({**settings, "messages": messages}, sort_keys=True).encode()


def _failed(sample: Sample, reason: str) -> Graded:
    return Graded({}, False, f"sample {sample.id}: verifier {sample.verifier!r}: {reason}"[:500])


def _sensible(judge: Judge) -> Judge:
    """The settings. Raises ValueError for the first that cannot work."""
    wrong = {
        "endpoint is empty: give the URL of an OpenAI-compatible server": not judge.endpoint,
        "model is empty: name one that the server has": not judge.model,
        f"concurrency={judge.concurrency} should be 1 or more": judge.concurrency < 1,
        f"timeout_seconds={judge.timeout_seconds} should be more than 0": not judge.timeout_seconds > 0,
        f"retries={judge.retries} should be 0 or more": judge.retries < 0,
        f"max_requests={judge.max_requests} should be 0 (any number) or more": judge.max_requests < 0,
        f"max_tokens={judge.max_tokens} should be 1 or more": judge.max_tokens < 1,
    }
    for problem, holds in wrong.items():
        if holds:
            raise ValueError(f"config.reward.judge.{problem}")
    return judge


def _key_of(judge: Judge) -> str:
    """The API key. Raises ValueError, which never has it, if there is none or it cannot be sent."""
    if not judge.key_variable:
        return ""
    key = os.environ.get(judge.key_variable, "").strip()
    if not key or not (key.isascii() and key.isprintable()) or " " in key:
        problem = "holds characters that no key has" if key else "is not set"
        raise ValueError(
            f"the environment variable {judge.key_variable!r} (config.reward.judge.key_variable) {problem};"
            " export the judge's API key in it"
        )
    return key
