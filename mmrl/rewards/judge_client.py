"""Judge client: grading by a text model at an OpenAI-compatible endpoint; retries, cache and budget."""

import email.utils
import hashlib
import http.client
import json
import os
import random
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmrl.rewards.judge import JUDGED, REMINDER, Message
from mmrl.rewards.verifier import Graded
from mmrl.sample import Sample

MAX_BYTES = 1 << 20  # of a server's answer
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 30.0  # before the first retry, twice as long before each further one, at most
MAX_RETRY_AFTER_S = 120.0  # longer requests to wait are failures
CONNECT_S = 10.0
CACHE_LOCK_S = 20.0  # for another process that writes to the cache
CLOSE_S = 1.0  # for requests under way to end
_RETRYABLE = (408, 409, 425, 429)
_COUNTS = ("requests", "cached", "shared", "unasked", "retries", "failed", "tokens", "seconds")


@dataclass(frozen=True)
class Judge:
    """The model that judges, and what it may cost."""

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


class RequestError(Exception):
    """Failure of a request. ``status``: of the server's answer, 0 without one."""

    def __init__(self, reason: str, *, retryable: bool = True, wait: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.retryable, self.wait, self.status = retryable, wait, status


def check_judge(judge: Judge) -> None:
    """Ask the judge for a word, so that a run does not begin in vain.

    Raises ValueError naming the key of the config and the fix: a value out of range, no or an unsuitable API
    key, no server at the endpoint, a model that the server does not have. A server that is merely busy
    passes.
    """
    server = ChatServer(judge)
    body = _request_body(judge, [{"role": "user", "content": "Reply with the word ready."}])
    try:
        read_completion(server.post(body))
    except RequestError as error:
        if error.status in (401, 403):
            fix = f"set the variable {judge.key_variable!r} (config.reward.judge.key_variable) to a good key"
        elif error.status:
            fix = "fix config.reward.judge.endpoint or .model"
        else:
            fix = "start the server, or fix config.reward.judge.endpoint"
        if not (error.status and error.retryable):
            raise ValueError(f"the judge {judge.model!r} at {judge.endpoint}: {error}; {fix}") from None
    finally:
        server.close()


class JudgeClient(AbstractContextManager["JudgeClient"]):
    """Threads that have responses graded by a text model; a context manager.

    ``judge``: which model. ``run``: whose budget is spent, among those that share a cache. ``seed``: of the
    jitter of retries. ``say``: called once when the budget is used up. Raises ValueError for settings that
    cannot work; `check_judge` says whether the server is there.
    """

    def __init__(
        self, judge: Judge, *, run: str = "", seed: int = 0, say: Callable[[str], None] = print
    ) -> None:
        self._server = ChatServer(judge)
        self._judge, self._seed, self._say = judge, seed, say
        self._cache = ReplyCache(judge.cache, run, say)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0.0)
        self._under_way: dict[str, Future[dict[str, float]]] = {}
        self._threads = ThreadPoolExecutor(judge.concurrency, "judge")
        self._closed = threading.Event()
        self._not_before = 0.0  # a server that asks to wait means all threads
        self._said_spent = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, sample: Sample, response: str) -> Future[Graded]:
        """Queues one response for the judged verifier ``sample.verifier``; returns at once.

        Where there is nothing to judge, all components are 0 and no request is made; equal questions under
        way share one. A row that is wrong, a judge that cannot be reached or whose replies cannot be read,
        and a budget that is used up make the response invalid. ValueError if the client is closed.
        """
        if self._closed.is_set():
            raise ValueError("the judge's client is closed; submit inside its context")
        graded: Future[Graded] = Future()
        try:
            if sample.verifier not in JUDGED:
                raise ValueError(f"{sample.verifier!r} is not judged; there are {', '.join(JUDGED)}")
            messages = JUDGED[sample.verifier].request(sample, response)
        except ValueError as error:
            graded.set_result(Graded({}, False, f"sample {sample.id}: ValueError: {error}"[:500]))
            return graded
        if messages is None:
            self._count(unasked=1)
            graded.set_result(Graded(dict.fromkeys(JUDGED[sample.verifier].components, 0.0)))
            return graded

        def settle(asked: Future[dict[str, float]]) -> None:
            error = None if asked.cancelled() else asked.exception()
            if not asked.cancelled() and error is None:
                graded.set_result(Graded(dict(asked.result())))
                return
            self._count(failed=1)
            reason = "the pool was closed before this was graded" if self._closed.is_set() else str(error)
            reason = f"sample {sample.id}: verifier {sample.verifier!r}: {reason}"
            graded.set_result(Graded({}, False, reason[:500]))

        # The key of a question: all of it that decides the reply, but not where the server is.
        key = hashlib.sha256(_request_body(self._judge, messages)).hexdigest()
        with self._lock:
            asked = self._under_way.get(key)
            self._counts["shared"] += asked is not None
            if asked is None:
                asked = self._threads.submit(self._grade, key, messages, sample)
                self._under_way[key] = asked
        asked.add_done_callback(settle)
        return graded

    def stats(self) -> dict[str, float]:
        """Counts since the client was opened: ``requests`` (retries included), ``retries``, ``failed``
        gradings, ``tokens``, mean ``seconds`` of a request; questions that were ``cached``, gradings that
        ``shared`` one under way or were ``unasked``; ``spent``, requests of the run against its budget.
        """
        with self._lock:
            counts = dict(self._counts)
        counts["seconds"] /= max(counts["requests"], 1.0)
        return {**counts, "spent": float(self._cache.spent)}

    def close(self) -> None:
        """Ends requests under way. What was not graded yet becomes invalid."""
        self._closed.set()
        self._server.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        running = [future for future in self._under_way.values() if not future.cancelled()]
        self._threads.shutdown(wait=not wait(running, CLOSE_S).not_done)
        self._cache.close()

    def _grade(self, key: str, messages: list[Message], sample: Sample) -> dict[str, float]:
        """Components of the cached reply, or of a new one. Raises `RequestError` with the last reason."""
        read = JUDGED[sample.verifier].verdict
        try:
            cached = self._cache.get(key)
            components = None if cached is None else read(sample, cached)
            if components is not None:
                self._count(cached=1)
                return components
            question, error, pause = messages, RequestError(""), 0.0
            for attempt in range(self._judge.retries + 1):
                self._pause(pause)
                self._spend()
                self._count(retries=attempt > 0)
                try:
                    reply = self._ask(question)
                except RequestError as failed:
                    if not failed.retryable:
                        raise
                    error, pause = failed, self._wait_before_retry(key, attempt, failed.wait)
                    continue
                components = read(sample, reply)
                if components is not None:
                    self._cache.put(key, reply)
                    return components
                shown = self._server.redact(reply)[:80]
                error, pause = RequestError(f"its reply cannot be read: {shown!r}"), 0.0
                if reply.strip():  # at temperature 0, the same question would have the same reply
                    turn: Message = {"role": "assistant", "content": reply[:2000]}
                    question = [*messages, turn, {"role": "user", "content": REMINDER}]
            raise error
        finally:
            with self._lock:
                self._under_way.pop(key, None)

    def _ask(self, messages: list[Message]) -> str:
        """The text of one reply. Raises `RequestError` if there is none."""
        start, tokens = time.monotonic(), 0
        try:
            text, tokens, truncated = read_completion(self._server.post(_request_body(self._judge, messages)))
        finally:
            self._count(requests=1, tokens=tokens, seconds=time.monotonic() - start)
        if truncated:
            limit = f"config.reward.judge.max_tokens={self._judge.max_tokens}"
            raise RequestError(f"its reply is cut off by {limit}", retryable=False)
        return text

    def _spend(self) -> None:
        """Count a request against the budget of the run. Raises `RequestError` if none is left."""
        with self._lock:
            if self._cache.spend(self._judge.max_requests):
                return
            first, self._said_spent = not self._said_spent, True
        reason = f"the judge's budget of {self._judge.max_requests} requests is used up"
        if first:
            self._say(
                f"{reason}: what it has not replied to before is invalid from now on; raise"
                " config.reward.judge.max_requests and resume the run"
            )
        raise RequestError(reason, retryable=False)

    def _pause(self, seconds: float) -> None:
        """Wait before a retry, and as long as the server asks any thread to. Raises on closing."""
        until = max(time.monotonic() + seconds, self._not_before)
        if self._closed.wait(max(0.0, until - time.monotonic())):
            raise RequestError("the pool was closed", retryable=False)

    def _wait_before_retry(self, key: str, attempt: int, asked: float) -> float:
        """Seconds before the next attempt: what the server asks for, or exponential backoff with jitter."""
        if asked:
            self._not_before = max(self._not_before, time.monotonic() + asked)
        jitter = random.Random(f"{self._seed}:{key}:{attempt}").uniform(0.5, 1.0)
        return max(asked, min(MAX_WAIT_S, FIRST_WAIT_S * 2**attempt) * jitter)

    def _count(self, **counts: float) -> None:
        with self._lock:
            for name, value in counts.items():
                self._counts[name] += value


def _request_body(judge: Judge, messages: Sequence[Message]) -> bytes:
    settings = {"model": judge.model, "temperature": 0, "max_tokens": judge.max_tokens}
    return json.dumps({**settings, "messages": messages}, sort_keys=True).encode()


class ChatServer:
    """Chat-completions endpoint, over connections that are kept open; any thread may post.

    Raises ValueError naming the key of the config, without secrets, for settings that cannot work.
    """

    def __init__(self, judge: Judge) -> None:
        _check_settings(judge)
        self._key, self._timeout_s = _read_key(judge.key_variable), judge.timeout_seconds
        url = urlsplit(judge.endpoint)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self.connect = lambda: kind(url.hostname or "", url.port, timeout=CONNECT_S)
        self.path = url.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._closed = False

    def post(self, body: bytes) -> bytes:
        """The server's answer to a chat completion, bounded in time and size. Raises `RequestError`."""
        end = time.monotonic() + self._timeout_s
        try:
            kept = None
            with suppress(IndexError):
                kept = self._idle.pop()
            if kept is not None:
                try:
                    return self._exchange(kept, body, end)
                except ConnectionError:  # a server may close, at any time, what was kept open
                    if time.monotonic() > end:
                        raise
            return self._exchange(self.connect(), body, end)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > end:
                raise RequestError(f"there was no reply within {self._timeout_s:g} s") from error
            reason = self.redact(f"{type(error).__name__}: {error}")[:300]
            raise RequestError(f"the server cannot be reached: {reason}") from error

    def redact(self, text: str) -> str:
        """``text`` without the key, which a server may repeat."""
        return text.replace(self._key, "***") if self._key else text

    def close(self) -> None:
        """Ends requests under way, from any thread; no other will be made."""
        self._closed = True
        for connection in list(self._busy):
            _abort(connection)
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, connection: http.client.HTTPConnection, body: bytes, end: float) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        seconds = max(end - time.monotonic(), 0.001)
        timer = threading.Timer(seconds, _abort, (connection,))  # a server that drips has no socket timeout
        reusable = False
        self._busy.add(connection)
        timer.start()
        try:
            if connection.sock is None:
                connection.timeout = min(seconds, CONNECT_S)
                connection.connect()
            connection.sock.settimeout(seconds)
            if self._closed:
                raise ConnectionAbortedError("the pool was closed")
            connection.request("POST", self.path, body, headers)
            response = connection.getresponse()
            answer = response.read(MAX_BYTES + 1)
            reusable = response.isclosed() and not response.will_close and not self._closed
        finally:
            timer.cancel()
            self._busy.discard(connection)
            if reusable:
                self._idle.append(connection)
            else:
                connection.close()
        if response.status != 200:
            raise self._refusal(response, answer)
        if len(answer) > MAX_BYTES:
            raise RequestError(f"the reply has over {MAX_BYTES} bytes")
        return answer

    def _refusal(self, response: http.client.HTTPResponse, answer: bytes) -> RequestError:
        status = response.status
        said = self.redact(_error_message(answer) or response.reason)
        reason = f"the server answers {status}: " + "".join(c if c.isprintable() else " " for c in said)[:300]
        seconds = read_retry_after(response.headers.get("Retry-After", ""), time.time())
        retryable = status in _RETRYABLE or status >= 500
        if seconds > MAX_RETRY_AFTER_S:
            reason, retryable = f"{reason}; it asks to wait for {seconds:.0f} s", False
        return RequestError(reason, retryable=retryable, wait=seconds, status=status)


def _abort(connection: http.client.HTTPConnection) -> None:
    # Not the method of an SSL socket, which would change what the waiting thread is about to use.
    with suppress(OSError, AttributeError, TypeError):
        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def read_retry_after(header: str, now: float) -> float:
    """Seconds that a header ``Retry-After`` asks for, in either of its forms; 0 if it is neither."""
    text = header.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def read_completion(answer: bytes) -> tuple[str, int, bool]:
    """The text of a chat completion, its tokens (0 if they are not stated), and whether it was cut off."""
    try:
        body = json.loads(answer)
        choice = body["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError("the answer is not the JSON of a chat completion") from error
    usage = body.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else 0
    count = tokens if type(tokens) is int and 0 <= tokens < 1 << 40 else 0
    return text if isinstance(text, str) else "", count, finish == "length"


def _error_message(answer: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        body = json.loads(answer)
        inner = body.get("error", body)
        return str(inner["message"] if isinstance(inner, dict) else inner)
    return answer.decode("utf-8", "replace")


def _check_settings(judge: Judge) -> None:
    wanted = "should be like http://localhost:8000/v1"
    try:
        url = urlsplit(judge.endpoint)
        _ = url.port
    except ValueError:
        raise ValueError(f"config.reward.judge.endpoint {wanted}; its port is none") from None
    key_inside = url.username is not None or bool(url.query) or bool(url.fragment)
    problems = {
        "endpoint is empty: give the URL of an OpenAI-compatible server": not judge.endpoint,
        f"endpoint {wanted}; a key goes into an environment variable, named by key_variable": key_inside,
        f"endpoint {wanted}; it is {judge.endpoint[:80]!r}": (
            url.scheme not in ("http", "https") or not url.hostname
        ),
        "model is empty: name one that the server has": not judge.model,
        f"concurrency={judge.concurrency} should be 1 or more": judge.concurrency < 1,
        f"timeout_seconds={judge.timeout_seconds} should be more than 0": not judge.timeout_seconds > 0,
        f"retries={judge.retries} should be 0 or more": judge.retries < 0,
        f"max_requests={judge.max_requests} should be 0 (any number) or more": judge.max_requests < 0,
        f"max_tokens={judge.max_tokens} should be 1 or more": judge.max_tokens < 1,
    }
    for problem, holds in problems.items():
        if holds:
            raise ValueError(f"config.reward.judge.{problem}")


def _read_key(variable: str) -> str:
    """The API key. Raises ValueError, which never has it, if there is none or it cannot be sent."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and (not key or not (key.isascii() and key.isprintable()) or " " in key):
        problem = "holds characters that no key has" if key else "is not set"
        raise ValueError(
            f"the environment variable {variable!r} (config.reward.judge.key_variable) {problem};"
            " export the judge's API key in it"
        )
    return key


class ReplyCache(AbstractContextManager["ReplyCache"]):
    """Replies by key, and the number of requests of a run, in one sqlite3 file; any threads may share it.

    ``path``: of the file, made if need be; "" keeps all in memory. ``run``: whose requests are counted.
    Grading never fails by it: a file that is damaged is set aside, which ``say`` reports, and one that cannot
    be used for a while costs replies alone. Raises ValueError if the file cannot be opened.
    """

    def __init__(self, path: str, run: str = "", say: Callable[[str], None] = print) -> None:
        self._run, self._lock = run, threading.Lock()
        self._uncounted = 0  # requests that the file does not know of yet
        try:
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._open(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise ValueError(
                f"the judge's cache {path} cannot be opened: {error}; name another file"
            ) from error
        except sqlite3.DatabaseError as error:
            aside = f"{path}.damaged-{time.time_ns()}"
            for ending in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.replace(path + ending, aside + ending)
            say(f"the judge's cache {path} is damaged ({error}): it is kept as {aside}, and a new one begun")
            self._open(path)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: str) -> None:
        connection = sqlite3.connect(
            path or ":memory:", timeout=CACHE_LOCK_S, isolation_level=None, check_same_thread=False
        )
        try:
            with suppress(sqlite3.OperationalError):  # another process is about to do the same
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("pages are damaged")
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key PRIMARY KEY, reply)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS budget (run PRIMARY KEY, requests INTEGER NOT NULL)"
            )
            rows = connection.execute("SELECT requests FROM budget WHERE run = ?", (self._run,)).fetchall()
        except sqlite3.Error:
            connection.close()
            raise
        self._connection, self.spent = connection, int(rows[0][0]) if rows else 0

    def get(self, key: str) -> str | None:
        """The reply of that key, if there is one."""
        rows = self._execute("SELECT reply FROM replies WHERE key = ?", key)
        return rows[0][0] if rows and isinstance(rows[0][0], str) else None

    def put(self, key: str, reply: str) -> None:
        """Keep a reply."""
        self._execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, reply)

    def spend(self, most: int) -> bool:
        """Count one more request of the run, unless that would be more than ``most``; 0: any number.

        Processes that share the file share the count. What cannot be written is counted with a later request.
        """
        if most and self.spent >= most:
            return False
        more = self._uncounted + 1
        counted = self._execute(
            "INSERT INTO budget VALUES (?1, ?2) ON CONFLICT (run) DO UPDATE SET requests = requests + ?2"
            " WHERE ?3 = 0 OR requests + ?2 <= ?3 RETURNING requests",
            *(self._run, more, most),
        )
        if counted:
            self.spent, self._uncounted = max(self.spent, int(counted[0][0])), 0
            return True
        for (requests,) in self._execute("SELECT requests FROM budget WHERE run = ?", self._run):
            if most and int(requests) + more > most:  # others have spent the rest
                self.spent = max(self.spent, int(requests) + self._uncounted)
                return False
        self.spent, self._uncounted = self.spent + 1, more
        return True

    def close(self) -> None:
        """Close the file; what is asked of the cache afterwards is nothing."""
        with self._lock:
            self._connection.close()

    def _execute(self, statement: str, *values: str | int) -> list[tuple[Any]]:
        with self._lock, suppress(sqlite3.Error):  # locked for long, damaged, closed, or the disk is full
            return self._connection.execute(statement, values).fetchall()
        return []
