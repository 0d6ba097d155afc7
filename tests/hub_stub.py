"""A Hugging Face hub with one repository, over HTTP on localhost: the requests that huggingface_hub makes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStub:
    """Serves `files` as the repository `repo`, and records each request as (method, path, Authorization header)."""

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.stated_sizes: dict[str, int] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub._answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def downloads(self, name: str) -> int:
        """How often the file was sent."""
        return sum(method == "GET" and path.endswith(f"/resolve/{COMMIT}/{name}") for method, path, _ in self.requests)

    @contextmanager
    def running(self) -> Iterator[HubStub]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        self.requests.append((request.command, path, request.headers.get("Authorization")))
        api, files = f"/api/models/{self.repo}", f"/{self.repo}/resolve/{COMMIT}/"
        sizes = {name: self.stated_sizes.get(name, len(content)) for name, content in self.files.items()}
        if path == f"{api}/tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            _send(request, json.dumps(tree).encode())
        elif path in (api, f"{api}/revision/main", f"{api}/revision/v1", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            _send(request, json.dumps({"id": self.repo, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"{api}/revision/"):
            _send(request, b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(files) and (name := path.removeprefix(files)) in self.files:
            etag = hashlib.sha256(self.files[name]).hexdigest()
            _send(request, self.files[name], headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            _send(request, b"{}", 404, {"X-Error-Code": "RepoNotFound"})


def _send(
    request: BaseHTTPRequestHandler, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)
