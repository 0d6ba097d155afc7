"""Durable writes and their jobs over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json

import httpx
import pytest

from engine.api.app import create_app
from engine.errors import StorageFull

DOCUMENTS = "/v1/collections/default/documents"
BATCH = "/v1/collections/default/documents:batch"


def lines(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def finished(client, job: str, **options) -> dict:
    for _ in range(6000):
        found = (await client.get(f"/v1/jobs/{job}", **options)).json()
        if found["finished_at"] is not None:
            return found
        await asyncio.sleep(0.005)
    raise AssertionError(found)


@pytest.fixture
def paused(backends):
    """The application with a background worker that does nothing."""
    backends.retriever._backlog.notify = lambda: None


async def test_durable_write_answers_202_with_a_job_that_ends_searchable(client):
    response = await client.put(f"{DOCUMENTS}/a.md?wait=durable", json={"text": "# Volumes\n\nVolumes are disks."})
    accepted = response.json()
    assert response.status_code == 202
    assert (accepted["status"], accepted["version"], accepted["chunks"]) == ("accepted", 0, 0)
    done = await finished(client, accepted["job"])
    assert done | {"id": "", "created_at": 0, "started_at": 0, "finished_at": 0} == {
        **{"id": "", "kind": "ingest", "collection": "default", "state": "done", "total": 1, "done": 1, "failed": 0},
        **{"errors": [], "created_at": 0, "started_at": 0, "finished_at": 0, "progress": 1.0, "eta_s": None},
        **{"version": 1, "waiting_for": None},
    }
    body = {"query": "volumes", "min_version": done["version"]}
    assert (await client.post("/v1/search", json=body)).json()["results"][0][0]["document"] == "a.md"
    deleted = await client.delete(f"{DOCUMENTS}/a.md?wait=durable")
    assert (deleted.status_code, deleted.json()["status"], deleted.json()["version"]) == (202, "accepted", 1)
    await finished(client, deleted.json()["job"])
    assert (await client.get(f"{DOCUMENTS}/a.md")).status_code == 404


async def test_durable_raw_file_is_stored_byte_for_byte(client):
    body = "Größe\r\nand more".encode()
    response = await client.put(f"{DOCUMENTS}/a.txt?wait=durable", content=body, headers={"Content-Type": "text/plain"})
    await finished(client, response.json()["job"])
    stored = (await client.get(f"{DOCUMENTS}/a.txt")).json()
    assert stored["content_hash"] == hashlib.sha256(body).hexdigest()


async def test_durable_batch_has_one_job_and_answers_bad_lines_at_once(client):
    rows = [{"id": "a", "text": "x"}, {"id": "", "text": "x"}, {"id": "gone", "delete": True}, {"id": "b"}]
    response = await client.post(f"{BATCH}?wait=durable", content=lines(*rows))
    answer = response.json()
    assert response.status_code == 202
    assert [row["status"] for row in answer["results"]] == ["accepted", "failed", "accepted", "failed"]
    assert [row["job"] for row in answer["results"]] == [answer["job"], None, answer["job"], None]
    done = await finished(client, answer["job"])
    assert (done["total"], done["done"], done["failed"]) == (2, 2, 0)


async def test_durable_batch_of_bad_lines_only_is_no_202_and_has_no_job(client):
    response = await client.post(f"{BATCH}?wait=durable", content=lines({"id": "", "text": "x"}))
    assert (response.status_code, response.json()["job"]) == (200, None)


async def test_writes_are_added_to_a_job_and_failing_documents_are_named_there(client):
    job = (await client.post(f"{BATCH}?wait=durable", content=lines({"id": "a", "text": "x"}))).json()["job"]
    params = {"wait": "durable", "job": job}
    raw = {"content": b"\xff", "headers": {"Content-Type": "text/plain"}}
    added = await client.put(f"{DOCUMENTS}/bad.txt", params=params, **raw)
    assert (added.status_code, added.json()["job"]) == (202, job)
    done = await finished(client, job)
    assert (done["state"], done["total"], done["done"], done["failed"]) == ("done", 2, 1, 1)
    assert done["errors"][0]["item"] == "bad.txt" and "UTF-8" in done["errors"][0]["error"]


@pytest.mark.parametrize(
    ("path", "request_", "status", "code"),
    [
        ("a?wait=durable", {"content": b"x", "headers": {"Content-Type": "image/png"}}, 415, "unsupported_media_type"),
        ("%20?wait=durable", {"json": {"text": "x"}}, 400, "invalid_request"),
        ("a?wait=durable", {"json": {"text": "x", "content_type": "image/png"}}, 415, "unsupported_media_type"),
        ("a?wait=durable&job=0af3", {"json": {"text": "x"}}, 404, "job_not_found"),
        ("a?job=0af3", {"json": {"text": "x"}}, 400, "invalid_request"),
        ("a?wait=later", {"json": {"text": "x"}}, 400, "invalid_request"),
        ("a?wait=later", {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 400, "invalid_request"),
        ("a?wait=durable", {"json": {"text": "x" * 200_000}}, 413, "payload_too_large"),
    ],
)
async def test_plainly_bad_durable_write_is_refused_like_any_other(client, path, request_, status, code):
    response = await client.put(f"{DOCUMENTS}/{path}", **request_)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    assert (await client.get("/v1/jobs")).json() == {"jobs": []}


async def test_unknown_job_is_a_404_that_says_where_to_look(client):
    for method in ("GET", "DELETE"):
        response = await client.request(method, "/v1/jobs/0af3")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found")
        assert "GET /v1/jobs lists the recent ones" in response.json()["error"]["message"]


async def test_jobs_are_listed_newest_first_and_cancelled_while_they_wait(client, paused):
    jobs = [
        (await client.put(f"{DOCUMENTS}/{name}?wait=durable", json={"text": "x"})).json()["job"] for name in ("a", "b")
    ]
    listed = (await client.get("/v1/jobs")).json()["jobs"]
    assert [(job["id"], job["state"]) for job in listed] == [(jobs[1], "queued"), (jobs[0], "queued")]
    assert len((await client.get("/v1/jobs?limit=1")).json()["jobs"]) == 1
    assert (await client.get("/v1/jobs?limit=0")).status_code == 400
    for _ in range(2):
        cancelled = await client.delete(f"/v1/jobs/{jobs[0]}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert (await client.get(f"/v1/jobs/{jobs[1]}")).json()["state"] == "queued"


async def test_full_inbox_is_a_503_that_says_when_to_come_back(client, backends, paused):
    backends.retriever._inbox._max_waiting = 2
    await client.post(f"{BATCH}?wait=durable", content=lines({"id": "a", "text": "x"}, {"id": "b", "text": "x"}))
    refused = await client.put(f"{DOCUMENTS}/c?wait=durable", json={"text": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "5" and "retriever.max_pending_writes" in refused.text
    searchable = await client.put(f"{DOCUMENTS}/a", json={"text": "newer"})
    assert (searchable.status_code, searchable.json()["status"]) == (200, "created")
    assert (await client.put(f"{DOCUMENTS}/c?wait=durable", json={"text": "x"})).status_code == 202


async def test_job_says_what_the_server_waits_for(client, backends, paused):
    job = (await client.put(f"{DOCUMENTS}/a?wait=durable", json={"text": "x"})).json()["job"]
    backends.retriever._backlog.problem = str(StorageFull("data"))
    assert "no space left for data" in (await client.get(f"/v1/jobs/{job}")).json()["waiting_for"]


async def test_tenants_see_no_jobs_of_each_other(backends, config):
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("key-a", "key-b")}
    tenants = {keys["key-a"]: "a", keys["key-b"]: "b"}
    gateway = config.gateway.model_copy(update={"api_key_sha256": tuple(keys.values()), "key_tenants": tenants})
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    as_a, as_b = ({"Authorization": f"Bearer {key}"} for key in keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        put = await client.put(f"{DOCUMENTS}/a?wait=durable", json={"text": "x"}, headers=as_a)
        job = put.json()["job"]
        assert (await client.get("/v1/jobs", headers=as_b)).json() == {"jobs": []}
        for method in ("GET", "DELETE"):
            assert (await client.request(method, f"/v1/jobs/{job}", headers=as_b)).status_code == 404
        params = {"wait": "durable", "job": job}
        added = await client.put(f"{DOCUMENTS}/b", params=params, json={"text": "x"}, headers=as_b)
        assert added.status_code == 404
        assert (await finished(client, job, headers=as_a))["total"] == 1
        assert (await client.get("/v1/jobs")).status_code == 401
