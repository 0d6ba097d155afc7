"""A sync under a steady search load: no error, versions in order, and never a text that its version does not hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from running_server import Server

from loadtest.retrieval.corpus import bench_questions
from loadtest.retrieval.freshness import Answer, searching, sync
from loadtest.retrieval.versions import write_versions

COLLECTION = "moving"
DOCUMENTS = f"/v1/collections/{COLLECTION}/documents"
# Enough pages that a sync is many writes, and few enough for the tiny encoder.
NUM_PAGES = 200


async def stored(http: httpx.AsyncClient) -> dict[str, dict]:
    """Every document by its id, with the text that offsets count in and the version that wrote it."""
    listed = (await http.get(DOCUMENTS, params={"limit": 1000})).json()
    assert listed["next"] is None
    ids = [row["id"] for row in listed["documents"]]
    return {id: (await http.get(f"{DOCUMENTS}/{quote(id)}")).json() for id in ids}


def passages(answers: Sequence[Answer]) -> list[tuple[int, dict]]:
    return [(answer.version, passage) for answer in answers for passage in answer.passages]


def check_versions(answers: Sequence[Answer]) -> None:
    """An answer is never at an earlier version than one that had arrived before it was asked for."""
    arrived = sorted(answers, key=lambda answer: answer.sent_s + answer.latency_s)
    for answer in answers:
        before = [other.version for other in arrived if other.sent_s + other.latency_s < answer.sent_s]
        assert answer.version >= max(before, default=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_sync_under_search_load_shows_each_version_whole_and_nothing_deleted(server: Server, tmp_path: Path):
    versions = write_versions(tmp_path, NUM_PAGES)
    questions = bench_questions()
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as http:
        first = await sync(server.url, versions.old, collection=COLLECTION)
        old = await stored(http)
        during, report = await searching(
            http, questions, sync(server.url, versions.new, collection=COLLECTION), collection=COLLECTION
        )
        after, _ = await searching(http, questions, asyncio.sleep(2), collection=COLLECTION)
        new = await stored(http)

    assert report["failed"] == 0 and report["deleted"] == len(old.keys() - new.keys()) > 0
    assert report["updated"] > 0 and report["version"] > first["version"]
    assert {answer.version for answer in after} == {report["version"]}
    check_versions([*during, *after])
    assert {answer.version for answer in during} & set(range(first["version"], report["version"])), "load came too late"
    assert all(answer.passages for answer in [*during, *after])

    for version, passage in passages([*during, *after]):
        id = passage["document"]
        is_new = id in new and version >= new[id]["version"]
        assert is_new or version < report["version"] or id in old.keys() & new.keys(), f"{id} is gone at {version}"
        text = (new if is_new else old)[id]["text"]
        assert passage["text"] == text[passage["start"] : passage["end"]], f"{id} at version {version} is another text"


@pytest.mark.slow
async def test_a_deleted_text_is_in_no_answer_once_its_deletion_is_acknowledged(server: Server):
    """Single writes, whose acknowledgements name the version: each is checked against every later answer."""
    collection = "shrinking"
    path = f"/v1/collections/{collection}/documents"
    acknowledged: dict[str, int] = {}

    async def remove_all(http: httpx.AsyncClient) -> None:
        for number in range(40):
            deleted = await http.delete(f"{path}/docs/{number}.md")
            acknowledged[f"docs/{number}.md"] = deleted.raise_for_status().json()["version"]

    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as http:
        for number in range(45):
            text = f"# Page {number}\n\nHow to attach volume {number} to a machine."
            (await http.put(f"{path}/docs/{number}.md", json={"text": text})).raise_for_status()
        questions = [f"attach volume {number}" for number in range(45)]
        answers, _ = await searching(http, questions, remove_all(http), collection=collection)

    assert len(set(acknowledged.values())) == 40
    check_versions(answers)
    seen = {answer.version for answer in answers}
    assert seen & set(acknowledged.values()), "no search ran between the deletions"
    for version, passage in passages(answers):
        assert version < acknowledged.get(passage["document"], version + 1)
