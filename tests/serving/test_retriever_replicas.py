"""Two replicas of the retriever on real Ray, beside the one that writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from running_server import Server, start_server

NUM_WRITES, NUM_SEARCHES = 10, 6
DOCUMENTS = "/v1/collections/default/documents"


def replicas(server: Server, deployment: str) -> list[psutil.Process]:
    found = []
    for process in server.processes():
        try:
            if any(f"ServeReplica:switchyard:{deployment}" in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def ready(server: Server) -> dict:
    return httpx.get(f"{server.url}/readyz", timeout=60).json()["components"]["retriever"]


def eventually(holds: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def write(server: Server, number: int) -> httpx.Response:
    body = f"# Page {number}\n\nsaying{number} of page {number}\n"
    return httpx.put(
        f"{server.url}{DOCUMENTS}/page", content=body, headers={"content-type": "text/markdown"}, timeout=60
    )


def search(server: Server, text: str, version: int = 0) -> httpx.Response:
    body = {"query": text, "collection": "default", "min_version": version, "mode": "lexical"}
    return httpx.post(f"{server.url}/v1/search", json=body, timeout=60)


def check_found(server: Server, number: int, version: int) -> None:
    """Each of several searches, which Ray spreads over the replicas, finds what was written."""
    for _ in range(NUM_SEARCHES):
        found = search(server, f"saying{number}", version)
        assert found.status_code == 200, found.text
        assert f"saying{number} " in found.text


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_two_retriever_replicas_see_each_acknowledged_write_and_search_on_through_kills(tmp_path: Path, tiny_models):
    server = start_server(tmp_path, *tiny_models, "--set", "retriever.num_replicas=2", "--set", "generator.threads=1")
    try:
        assert (len(replicas(server, "Retriever")), len(replicas(server, "Writer"))) == (2, 1)
        status = ready(server)
        assert (status["replicas"], status["num_replicas"]) == (2, 2)
        assert status["writer"] == {"ready": True, "versions": 0}
        assert [own["versions_behind"] for own in status["each"]] == [0, 0]
        assert len({own["replica"] for own in status["each"]}) == 2
        for number in range(NUM_WRITES):
            written = write(server, number)
            assert written.status_code == 200, written.text
            check_found(server, number, written.json()["version"])
        version = written.json()["version"]
        ahead = search(server, "page", version + 9)
        assert ahead.status_code == 400 and f"which is at version {version}" in ahead.text

        victim = replicas(server, "Retriever")[0]
        victim.kill()
        check_found(server, NUM_WRITES - 1, version)
        written = write(server, 100)
        check_found(server, 100, written.json()["version"])
        # Its successor takes searches only when it has what the others have.
        eventually(lambda: ready(server).get("replicas") == 2)
        check_found(server, 100, written.json()["version"])

        (writer,) = replicas(server, "Writer")
        writer.kill()
        check_found(server, 100, written.json()["version"])
        refused = write(server, 101)
        assert refused.status_code in (200, 503), refused.text
        eventually(lambda: write(server, 102).status_code == 200)
        again = write(server, 103)
        check_found(server, 103, again.json()["version"])
        assert again.json()["version"] > written.json()["version"]
    finally:
        left = server.stop()
    assert not left
