"""A small server that speaks our HTTP, for load tests: streams, whole answers, searches, and ways to go wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = ("Vol", "umes ", "stay.")
GAP_S = 0.01


@dataclass
class Behaviour:
    """What the stub does with a chat request, and what it was sent."""

    ending: str = "complete"
    pause_s: float = 0.0
    # Nothing is answered before so many requests came: a client that waits for answers waits for ever.
    answer_after: int = 0
    enough: threading.Event = field(default_factory=threading.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)


class Stub(ThreadingHTTPServer):
    daemon_threads = True
    # An open loop may send many at once.
    request_queue_size = 128
    behaviour = Behaviour()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, {"ready": True, "missing": [], "components": {}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        behaviour = self.server.behaviour
        behaviour.bodies.append(body)
        behaviour.connections.add(self.client_address)
        if len(behaviour.bodies) >= behaviour.answer_after:
            behaviour.enough.set()
        behaviour.enough.wait(timeout=30)
        if behaviour.ending == "full":
            self.answer(503, {"error": {"message": "the queue is full"}}, {"Retry-After": "1"})
        elif self.path == "/v1/search":
            self.answer(200, {"results": [[{"chunk": "a"}, {"chunk": "b"}]], "version": 1, "timings_ms": {}})
        elif body["stream"]:
            self.stream(route_of(body), behaviour.ending)
        else:
            usage = {"prompt_tokens": 9, "completion_tokens": len(TOKENS), "total_tokens": 9 + len(TOKENS)}
            self.answer(200, {"choices": [], "usage": usage, "switchyard": {"route": route_of(body)}})

    def answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, route: str, ending: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        outcome = {"route": route, "degraded": False}
        self.send_chunk(
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "switchyard": outcome}
        )
        for token in TOKENS:
            self.send_chunk({"choices": [{"index": 0, "delta": {"content": token}}]})
            time.sleep(self.server.behaviour.pause_s or GAP_S)
        if ending == "cut":
            self.close_connection = True
            return
        if ending == "unfinished":
            self.send_bytes(b"")
            return
        if ending == "error":
            self.send_chunk({"error": {"message": "the generator is unavailable", "code": "component_unavailable"}})
            self.send_bytes(b"")
            return
        self.send_chunk(
            {
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                "switchyard": {**outcome, "citations": []},
            }
        )
        self.send_chunk({"choices": [], "usage": {"completion_tokens": len(TOKENS)}})
        self.send_bytes(b"data: [DONE]\n\n")
        if ending == "abrupt":
            self.close_connection = True
            return
        self.send_bytes(b"")

    def send_chunk(self, body: dict[str, Any]) -> None:
        self.send_bytes(b"data: " + json.dumps(body).encode() + b"\n\n")

    def send_bytes(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def route_of(body: dict[str, Any]) -> str:
    """Half of the questions go each way."""
    return "rag" if len(body["messages"][-1]["content"]) % 2 else "direct"


@contextmanager
def running_stub() -> Iterator[Stub]:
    """The stub behind a port of its own, until the block ends."""
    server = Stub(("127.0.0.1", 0), Handler)
    server.behaviour = Behaviour()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
