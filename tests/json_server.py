"""A reply in Python in place of a server: without a network, or behind a real port.

A reply takes method, path (percent-encoded, without its query) and JSON body, and gives status and JSON. Raising
httpx.ConnectError, it breaks the connection.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

Reply = Callable[[str, str, dict[str, Any]], tuple[int, dict[str, Any]]]


def transport(reply: Reply) -> httpx.MockTransport:
    """For httpx, without a network."""

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        status, content = reply(request.method, request.url.raw_path.decode().partition("?")[0], body)
        return httpx.Response(status, json=content)

    return httpx.MockTransport(handle)


@contextmanager
def listening(reply: Reply) -> Iterator[str]:
    """The URL at which it answers, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else {}
            try:
                status, content = reply(self.command, self.path.partition("?")[0], body)
            except httpx.ConnectError:
                self.close_connection = True
                return
            written = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # A client that keeps its connection open must not keep the test waiting.
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
