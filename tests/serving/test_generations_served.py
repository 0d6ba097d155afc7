"""Chunk sizes of a collection change while the served application answers: no request fails."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from running_server import Server

COLLECTION = "regenerated"
PATH = f"/v1/collections/{COLLECTION}"
NUM_PAGES = 30


class Load:
    """Searches, writes and questions that go on until they are stopped; every answer is kept."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._is_stopped = False
        self.num_answers = {"search": 0, "write": 0, "chat": 0}
        self.failures: list[str] = []

    async def run(self) -> None:
        await asyncio.gather(self._search(), self._search(), self._write(), self._chat())

    def stop(self) -> None:
        self._is_stopped = True

    async def _post(self, kind: str, path: str, body: dict, method: str = "POST") -> httpx.Response:
        response = await self._http.request(method, path, json=body)
        self.num_answers[kind] += 1
        if response.status_code != 200:
            self.failures.append(f"{kind}: {response.status_code} {response.text[:200]}")
        return response

    async def _search(self) -> None:
        version, number = 0, 0
        while not self._is_stopped:
            number += 1
            mode = ("hybrid", "dense", "lexical")[number % 3]
            body = {"query": f"attach volume {number % NUM_PAGES}", "collection": COLLECTION, "k": 5, "mode": mode}
            found = (await self._post("search", "/v1/search", body | {"min_version": version})).json()
            if not found.get("results", [[]])[0] or found["version"] < version:
                self.failures.append(f"search behind {version}: {found}")
            version = found.get("version", version)

    async def _write(self) -> None:
        number = 0
        while not self._is_stopped:
            number += 1
            body = {"text": page(number % NUM_PAGES, f"edited{number}")}
            written = await self._post("write", f"{PATH}/documents/docs/{number % NUM_PAGES}.md", body, "PUT")
            if written.status_code == 200:
                query = {"query": f"edited{number}", "collection": COLLECTION, "mode": "lexical"}
                query["min_version"] = written.json()["version"]
                found = (await self._post("search", "/v1/search", query)).json()
                if f"edited{number} " not in found["results"][0][0]["text"]:
                    self.failures.append(f"edit {number} is not found: {found}")

    async def _chat(self) -> None:
        while not self._is_stopped:
            body = {
                "model": "auto",
                "messages": [{"role": "user", "content": "How is volume 3 attached?"}],
                "max_tokens": 4,
                "switchyard": {"collection": COLLECTION, "route": "rag"},
            }
            await self._post("chat", "/v1/chat/completions", body)


def page(number: int, saying: str) -> str:
    return f"# Page {number}\n\nHow to attach volume {number} to a machine: {saying} is said. " + "More is said. " * 40


async def ended(http: httpx.AsyncClient, job: dict) -> dict:
    while job["finished_at"] is None:
        await asyncio.sleep(0.2)
        job = (await http.get(f"/v1/jobs/{job['id']}")).raise_for_status().json()
    return job


async def in_place(http: httpx.AsyncClient) -> dict:
    rows = (await http.get(f"{PATH}/generations")).raise_for_status().json()["generations"]
    return next(row for row in rows if row["state"] == "current")


@pytest.mark.timeout(300)
async def test_chunk_sizes_change_and_change_back_under_load_without_a_failed_request(server: Server):
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as http:
        for number in range(NUM_PAGES):
            body = {"text": page(number, "nothing")}
            (await http.put(f"{PATH}/documents/docs/{number}.md", json=body)).raise_for_status()
        chunks = (await http.get(PATH)).json()["chunks"]
        load = Load(http)
        running = asyncio.create_task(load.run())
        try:
            asked = {"chunk_tokens": 24, "chunk_overlap_tokens": 4, "switch": "always"}
            begun = await http.post(f"{PATH}/generations", json=asked)
            assert begun.status_code == 202, begun.text
            built = await ended(http, begun.json())
            assert built["state"] == "done", built
            made = await in_place(http)
            more = (await http.get(PATH)).json()["chunks"]
            back = await ended(http, (await http.post(f"{PATH}/generations/1/use")).json())
            assert back["state"] == "done", back
        finally:
            load.stop()
            await running
        assert (made["generation"], made["chunk_tokens"], (await in_place(http))["generation"]) == (2, 24, 1)
        assert more > chunks == (await http.get(PATH)).json()["chunks"]
        assert load.failures == [] and min(load.num_answers.values()) > 0
        (await http.delete(f"{PATH}/generations/2")).raise_for_status()
