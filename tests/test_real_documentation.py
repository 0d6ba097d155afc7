"""The Fly.io documentation in two versions, through the real encoder: found, followed through a sync, nothing stale."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
from pathlib import Path

import httpx
import pytest
from running_server import SWITCHYARD, Server, start_server

from engine.config import EngineConfig
from engine.errors import ModelSourceError
from engine.models import resolve_model

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY.parent / "shared" / "data"
QUESTIONS = [json.loads(line) for line in (REPOSITORY / "examples/flyio_questions.jsonl").read_text().splitlines()]
MIN_FOUND = 24

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for version in ("v1", "v2"):
        archive = DATA / f"kb_flyio_docs_{version}.tar.gz"
        if not archive.exists():
            pytest.skip(f"the public data set {archive.name} is not beside the repository (../shared/data)")
        folder = tmp_path_factory.mktemp(version)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        folders[version] = folder / f"flyio_docs_{version}" / "docs"
    return folders


@pytest.fixture(scope="module")
def changes(versions) -> list[dict]:
    with gzip.open(DATA / "kb_flyio_docs_changes.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][1:]


@pytest.fixture(scope="module")
def real_server(tmp_path_factory, tiny_models):
    try:
        encoder = EngineConfig().retriever.model
        resolve_model(encoder, kind="encoder")
    except ModelSourceError as error:
        pytest.skip(f"the default encoder cannot be fetched: {error}")
    server = start_server(tmp_path_factory.mktemp("real"), *tiny_models, "--set", f"retriever.model={encoder}")
    yield server
    assert not server.stop()


def ingest(server: Server, folder: Path, *options: str) -> dict:
    command = [SWITCHYARD, "ingest", folder, "--source", "fly", "--json", *options]
    environment = {**os.environ, "SWITCHYARD_URL": server.url}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def documents(server: Server, query: str, k: int) -> list[str]:
    found = httpx.post(f"{server.url}/v1/search", json={"query": query, "k": k}, timeout=60)
    return [hit["document"].removeprefix("fly/") for hit in found.json()["results"][0]]


def num_found(server: Server) -> int:
    return sum(row["pages"][0] in documents(server, row["question"], 5) for row in QUESTIONS)


def test_documentation_is_found_and_followed_through_a_sync(real_server, versions, changes):
    first = ingest(real_server, versions["v1"])
    assert (first["created"], first["failed"]) == (689, 0)
    assert num_found(real_server) >= MIN_FOUND

    second = ingest(real_server, versions["v2"], "--sync")
    counts = {status: sum(row["status"] == status for row in changes) for status in ("same", "modified", "added")}
    renamed = sum(row["status"] == "renamed" for row in changes)
    assert second["unchanged"] == counts["same"]
    assert second["updated"] == counts["modified"]
    assert second["created"] == counts["added"] + renamed
    assert second["embedded"] < second["chunks"], "chunks that did not change are not embedded again"
    assert num_found(real_server) >= MIN_FOUND

    gone = {row["path"] for row in changes if row["status"] == "deleted"}
    gone |= {row["old_path"] for row in changes if row["status"] == "renamed"}
    assert len(gone) == 50
    for path in sorted(gone):
        text = (versions["v1"] / path).read_text(encoding="utf-8")
        assert not gone & set(documents(real_server, text[:600], 20))

    added = sorted(row["path"] for row in changes if row["status"] == "added")
    for path in added:
        page = httpx.get(f"{real_server.url}/v1/collections/default/documents/fly/{path}", timeout=60).json()
        assert path in documents(real_server, f"{page['title']} {page['text'][:200]}", 5)

    third = ingest(real_server, versions["v2"], "--sync")
    assert (third["unchanged"], third["embedded"], third["version"]) == (719, 0, second["version"])
