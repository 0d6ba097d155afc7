"""A server that comes back with an empty data folder, beside a PostgreSQL database that kept everything."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from made_router import artefact
from running_server import SWITCHYARD, Server, start_server
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

from engine.routing.artefact import write_artefact
from engine.routing.keys import keys_from_json


def ask(server: Server) -> dict[str, Any]:
    body = {"model": "tone", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "ignore_eos": True}
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json=body | {"switchyard": {"route": "direct"}}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return {"text": found["choices"][0]["message"]["content"], "adapter": found["switchyard"]["versions"]["adapter"]}


def run(*arguments: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(SWITCHYARD), *arguments], env=os.environ | (environment or {}), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def router_of(server: Server) -> str:
    return str(httpx.get(f"{server.url}/readyz", timeout=60).json()["components"]["router"]["name"])


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_server_with_an_empty_disk_serves_the_documents_adapters_and_router_of_postgres(
    postgres, tiny_models, tmp_path: Path
):
    # A database of its own: a schema's options would not survive the URL of every process.
    postgres.execute("CREATE DATABASE empty_disk")
    environment = {"SWITCHYARD_STORE": postgres.url.removesuffix("postgres") + "empty_disk"}
    made = write_tiny_adapter(tmp_path / "made", write_tiny_model(tmp_path / "base"), seed=5)
    servers = []
    try:
        first = start_server(tmp_path / "one", *tiny_models, environment=environment)
        servers.append(first)
        put = httpx.put(
            f"{first.url}/v1/collections/default/documents/a", json={"text": "All about volumes."}, timeout=60
        )
        assert put.status_code == 200, put.text
        # By a client that knows the data folder alone.
        run("adapters", "add", str(made), "--name", "tone", "--data", str(first.data), "--url", first.url)
        keys = httpx.post(f"{first.url}/v1/route", json={"input": "x"}, timeout=60).json()["keys"]
        name = write_artefact(replace(artefact(is_learned=False), keys=keys_from_json(keys)), tmp_path / "router").name
        run("router", "publish", str(tmp_path / "router"), environment=environment)
        before = ask(first)
        assert not first.stop()
        second = start_server(tmp_path / "two", *tiny_models, environment=environment)
        servers.append(second)
        assert ask(second) == before
        assert router_of(second) == name
        found = httpx.post(f"{second.url}/v1/search", json={"query": "volumes"}, timeout=60).json()
        assert [hit["document"] for hit in found["results"][0]] == ["a"]
        assert not second.stop()
    finally:
        for server in servers:
            server.stop()
