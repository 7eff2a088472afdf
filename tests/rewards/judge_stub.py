"""A judge that is no model: an OpenAI-compatible server on this machine, for tests and for dry runs.

``python tests/rewards/judge_stub.py --port=8000``, and ``config.reward.judge.endpoint`` is
``http://localhost:8000/v1``. An answer is right if it is the reference answer, and a statement holds if it
stands in the response.
"""

import argparse
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

MARKED = re.compile(r"^=== (\w+) ===\n(.*?)\n=== \1 ===$", re.DOTALL | re.MULTILINE)


def verdict(messages: Sequence[dict[str, str]]) -> str:
    """The reply of the rule to what `mmrl.rewards.judge` asks."""
    if len(messages) == 1:  # `mmrl.rewards.judge_client.check_judge`
        return "ready"
    asked = messages[1]["content"]
    response = MARKED.search(asked)[2]
    known = MARKED.sub("", asked)
    statements = re.search(r"^Statements:\n(.*?)\n\n", known, re.DOTALL | re.MULTILINE)
    if statements:
        lines = [line.partition(". ") for line in statements[1].splitlines()]
        return json.dumps({number: "yes" if text in response else "no" for number, _, text in lines})
    reference = re.search(r"^Reference answer:\n(.*?)\n\n", known, re.DOTALL | re.MULTILINE)[1]
    return json.dumps({"score": int(reference == response)})


@dataclass
class Stub:
    """A server on a free port (or ``port``); a context manager.

    ``faults``: what goes wrong with the first requests, in order; "" is nothing. ``rule``: the reply to
    messages. ``seconds``: that each takes.
    """

    faults: list[str] = field(default_factory=list)
    rule: Callable[[Sequence[dict[str, str]]], str] = verdict
    seconds: float = 0.0
    port: int = 0
    seen: list[dict] = field(default_factory=list)  # bodies of the requests
    times: list[float] = field(default_factory=list)  # when they came
    keys: list[str | None] = field(default_factory=list)
    busiest: int = 0  # requests at once

    def __enter__(self) -> "Stub":
        self.lock, self.over, self.busy = threading.Lock(), threading.Event(), 0
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.server.daemon_threads, self.server.block_on_close = True, False
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        """The URL for `Judge.endpoint`."""
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def completion(text: str, finish: str = "stop") -> bytes:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"total_tokens": 100}}).encode()


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # else each header is a packet

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                stub.seen.append(body)
                stub.times.append(time.monotonic())
                stub.keys.append(self.headers["Authorization"])
                fault = stub.faults.pop(0) if stub.faults else ""
                stub.busy += 1
                stub.busiest = max(stub.busiest, stub.busy)
            try:
                stub.over.wait(stub.seconds)
                with suppress(OSError):  # the client has gone
                    self.answer(body["messages"], fault)
            finally:
                with stub.lock:
                    stub.busy -= 1

        def answer(self, messages: Sequence[dict[str, str]], fault: str) -> None:
            kind, _, detail = fault.partition(" ")
            if kind == "status":  # "status 429 Retry-After: 1"
                status, _, header = detail.partition(" ")
                name, _, value = header.partition(": ")
                error = f"no luck, {self.headers['Authorization']}"
                self.send(int(status), json.dumps({"error": {"message": error}}).encode(), {name: value})
            elif kind == "say":
                self.send(200, completion(detail))
            elif kind == "raw":
                self.send(200, detail.encode())
            elif kind == "cut":
                self.send(200, completion(stub.rule(messages), "length"))
            elif kind == "half":  # the connection breaks in the middle
                whole = completion(stub.rule(messages))
                self.send(200, whole[: len(whole) // 2], {"Content-Length": str(len(whole))})
                self.close_connection = True
            elif kind == "huge":
                self.send(200, b"", {"Content-Length": str(1 << 40)})
                while not stub.over.is_set():
                    self.wfile.write(b" " * 65536)
            elif kind == "drop":
                self.close_connection = True
            elif kind == "slow":
                stub.over.wait(0.5)
                self.send(200, completion(stub.rule(messages)))
            elif kind == "hang":
                stub.over.wait()
            elif kind == "drip":
                self.send(200, b"", {"Content-Length": "1000"})
                while not stub.over.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            elif kind == "drip_headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                while not stub.over.wait(0.05):
                    self.wfile.write(b"x")
                    self.wfile.flush()
            else:
                self.send(200, completion(stub.rule(messages)))

        def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                if name:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    with Stub(port=parser.parse_args().port) as running:
        print(f"a stub of a judge is at {running.endpoint}", flush=True)
        threading.Event().wait()
