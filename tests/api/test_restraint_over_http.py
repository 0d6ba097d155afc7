"""Questions back and refusals over HTTP: like any answer, streamed or whole, with no token of a model in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
from local_backends import LocalBackends
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from engine.api.app import create_app
from engine.config import parse_config
from engine.retrieval.service import Retriever
from engine.routing.ambiguity import AmbiguityHead, WordPart
from engine.routing.ambiguity_files import write_ambiguity
from engine.routing.clarify import OPENING
from engine.values import PromptReport, TokenDelta

URL = "/v1/chat/completions"
# By words alone, the two pages that differ in one word score alike.
ARGS = {"generator": {"dtype": "float32", "max_model_len": 512, "threads": 1}, "retriever": {"mode": "lexical"}}
# Every score counts as far above background, or none does.
STRONG, WEAK = -1000.0, 1000.0


@asynccontextmanager
async def served(backends: LocalBackends, **router) -> AsyncIterator[httpx.AsyncClient]:
    config = parse_config(ARGS | {"router": router}, "test")
    transport = httpx.ASGITransport(app=create_app(backends, config), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        pages = {
            name: f"# Resize {name}\n\nTo resize {name}, take step 3 of the {name}." for name in ("disks", "machines")
        }
        # With fewer chunks a collection has no background.
        pages |= {f"note{n}": f"# Note {n}\n\nSomething else, {n} times." for n in range(20)}
        for name, text in pages.items():
            done = await client.put(f"/v1/collections/default/documents/docs/{name}.md", json={"text": text})
            assert done.status_code == 200, done.text
        yield client


@pytest.fixture
def strong(tmp_path, engine, encoder) -> Iterator[LocalBackends]:
    """Backends whose rule always uses passages."""
    config = parse_config(ARGS | {"router": {"min_z": STRONG}}, "test")
    retriever = Retriever(tmp_path / "data", encoder, config.retriever)
    backends = LocalBackends(retriever, engine, config)
    yield backends
    backends.host.close()
    retriever.close()


@pytest.fixture
def ambiguous(tmp_path) -> str:
    """Folder of a head to which every question has several readings."""
    write_ambiguity(tmp_path, AmbiguityHead(9.0, WordPart(np.zeros(16, np.float32), frozenset()), None, None, 1, 0))
    return str(tmp_path)


def body(text: str = "how to resize", route: str = "auto", **fields):
    extension = {"route": route, "top_k": 2}
    return {
        "model": "auto",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "switchyard": extension,
    } | fields


async def test_weak_evidence_is_refused_with_the_nearest_pages_and_no_generator(strong):
    strong.generate = None  # type: ignore[assignment]
    async with served(strong, abstain={"enabled": True, "min_z": WEAK}) as client:
        for route in ("auto", "rag"):
            answer = (await client.post(URL, json=body(route=route))).json()
            ChatCompletion.model_validate(answer)
            content, outcome = answer["choices"][0]["message"]["content"], answer["switchyard"]
            assert content.startswith("This is not in the knowledge base. The nearest pages:\n- Resize ")
            assert "(docs/disks.md)" in content and "(docs/machines.md)" in content
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (0, 0)
            assert outcome["route"] == "abstain" and outcome["citations"] == [] and outcome["confidence"] is None
            assert {page["document"] for page in outcome["passages"]} == {"docs/disks.md", "docs/machines.md"}
            assert "standard deviations" in outcome["reasons"][0]
            assert {"embed", "search", "route", "ttft", "total"} <= outcome["timings_ms"].keys()
            assert "decode" not in outcome["timings_ms"] and outcome["versions"]["index"] is not None


async def test_a_refusal_is_streamed_like_any_answer(strong):
    async with served(strong, abstain={"enabled": True, "min_z": WEAK}) as client:
        asked = body(stream=True, stream_options={"include_usage": True})
        response = await client.post(URL, json=asked)
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        chunks = [json.loads(line) for line in lines]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
        whole = (await client.post(URL, json=body())).json()
        assert text == whole["choices"][0]["message"]["content"]
        assert chunks[0]["switchyard"]["route"] == chunks[-2]["switchyard"]["route"] == "abstain"
        assert chunks[-1]["usage"]["total_tokens"] == 0


async def test_a_refusal_that_is_rated_says_nothing_of_an_arm(strong):
    async with served(strong, abstain={"enabled": True, "min_z": WEAK}) as client:
        answer = (await client.post(URL, json=body())).json()
        assert (await client.post("/v1/feedback", json={"id": answer["id"], "label": "bad"})).status_code == 200
        (row,) = (await client.get("/v1/feedback")).json()["feedback"]
        assert (row["route"], row["arm"], row["score"]) == ("abstain", None, 0.0)


async def test_a_pinned_direct_route_is_answered_whatever_the_evidence(strong):
    async with served(strong, abstain={"enabled": True, "min_z": WEAK}) as client:
        answer = (await client.post(URL, json=body(route="direct"))).json()
        assert answer["switchyard"]["route"] == "direct" and answer["usage"]["completion_tokens"] > 0


async def test_an_answer_of_a_given_form_is_never_a_refusal(strong):
    async with served(strong, abstain={"enabled": True, "min_z": WEAK}) as client:
        answer = (await client.post(URL, json=body(guided_choice=["yes", "no"]))).json()
        assert answer["choices"][0]["message"]["content"] in ("yes", "no")


async def test_a_question_of_several_readings_is_asked_back(strong, ambiguous):
    async with served(strong, ambiguity=ambiguous, clarify={"enabled": True, "max_share": 1.0}) as client:
        answer = (await client.post(URL, json=body())).json()
        assert answer["switchyard"]["route"] == "clarify" and answer["switchyard"]["citations"] == []
        content = answer["choices"][0]["message"]["content"]
        assert content.splitlines()[0] == OPENING
        assert {*content.splitlines()[1:]} == {"- Resize disks", "- Resize machines"}
        assert answer["usage"]["total_tokens"] == 0
        again = body(
            messages=[*body()["messages"], {"role": "assistant", "content": content}, *body("disks")["messages"]]
        )
        assert (await client.post(URL, json=again)).json()["switchyard"]["route"] == "rag"


async def test_the_reading_that_is_assumed_begins_the_answer_and_is_not_cited(strong, ambiguous):
    async with served(strong, ambiguity=ambiguous) as client:
        whole = (await client.post(URL, json=body())).json()
        content = whole["choices"][0]["message"]["content"]
        opening = content.split("\n\n")[0] + "\n\n"
        assert opening in ("Taking this to be about Resize disks:\n\n", "Taking this to be about Resize machines:\n\n")
        assert whole["switchyard"]["route"] == "rag" and 0 < whole["usage"]["completion_tokens"] <= 8
        assert all(citation["start"] >= len(opening) for citation in whole["switchyard"]["citations"])
        response = await client.post(URL, json=body(stream=True))
        chunks = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-2]]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == content


async def test_citations_count_characters_from_where_the_answer_begins(strong, ambiguous):
    text = "To resize disks, take step 3 of the disks."

    async def answers(request):
        yield TokenDelta(text, 1, prompt=PromptReport(1, request.passages), finish_reason="stop")

    strong.generate = answers  # type: ignore[assignment]
    async with served(strong, ambiguity=ambiguous) as client:
        answer = (await client.post(URL, json=body())).json()
        content, citations = answer["choices"][0]["message"]["content"], answer["switchyard"]["citations"]
        assert content.startswith("Taking this to be about ")
        assert [content[each["start"] : each["end"]] for each in citations] == [text]
