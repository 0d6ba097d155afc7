"""A server whose store is PostgreSQL, as its clients see it while the database crashes and comes back."""

from __future__ import annotations

import httpx
import pytest
from running_server import start_server

_TIMEOUT_S = 120
_DOCUMENTS = "/v1/collections/default/documents"


def put(client: httpx.Client, id: str) -> httpx.Response:
    return client.put(f"{_DOCUMENTS}/{id}", json={"text": "volumes of a region"})


def found(client: httpx.Client) -> set[str]:
    answer = client.post("/v1/search", json={"query": "volumes", "k": 9})
    assert answer.status_code == 200, answer.text
    return {hit["document"] for hit in answer.json()["results"][0]}


@pytest.mark.chaos
def test_searches_and_answers_go_on_while_postgres_is_away(crashing, tiny_models, tmp_path):
    environment = {"SWITCHYARD_STORE": crashing.url}
    server = start_server(tmp_path, *tiny_models, environment=environment)
    try:
        with httpx.Client(base_url=server.url, timeout=_TIMEOUT_S) as client:
            assert put(client, "first").status_code == 200
            assert not (server.data / "knowledge.sqlite3").exists()
            crashing.crash()
            assert found(client) == {"first"}
            question = {"model": "auto", "messages": [{"role": "user", "content": "volumes"}], "max_tokens": 2}
            answer = client.post("/v1/chat/completions", json=question)
            assert answer.status_code == 200, answer.text
            refused = put(client, "second")
            assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
            assert f"store postgresql+psycopg://switchyard@127.0.0.1:{crashing.port}/postgres" in refused.text
            crashing.start()
            assert put(client, "second").status_code == 200
            assert found(client) == {"first", "second"}
            shown = refused.text + client.get("/readyz").text + server.log.read_text()
            assert crashing.password not in shown
    finally:
        left = server.stop()
    assert not left
