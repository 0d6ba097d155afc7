"""What users say of answers: joined with what was decided, kept, and nobody else's."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from engine.api.answered import Answered, AnswerMemory
from engine.api.app import create_app
from engine.errors import ComponentUnavailable
from engine.retrieval.service import Retriever
from engine.values import Decision, RouteRequest

URL, CHAT = "/v1/feedback", "/v1/chat/completions"


async def answer(client, text: str = "how do volumes work", **fields) -> str:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    response = await client.post(CHAT, json=body, **fields)
    assert response.status_code == 200, response.text
    return response.json()["id"]


def another(tenant: str = "", route: str = "rag") -> Answered:
    decision = Decision("rag", "tone", 0.5, (), "r")
    return Answered(tenant, 0.0, "tiny", RouteRequest("q", "docs"), decision, route, None, {})


async def kept(client, **fields) -> list[dict]:
    return (await client.get(URL, **fields)).json()["feedback"]


async def test_feedback_is_kept_with_what_was_decided_and_without_the_question(client):
    await client.put("/v1/collections/default/documents/a", json={"text": "All about volumes."})
    response = await answer(client)
    said = await client.post(URL, json={"id": response, "label": "bad", "text": "They hold data."})
    assert (said.status_code, said.json()) == (200, {"id": response, "status": "created"})
    (row,) = await kept(client)
    assert (row["id"], row["score"], row["text"]) == (response, 0.0, "They hold data.")
    assert (row["arm"], row["route"], row["adapter"], row["is_pinned"]) == ("base+context", "rag", None, False)
    assert row["signals"]["lexical.tokens"] == 4 and row["signals"]["search.best"] is not None
    assert (row["versions"]["router"], row["versions"]["index"], row["model"]) == ("score-rule-1", 1, "tiny")
    assert row["answered_at"] <= row["rated_at"]
    assert "question" not in row and "volumes work" not in str(row)


async def test_question_is_kept_where_the_configuration_says_so(backends, config):
    gateway = config.gateway.model_copy(update={"log_questions": True})
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test", timeout=60) as client:
        await client.post(URL, json={"id": await answer(client, "what now?"), "score": 0.25})
        (row,) = await kept(client)
    assert (row["question"], row["score"], row["text"]) == ("what now?", 0.25, None)


async def test_a_second_word_replaces_the_first_and_comes_last(client):
    first, second = await answer(client), await answer(client)
    for response, label in ((first, "good"), (second, "good"), (first, "bad")):
        said = await client.post(URL, json={"id": response, "label": label})
    assert said.json()["status"] == "updated"
    assert [(row["id"], row["score"]) for row in await kept(client)] == [(second, 1.0), (first, 0.0)]


async def test_feedback_is_read_in_pages(client):
    ids = [await answer(client) for _ in range(3)]
    for response in ids:
        await client.post(URL, json={"id": response, "score": 1})
    page = (await client.get(URL, params={"limit": 2})).json()
    assert [row["id"] for row in page["feedback"]] == ids[:2]
    page = (await client.get(URL, params={"limit": 2, "after": page["next"]})).json()
    assert ([row["id"] for row in page["feedback"]], page["next"]) == (ids[2:], None)


async def test_streamed_answers_can_be_rated_too(client):
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "stream": True}
    streamed = await client.post(CHAT, json=body)
    response = streamed.text.split('"id":"')[1].split('"')[0]
    assert (await client.post(URL, json={"id": response, "score": 1})).status_code == 200


async def test_an_answer_that_another_gateway_gave_is_found_there(client, backends):
    backends.elsewhere.keep("chatcmpl-there", another())
    assert (await client.post(URL, json={"id": "chatcmpl-there", "label": "good"})).status_code == 200
    (row,) = await kept(client)
    assert (row["arm"], row["confidence"]) == ("tone+context", 0.5)


async def test_an_answer_that_no_arm_gave_names_its_route_and_no_arm(client, backends):
    backends.elsewhere.keep("chatcmpl-there", another(route="clarify"))
    await client.post(URL, json={"id": "chatcmpl-there", "score": 0.5})
    (row,) = await kept(client)
    assert (row["route"], row["arm"]) == ("clarify", None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "send a score from 0 to 1, a label (good or bad), or text"),
        ({"score": 0.5, "label": "good"}, "score and label both say how good"),
        ({"score": 1.5}, "score: Input should be less than or equal to 1"),
        ({"score": -0.1}, "score: Input should be greater than or equal to 0"),
        ({"label": "fine"}, "label: Input should be 'good' or 'bad'"),
        ({"text": "  "}, "text"),
        ({"score": 1, "stars": 5}, "stars: unknown field"),
    ],
)
async def test_feedback_that_says_nothing_or_two_things_is_refused(client, fields, message):
    response = await client.post(URL, json={"id": "chatcmpl-1", **fields})
    assert response.status_code == 400 and message in response.json()["error"]["message"]


async def test_an_unknown_id_is_a_404_that_says_how_many_answers_are_remembered(client):
    response = await client.post(URL, json={"id": "chatcmpl-1", "score": 1})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "response_not_found")
    assert "'chatcmpl-1' is unknown, or not among the last 1,000 answers" in response.json()["error"]["message"]


async def test_feedback_says_503_where_it_cannot_be_kept(client, backends, monkeypatch):
    response = await answer(client)

    async def fail(*_: object) -> str:
        raise ComponentUnavailable("retriever", "it died")

    monkeypatch.setattr(backends, "keep_feedback", fail)
    assert (await client.post(URL, json={"id": response, "score": 1})).status_code == 503


async def test_answers_of_another_tenant_can_neither_be_rated_nor_read(backends, config):
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    tenants = {digest: name for name, digest in keys.items()}
    gateway = config.gateway.model_copy(update={"api_key_sha256": (*keys.values(),), "key_tenants": tenants})
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    one, two = ({"headers": {"Authorization": f"Bearer {name}"}} for name in keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test", timeout=60) as client:
        response = await answer(client, **one)
        body = {"id": response, "score": 1}
        assert (await client.post(URL, json=body)).status_code == 401
        assert (await client.post(URL, json=body, **two)).status_code == 404
        assert (await client.post(URL, json=body, **one)).status_code == 200
        assert (await kept(client, **two), len(await kept(client, **one))) == ([], 1)


async def test_feedback_outlives_the_server(client, backends, tmp_path, encoder, config):
    await client.post(URL, json={"id": await answer(client), "label": "good"})
    backends.retriever.close()
    again = Retriever(tmp_path / "data", encoder, config.retriever)
    ((_, row),) = again.feedback(after=0, limit=10)
    again.close()
    assert row["score"] == 1.0


def test_only_the_last_answers_are_remembered():
    memory = AnswerMemory(2)
    for name in "abc":
        memory.keep(name, another(tenant="t"))
    assert memory.recall("a", "t") is None and memory.recall("c", "") is None
    assert memory.recall("b", "t") is not None and memory.recall("c", "t") is not None
    memory = AnswerMemory(0)
    memory.keep("a", another())
    assert memory.recall("a", "") is None
