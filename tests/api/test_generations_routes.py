"""Generations over HTTP."""

from __future__ import annotations

import asyncio
import hashlib

import httpx
import pytest

from engine.api.app import create_app

PATH = "/v1/collections/default/generations"
SMALL = {"chunk_tokens": 16, "chunk_overlap_tokens": 0}


@pytest.fixture
async def filled(client):
    text = "Volumes are attached to machines of one region. " * 12
    for number in range(5):
        body = {"text": f"# Page {number}\n\n{text}"}
        assert (await client.put(f"/v1/collections/default/documents/{number}.md", json=body)).status_code == 200
    return client


async def ended(client: httpx.AsyncClient, response: httpx.Response) -> dict:
    assert response.status_code == 202, response.text
    job = response.json()
    assert (job["kind"], job["collection"]) == ("generation", "default")
    for _ in range(3000):
        job = (await client.get(f"/v1/jobs/{job['id']}")).json()
        if job["finished_at"] is not None:
            return job
        await asyncio.sleep(0.01)
    raise AssertionError(job)


async def states(client: httpx.AsyncClient) -> dict[int, str]:
    return {row["generation"]: row["state"] for row in (await client.get(PATH)).json()["generations"]}


async def test_generation_is_built_put_in_place_taken_back_and_dropped(filled):
    (first,) = (await filled.get(PATH)).json()["generations"]
    assert (first["generation"], first["state"], first["chunk_tokens"], first["report"]) == (1, "current", 200, None)
    chunks = (await filled.get("/v1/collections/default")).json()["chunks"]
    job = await ended(filled, await filled.post(PATH, json={**SMALL, "switch": "always"}))
    assert (job["state"], job["done"], job["total"], job["progress"]) == ("done", 5, 5, 1.0)
    assert await states(filled) == {1: "kept", 2: "current"}
    assert (await filled.get("/v1/collections/default")).json()["chunks"] > chunks
    found = (await filled.post("/v1/search", json={"query": "volumes", "min_version": job["version"]})).json()
    assert found["version"] == job["version"] and found["results"][0]
    status = (await filled.get("/readyz")).json()
    assert status["ready"]

    assert (await ended(filled, await filled.post(f"{PATH}/1/use")))["state"] == "done"
    assert (await filled.get("/v1/collections/default")).json()["chunks"] == chunks
    refused = await filled.delete(f"{PATH}/1")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert (await filled.delete(f"{PATH}/2")).json()["generation"] == 2
    assert await states(filled) == {1: "current"}


async def test_without_judgements_it_is_built_and_the_report_says_how_to_use_it(filled):
    await ended(filled, await filled.post(PATH, json=SMALL))
    report = (await filled.get(PATH)).json()["generations"][1]["report"]
    assert (report["switch"], report["is_switched"], report["evaluation"]) == ("if-not-worse", False, None)
    assert "switchyard generations use default 2" in report["why"]


async def test_what_cannot_be_done_is_refused_with_its_reason(filled):
    unknown = await filled.get("/v1/collections/nothing/generations")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "collection_not_found")
    missing = await filled.post(f"{PATH}/7/use")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "generation_not_found")
    same = await filled.post(PATH, json={})
    assert same.status_code == 400 and "already. Name another model or other sizes" in same.json()["error"]["message"]
    for body in ({"chunk_tokens": 3}, {"switch": "soon"}, {"chunks": 16}, {"model": ""}):
        assert (await filled.post(PATH, json=body)).status_code == 400


@pytest.mark.parametrize(("method", "path"), [("POST", f"{PATH}/abc/use"), ("DELETE", f"{PATH}/abc")])
async def test_what_is_no_number_of_a_generation_gets_400_that_says_where_numbers_are(client, method, path):
    refused = await client.request(method, path)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "generation")
    assert error["message"] == (
        "generation: 'abc' is not a generation's number, such as 1. "
        "Use one of GET /v1/collections/{collection}/generations."
    )


async def test_keys_of_tenants_may_not_change_what_concerns_all_of_them(filled, backends, config):
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("key-a", "key-plain")}
    gateway = config.gateway.model_copy(
        update={"api_key_sha256": tuple(keys.values()), "key_tenants": {keys["key-a"]: "a"}}
    )
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        theirs, ours = ({"Authorization": f"Bearer {key}"} for key in ("key-a", "key-plain"))
        calls = [("GET", PATH), ("POST", PATH), ("POST", f"{PATH}/1/use"), ("DELETE", f"{PATH}/1")]
        for method, path in calls:
            json = {"json": {}} if path == PATH and method == "POST" else {}
            refused = await client.request(method, path, headers=theirs, **json)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden"), refused.text
        assert (await client.get(PATH, headers=ours)).status_code == 200
