"""Asking arms over HTTP: what is sent, what comes back, and what is tried again."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import httpx
import pytest

from engine.errors import ServerUnreachable
from engine.evaluation import asking
from engine.evaluation.asking import Answer, AskOptions, HttpAsk, Server, answer_all, base_model_name
from engine.evaluation.questions import Question
from engine.http_errors import ServerError
from engine.routing.arms import parse_arm

QUESTION = Question("q1", "Who?", ("Ada",))
PASSAGE = {"chunk": "c1", "document": "docs/a", "title": "A", "text": "Ada.", "start": 0, "end": 4, "score": 0.9}
CHAT = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Ada"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 2},
    "switchyard": {
        "route": "rag",
        "passages": [PASSAGE],
        "citations": [{"start": 0, "end": 3, "passage": 0, "score": 1.0}],
        "timings_ms": {"ttft": 12.5, "total": 20.0},
        "versions": {"index": 3, "adapter": None, "router": "rule"},
    },
}


def refusal(status, code="overloaded", **headers):
    body = {"error": {"message": f"refused with {status}", "code": code, "type": "", "param": None}}
    return httpx.Response(status, json=body, headers=headers)


class Replies:
    """A server that gives these replies in turn, the last one again and again."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.bodies = []

    def __call__(self, request):
        self.bodies.append(json.loads(request.content) if request.content else None)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, httpx.Response) else httpx.Response(200, json=reply)


def asked(replies, arm="base", options=None, **server):
    async def run():
        async with Server("http://server", transport=httpx.MockTransport(replies), **server) as connection:
            return await HttpAsk(connection, "tiny", options)(parse_arm(arm), QUESTION)

    return asyncio.run(run())


def test_answer_holds_what_was_said_shown_and_measured():
    found = asked(Replies(CHAT), "base+context")
    assert (found.text, found.route, found.refused, found.error) == ("Ada", "rag", False, None)
    assert (found.ttft_ms, found.tokens_in, found.tokens_out) == (12.5, 30, 2)
    assert (found.index_version, found.adapter_digest) == (3, None)
    assert found.latency_ms is not None
    assert [(each.document, each.text) for each in found.passages] == [("docs/a", "Ada.")]


@pytest.mark.parametrize(
    ("arm", "model", "route"),
    [
        ("base", "tiny", "direct"),
        ("base+context", "tiny", "rag"),
        ("bot", "bot", "direct"),
        ("bot+context", "bot", "rag"),
    ],
)
def test_arm_is_pinned_and_decoding_is_greedy(arm, model, route):
    replies = Replies(CHAT)
    asked(replies, arm, AskOptions(max_tokens=7, collection="docs", top_k=3))
    assert replies.bodies == [
        {
            "model": model,
            "messages": [{"role": "user", "content": "Who?"}],
            "max_tokens": 7,
            "temperature": 0,
            "switchyard": {"route": route, "cite": False, "collection": "docs", "top_k": 3},
        }
    ]


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_asked_again_and_the_waiting_is_no_latency(status):
    replies = Replies(refusal(status, **{"Retry-After": "0.2"}), CHAT)
    found = asked(replies)
    assert (found.text, len(replies.bodies)) == ("Ada", 2)
    assert found.latency_ms < 200


def test_server_that_stays_busy_ends_it():
    with pytest.raises(ServerError, match="refused with 503"):
        asked(Replies(refusal(503, **{"Retry-After": "1"})), patience_s=0.5)


@pytest.mark.parametrize("status", [400, 408, 413])
def test_error_of_one_question_is_its_answer(status):
    assert asked(Replies(refusal(status, "context_length_exceeded"))) == Answer(error=f"refused with {status}")


@pytest.mark.parametrize(("status", "code"), [(401, "invalid_api_key"), (404, "model_not_found"), (500, "internal")])
def test_error_that_all_questions_would_meet_is_raised(status, code):
    with pytest.raises(ServerError, match=f"refused with {status}"):
        asked(Replies(refusal(status, code)))


def test_broken_connection_is_tried_again_a_few_times(monkeypatch):
    monkeypatch.setattr(asking, "_BREAK_S", 0.0)
    assert asked(Replies(httpx.ReadError("reset"), httpx.ConnectError("refused"), CHAT)).text == "Ada"
    with pytest.raises(ServerUnreachable, match="no server answers at http://server"):
        asked(Replies(httpx.ConnectError("refused")))


@pytest.mark.parametrize("route", ["abstain", "clarify"])
def test_server_that_has_no_answer_refused(route):
    found = asked(Replies({**CHAT, "switchyard": {**CHAT["switchyard"], "route": route, "citations": None}}))
    assert found.refused
    assert found.citations == ()


def test_base_model_is_the_one_that_has_weights_and_no_parent():
    cards = [
        {"id": "auto", "parent": None, "digest": None},
        {"id": "tiny", "parent": None, "digest": "0"},
        {"id": "bot", "parent": "tiny", "digest": "1"},
    ]

    async def run():
        transport = httpx.MockTransport(Replies({"data": cards}))
        async with Server("http://server", transport=transport) as server:
            return await base_model_name(server)

    assert asyncio.run(run()) == "tiny"


def test_so_many_are_asked_at_once_and_no_more():
    running, most = 0, 0

    async def ask(arm, question):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return Answer(text=question.id)

    async def run():
        jobs = ((parse_arm("base"), Question(f"q{number}", "Who?", ("a",))) for number in range(20))
        return [each async for each in answer_all(ask, jobs, concurrency=3)]

    found = asyncio.run(run())
    assert most == 3
    assert sorted(answer.text for _, _, answer in found) == sorted(f"q{number}" for number in range(20))
    assert all(answer.text == question.id for _, question, answer in found)


def test_what_is_still_asked_is_given_up_where_one_fails_or_nobody_listens():
    cancelled = []

    async def ask(arm, question):
        try:
            if question.id == "q1":
                return Answer(text="first")
            if question.id == "q2":
                raise ServerUnreachable("http://server", "gone")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(question.id)
            raise

    async def run(*ids):
        jobs = [(parse_arm("base"), Question(id, "Who?", ("a",))) for id in ids]
        async with aclosing(answer_all(ask, jobs, concurrency=4)) as answers:
            async for _ in answers:
                break

    asyncio.run(run("q1", "q3"))
    assert cancelled == ["q3"]
    with pytest.raises(ServerUnreachable):
        asyncio.run(run("q2", "q4"))
    assert cancelled == ["q3", "q4"]
