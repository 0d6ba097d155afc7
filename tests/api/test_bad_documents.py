"""Documents that are broken or made to do harm: a clear error, nothing stored, and the others found as before."""

from __future__ import annotations

import json

import httpx
import pytest
from small_files import docx

from engine.api.app import create_app

DOCUMENTS = "/v1/collections/default/documents"
WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
GOOD = "the zebra sleeps in the zoo"
TEN_MB = 10 * 2**20
LONGEST_MESSAGE = 1000


async def check_only_the_good_one_is_there(client: httpx.AsyncClient) -> None:
    listed = (await client.get(DOCUMENTS)).json()["documents"]
    assert [row["id"] for row in listed] == ["good.md"]
    for mode in ("dense", "lexical", "hybrid"):
        found = (await client.post("/v1/search", json={"query": "zebra", "k": 100, "mode": mode})).json()
        assert [(hit["document"], hit["text"]) for hit in found["results"][0]] == [("good.md", GOOD)]


@pytest.mark.parametrize(
    ("content", "content_type", "message"),
    [
        (bytes(range(256)) * 100, "text/plain", "UTF-8"),
        (b"\x00\x01" * 1000, "text/markdown", "byte"),
        (docx("Bomb", **{"word/media/image1.bin": b"\0" * 60_000_000}), WORD, "unpack"),
        (b"<div>" * 30_000 + b"zebra", "text/html", "nested"),
        (b"<b>" * 5000 + b"<p>zebra" * 5000, "text/html", "nested"),
        (docx("Zebra")[:-40], WORD, "no readable zip archive"),
        (b"%PDF-1.7 zebra", "application/pdf", "PDF"),
    ],
    ids=["binary", "control characters", "zip bomb", "deep html", "open tags", "cut docx", "no pdf"],
)
async def test_a_broken_document_is_refused_and_changes_nothing(client, content, content_type, message):
    await client.put(f"{DOCUMENTS}/good.md", json={"text": GOOD})
    answer = await client.put(f"{DOCUMENTS}/bad", content=content, headers={"Content-Type": content_type})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unparsable_document"), answer.text
    assert message.lower() in error["message"].lower() and len(error["message"]) < LONGEST_MESSAGE
    await check_only_the_good_one_is_there(client)


@pytest.mark.parametrize(
    "line",
    [
        b"x" * TEN_MB,
        json.dumps({"id": "a" * TEN_MB, "text": "zebra"}).encode(),
        json.dumps({"id": "bad", "text": "zebra", "a" * TEN_MB: 1}).encode(),
        json.dumps({"id": "bad", "text": "zebra", "title": "a" * TEN_MB}).encode(),
        json.dumps({"id": "bad", "text": "zebra", "content_type": "a" * TEN_MB}).encode(),
        b'{"id": "bad", "text": ' + b"[" * TEN_MB,
    ],
    ids=["no json", "id", "key", "title", "type", "depth"],
)
async def test_a_bad_line_of_ten_megabytes_fails_alone_and_is_not_recited(backends, config, line):
    gateway = config.gateway.model_copy(update={"max_document_bytes": 2 * TEN_MB, "body_timeout_s": 60.0})
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    good = json.dumps({"id": "good.md", "text": GOOD}).encode()
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        answer = await client.post(f"{DOCUMENTS}:batch", content=line + b"\n" + good)
        assert answer.status_code == 200, answer.text[:LONGEST_MESSAGE]
        bad, stored = answer.json()["results"]
        assert (bad["status"], stored["status"]) == ("failed", "created")
        assert bad["error"] and len(answer.content) < 2 * LONGEST_MESSAGE, answer.text[:LONGEST_MESSAGE]
        await check_only_the_good_one_is_there(client)


async def test_a_search_for_more_than_there_is_finds_what_there_is_and_in_an_emptied_collection_nothing(client):
    for name in ("a.md", "b.md"):
        await client.put(f"{DOCUMENTS}/{name}", json={"text": f"the zebra of {name}"})
    for left in ({"a.md", "b.md"}, {"b.md"}, set()):
        for mode in ("dense", "lexical", "hybrid"):
            body = {"query": "zebra", "k": 100, "mode": mode}
            found = (await client.post("/v1/search", json=body)).json()["results"][0]
            assert {hit["document"] for hit in found} == left
        if left:
            await client.delete(f"{DOCUMENTS}/{min(left)}")
