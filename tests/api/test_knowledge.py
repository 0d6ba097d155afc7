"""Documents, batches and search over HTTP."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest

from engine.api.app import create_app

DOCUMENTS = "/v1/collections/default/documents"


async def put(client, name: str, text: str, **fields):
    return await client.put(f"{DOCUMENTS}/{name}", json={"text": text, **fields})


async def search(client, query: str, **fields) -> list[dict]:
    response = await client.post("/v1/search", json={"query": query, **fields})
    assert response.status_code == 200, response.text
    return response.json()["results"][0]


async def test_put_stores_replaces_and_skips_what_is_the_same(client):
    first = (await put(client, "a/b.md", "# Volumes\n\nVolumes are disks.", metadata={"k": [1, None]})).json()
    assert (first["status"], first["version"], first["chunks"]) == ("created", 1, 1)
    again = (await put(client, "a/b.md", "# Volumes\n\nVolumes are disks.", metadata={"k": [1, None]})).json()
    assert (again["status"], again["version"]) == ("unchanged", 1)
    changed = (await put(client, "a/b.md", "# Volumes\n\nVolumes are fast disks.")).json()
    assert (changed["status"], changed["version"]) == ("updated", 2)
    stored = (await client.get(f"{DOCUMENTS}/a/b.md")).json()
    assert stored["title"] == "Volumes"
    assert "fast disks" in stored["text"]
    assert stored["content_hash"] == hashlib.sha256(b"# Volumes\n\nVolumes are fast disks.").hexdigest()


async def test_put_reads_a_raw_file_by_its_content_type(client):
    html = b"<html><title>Pricing</title><body><script>x()</script><h1>Pricing</h1><p>Machines cost.</p></body></html>"
    done = await client.put(f"{DOCUMENTS}/p.html", content=html, headers={"Content-Type": "text/html; charset=utf-8"})
    assert done.json()["status"] == "created", done.text
    stored = (await client.get(f"{DOCUMENTS}/p.html")).json()
    assert stored["title"] == "Pricing"
    assert "x()" not in stored["text"]


async def test_ids_may_be_percent_encoded_and_hold_slashes_and_other_scripts(client):
    done = await client.put(f"{DOCUMENTS}/docs%2Fгайд%20one.md", json={"text": "hello there"})
    assert done.json()["id"] == "docs/гайд one.md"
    assert (await client.get(f"{DOCUMENTS}/docs/гайд one.md")).status_code == 200


async def test_delete_makes_a_document_unfindable_and_is_a_404_the_second_time(client):
    await put(client, "gone.md", "the zebra sleeps in the zoo")
    await put(client, "kept.md", "the lion sleeps in the zoo")
    assert (await search(client, "zebra"))[0]["document"] == "gone.md"
    done = await client.delete(f"{DOCUMENTS}/gone.md")
    assert done.json()["status"] == "deleted"
    assert [hit["document"] for hit in await search(client, "zebra")] == ["kept.md"]
    assert (await client.delete(f"{DOCUMENTS}/gone.md")).json()["error"]["code"] == "document_not_found"


async def test_batch_reports_each_line_and_stores_the_good_ones(client):
    lines = [
        {"id": "one", "text": "first document"},
        {"id": "two", "text": "binary \x00\x01\x02 document"},
        {"id": "three"},
        {"id": "nobody", "delete": True},
        {"id": "four", "text": "fourth document", "content_type": "image/png"},
        {"id": "", "text": "no id"},
    ]
    content = b"\n".join(json.dumps(line).encode() for line in lines) + b'\n{"id": "five", "text": NaN}\n\n'
    response = await client.post(f"{DOCUMENTS}:batch", content=content)
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [result["status"] for result in results] == [
        "created",
        "failed",
        "failed",
        "absent",
        "failed",
        "failed",
        "failed",
    ]
    assert results[1]["code"] == "unparsable_document"
    assert "line 3" in results[2]["error"] and "delete" in results[2]["error"]
    assert results[4]["code"] == "unsupported_media_type"
    assert "line 7" in results[6]["error"]
    listed = (await client.get(DOCUMENTS)).json()["documents"]
    assert [document["id"] for document in listed] == ["one"]


async def test_an_empty_batch_says_what_a_batch_is(client):
    response = await client.post(f"{DOCUMENTS}:batch", content=b"\n\n")
    assert response.status_code == 400
    assert "one JSON object a line" in response.json()["error"]["message"]


async def test_documents_are_listed_page_by_page_and_by_source(client):
    for name in ("x/1", "x/2", "x/3", "y/1"):
        await put(client, name, f"document {name}")
    first = (await client.get(DOCUMENTS, params={"source": "x", "limit": 2})).json()
    assert [row["id"] for row in first["documents"]] == ["x/1", "x/2"]
    rest = (await client.get(DOCUMENTS, params={"source": "x", "limit": 2, "after": first["next"]})).json()
    assert ([row["id"] for row in rest["documents"]], rest["next"]) == (["x/3"], None)
    info = (await client.get("/v1/collections/default")).json()
    assert (info["documents"], info["sources"], info["version"]) == (4, ["x", "y"], 4)
    assert (await client.get("/v1/collections")).json()["collections"] == [info]


async def test_search_tells_the_headings_that_a_prompt_shows(client):
    await put(client, "a.md", "# Volumes\n\nalpha beta gamma")
    assert [hit["heading"] for hit in await search(client, "alpha beta gamma")] == ["Volumes"]


async def test_search_takes_many_queries_and_returns_slices_of_documents(client):
    await put(client, "a", "alpha beta gamma")
    await put(client, "b", "delta epsilon zeta")
    response = await client.post("/v1/search", json={"queries": ["alpha beta gamma", "delta epsilon zeta"], "k": 1})
    results = response.json()["results"]
    assert [hits[0]["document"] for hits in results] == ["a", "b"]
    for hit in (hits[0] for hits in results):
        text = (await client.get(f"{DOCUMENTS}/{hit['document']}")).json()["text"]
        assert text[hit["start"] : hit["end"]] == hit["text"]
    assert response.json()["version"] == 2


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "send either query or queries"),
        ({"query": "a", "queries": ["b"]}, 400, "send either query or queries"),
        ({"query": " "}, 400, "query is empty"),
        ({"query": "a", "k": 0}, 400, "k: Input should be greater than or equal to 1"),
        ({"query": "a", "k": 101}, 400, "k: Input should be less than or equal to 100"),
        ({"query": "a", "mode": "fuzzy"}, 400, "mode"),
        ({"query": "a", "collection": "nope"}, 404, "collection 'nope' is unknown; known: default"),
        ({"query": "a", "filter": {"x": {"$like": 1}}}, 400, "$like"),
        ({"query": "a", "min_version": 99}, 400, "min_version"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_search_refuses_bad_requests_by_name(client, body, status, message):
    await put(client, "a", "alpha")
    response = await client.post("/v1/search", json=body)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "text/markdown", 400, "unparsable_document"),
        (b"hello", "image/png", 415, "unsupported_media_type"),
        (b"hello", "", 415, "unsupported_media_type"),
        (b'{"text": 1}', "application/json", 400, "invalid_request"),
        (b'{"txt": "a"}', "application/json", 400, "invalid_request"),
        (b"{", "application/json", 400, "invalid_request"),
        (b"x" * 200_001, "text/plain", 413, "payload_too_large"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_put_refuses_bad_documents_and_stores_nothing(client, content, content_type, status, code):
    response = await client.put(f"{DOCUMENTS}/bad", content=content, headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert (await client.get("/v1/collections")).json()["collections"] == []


async def test_a_collection_name_with_other_characters_is_refused(client):
    response = await client.put("/v1/collections/a b!/documents/x", json={"text": "hello"})
    assert response.status_code == 400
    assert "'a b!'" in response.json()["error"]["message"]


async def test_a_key_is_asked_for_when_one_is_configured(backends, config):
    digest = hashlib.sha256(b"a-secret-key").hexdigest()
    locked = config.model_copy(update={"gateway": config.gateway.model_copy(update={"api_key_sha256": (digest,)})})
    transport = httpx.ASGITransport(app=create_app(backends, locked))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            response = await client.get("/v1/collections", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
            assert (await client.get("/openapi.json", headers=headers)).status_code == 401
        good = await client.get("/v1/collections", headers={"Authorization": "Bearer a-secret-key"})
        assert good.status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_search_obeys_a_filter_on_metadata_in_every_mode(client):
    for number, product in enumerate(("volumes", "volumes", "machines")):
        await put(client, f"{number}.md", "the zebra sleeps in the zoo", metadata={"product": product, "n": number})
    for mode in ("hybrid", "dense", "lexical"):
        for wanted, documents in (
            ({"product": "machines"}, {"2.md"}),
            ({"product": {"$ne": "machines"}, "n": {"$gte": 1}}, {"1.md"}),
            ({"$or": [{"n": 0}, {"$id": "2.md"}]}, {"0.md", "2.md"}),
            ({"colour": {"$exists": True}}, set()),
        ):
            found = await search(client, "zebra", mode=mode, filter=wanted)
            assert {hit["document"] for hit in found} == documents, (mode, wanted)


async def test_an_operator_that_does_not_exist_is_refused_and_matches_nothing(client):
    await put(client, "a.md", "the zebra sleeps in the zoo", metadata={"n": 1})
    response = await client.post("/v1/search", json={"query": "zebra", "filter": {"n": {"$near": 1}}})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "filter")
    assert "$near" in error["message"] and "$ne" in error["message"]


async def test_lexical_search_finds_a_word_and_hybrid_ranks_by_both_legs(client):
    await put(client, "a.md", "ERR_7734 is raised when the disk is full")
    await put(client, "b.md", "the lion sleeps in the zoo")
    assert [hit["document"] for hit in await search(client, "err_7734", mode="lexical")] == ["a.md"]
    best = (await search(client, "err_7734", mode="hybrid"))[0]
    assert best["document"] == "a.md" and 0 < best["score"] <= 1


async def test_tenants_come_from_their_keys_and_never_meet(backends, config):
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("key-a", "key-b", "key-plain")}
    gateway = config.gateway.model_copy(
        update={
            "api_key_sha256": tuple(keys.values()),
            "key_tenants": {keys["key-a"]: "a", keys["key-b"]: "b"},
        }
    )
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:

        def as_(key: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {key}"}

        for key in keys:
            body = {"text": f"the zebra of {key} sleeps", "metadata": {"tenant": "b"}}
            await client.put(f"{DOCUMENTS}/same.md", json=body, headers=as_(key))
        await client.put("/v1/collections/secret/documents/x", json={"text": "hidden"}, headers=as_("key-b"))
        for key in keys:
            for mode in ("hybrid", "dense", "lexical"):
                # A filter can narrow what the key may see and never widen it.
                body = {"query": "zebra", "mode": mode, "filter": {"$or": [{"tenant": "b"}, {"$id": "same.md"}]}}
                found = (await client.post("/v1/search", json=body, headers=as_(key))).json()["results"][0]
                assert [hit["text"] for hit in found] == [f"the zebra of {key} sleeps"]
            assert key in (await client.get(f"{DOCUMENTS}/same.md", headers=as_(key))).json()["text"]
        names = (await client.get("/v1/collections", headers=as_("key-a"))).json()["collections"]
        assert [row["name"] for row in names] == ["default"]
        denied = await client.post("/v1/search", json={"query": "x", "collection": "secret"}, headers=as_("key-a"))
        assert denied.status_code == 404 and "known: default." in denied.json()["error"]["message"]


async def test_a_body_that_does_not_arrive_in_time_is_refused(backends, config):
    async def stalled():
        import asyncio

        yield b"{"
        await asyncio.sleep(3)
        yield b"}"

    transport = httpx.ASGITransport(app=create_app(backends, config))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/v1/search", content=stalled())
    assert response.status_code == 400
    assert "gateway.body_timeout_s=1 s" in response.json()["error"]["message"]
