"""One request to an OpenAI-compatible server, by the standard library: bounded in time and size."""

import email.utils
import http.client
import json
import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

MAX_BYTES = 1 << 20  # of a reply
LONGEST_WAIT_S = 120.0  # that a server may ask for before it is asked again
_TRY_AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, of a URL such as ``http://localhost:8000/v1``."""

    secure: bool
    host: str
    port: int | None
    path: str


class Fault(Exception):
    """Why there is no reply. ``again``: asking again may help, ``wait`` seconds later if the server says so.

    ``status``: of the server's answer; 0 if it gave none.
    """

    def __init__(self, reason: str, *, again: bool, wait: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.again, self.wait, self.status = again, wait, status


def endpoint_of(url: str) -> Endpoint:
    """The parts of an endpoint. Raises ValueError, without the URL's secrets, if it is none."""
    wanted = "config.reward.judge.endpoint should be like http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{wanted}; its port is none") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{wanted}; it is {url[:80]!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{wanted}; a key goes into an environment variable, named by key_variable")
    return Endpoint(
        parts.scheme == "https",
        parts.hostname,
        port,
        parts.path.rstrip("/").removesuffix("/chat/completions"),
    )


class Line:
    """A connection to a server, kept open between requests. One thread asks; any may end its waiting."""

    def __init__(self, endpoint: Endpoint, key: str) -> None:
        self._endpoint, self._key = endpoint, key
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._deadline: float | None = None
        self._cut = False

    def post(self, body: bytes, seconds: float) -> bytes:
        """The body of the server's answer to a chat completion. Raises `Fault`."""
        kept = self._connection is not None
        self._deadline = time.monotonic() + seconds
        try:
            try:
                return self._exchange(body, seconds)
            except ConnectionError:  # a server may close, at any time, what was kept open
                if not kept or self._late() or self._cut:
                    raise
                self.close()
                return self._exchange(body, seconds)
        except Fault:
            raise
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if self._late() or isinstance(error, TimeoutError):
                raise Fault(f"there was no reply within {seconds:g} s", again=True) from error
            reason = self.hidden(f"{type(error).__name__}: {error}")[:300]
            raise Fault(f"the server cannot be reached: {reason}", again=True) from error
        finally:
            self._deadline = None

    def expire(self, now: float) -> None:
        """End a request that is past its time; a server that drips would keep it for ever."""
        deadline = self._deadline
        if deadline is not None and now > deadline:
            self._shut()

    def cut(self) -> None:
        """End the request under way; no other will be made."""
        self._cut = True
        self._shut()

    def close(self) -> None:
        """Close the connection; for the thread that asks."""
        connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            with suppress(OSError):
                connection.close()

    def hidden(self, text: str) -> str:
        """``text`` without the key, which a server may repeat."""
        return text.replace(self._key, "***") if self._key else text

    def _exchange(self, body: bytes, seconds: float) -> bytes:
        connection = self._connection or self._connect(seconds)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection.request("POST", f"{self._endpoint.path}/chat/completions", body, headers)
        response = connection.getresponse()
        answer = response.read(MAX_BYTES + 1)
        if len(answer) > MAX_BYTES or response.will_close or not response.isclosed():
            self.close()
        if response.status != 200:
            raise self._refusal(response, answer)
        if len(answer) > MAX_BYTES:
            raise Fault(f"the reply has over {MAX_BYTES} bytes", again=True)
        return answer

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        if self._cut:
            raise ConnectionAbortedError("the pool was closed")
        where = self._endpoint
        if where.secure:
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                where.host, where.port, timeout=seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(where.host, where.port, timeout=seconds)
        connection.connect()
        self._connection, self._socket = connection, connection.sock
        return connection

    def _refusal(self, response: http.client.HTTPResponse, answer: bytes) -> Fault:
        status = response.status
        told = self.hidden(_told(answer) or response.reason)
        reason = f"the server answers {status}: " + "".join(c if c.isprintable() else " " for c in told)[:300]
        wait = seconds_of(response.headers.get("Retry-After", ""), time.time())
        again = status in _TRY_AGAIN or status >= 500
        if wait > LONGEST_WAIT_S:
            reason, again = f"{reason}; it asks to wait for {wait:.0f} s", False
        return Fault(reason, again=again, wait=wait, status=status)

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _shut(self) -> None:
        # Not the method of an SSL socket, which would change what the waiting thread is about to use.
        if self._socket is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def seconds_of(retry_after: str, now: float) -> float:
    """Seconds that a header ``Retry-After`` asks for, in either of its forms; 0 if it is neither."""
    text = retry_after.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


class Completion(NamedTuple):
    """What a model has said."""

    text: str
    tokens: int  # of question and reply; 0 if the server does not say
    cut: bool  # the reply came to its limit of tokens


def completion_of(answer: bytes) -> Completion:
    """The chat completion in the body of an answer.

    Raises `Fault` if it is no chat completion.
    """
    try:
        found = json.loads(answer)
        choice = found["choices"][0]
        text, ended = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Fault("the answer is not the JSON of a chat completion", again=True) from error
    usage = found.get("usage")
    tokens: Any = usage.get("total_tokens") if isinstance(usage, dict) else 0
    count = tokens if type(tokens) is int and 0 <= tokens < 1 << 40 else 0
    return Completion(text if isinstance(text, str) else "", count, ended == "length")


def _told(answer: bytes) -> str:
    """The message of an error."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = json.loads(answer)
        inner = found.get("error", found)
        return str(inner["message"] if isinstance(inner, dict) else inner)
    return answer.decode("utf-8", "replace")
