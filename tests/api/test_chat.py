"""Chat over HTTP: streamed and whole, its evidence, and every way a request can be wrong."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from local_backends import LocalBackends
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from engine.api.app import create_app
from engine.api.rewriting import search_text
from engine.config import parse_config
from engine.errors import ComponentUnavailable, DeadlineExceeded
from engine.values import GenerationRequest, Message, TokenDelta

URL = "/v1/chat/completions"


def body(text: str = "how do volumes work", **fields):
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


def events_of(response) -> list[dict]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.fixture
async def knowledge(client):
    for name in ("volumes", "machines", "secrets"):
        text = f"# {name.title()}\n\nAll about {name}: how {name} work and what they cost."
        done = await client.put(f"/v1/collections/default/documents/docs/{name}.md", json={"text": text})
        assert done.status_code == 200, done.text


async def test_chat_answers_directly_and_says_why_when_the_knowledge_base_is_empty(client):
    response = await client.post(URL, json=body())
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] <= 8
    assert answer["switchyard"]["route"] == "direct"
    assert "the knowledge base is empty" in answer["switchyard"]["reasons"][0]
    assert answer["switchyard"]["degraded"] is False


@pytest.mark.usefixtures("knowledge")
async def test_chat_shows_passages_versions_and_timings_on_the_rag_route(client):
    outcome = (await client.post(URL, json=body(switchyard={"route": "rag", "top_k": 2}))).json()["switchyard"]
    assert outcome["route"] == "rag"
    assert len(outcome["passages"]) == 2
    passage = outcome["passages"][0]
    document = (await client.get(f"/v1/collections/default/documents/{passage['document']}")).json()
    assert document["text"][passage["start"] : passage["end"]] == passage["text"]
    assert outcome["versions"]["index"] == 3
    assert outcome["confidence"] is None, "a pinned route has no confidence"
    assert {"queue", "embed", "search", "route", "prefill", "decode", "ttft", "total"} <= outcome["timings_ms"].keys()


@pytest.mark.usefixtures("knowledge")
async def test_chat_searches_nothing_when_the_direct_route_is_pinned(client, backends):
    outcome = (await client.post(URL, json=body(switchyard={"route": "direct"}))).json()["switchyard"]
    assert (outcome["route"], outcome["passages"], backends.queries) == ("direct", [], [])


@pytest.mark.usefixtures("knowledge")
async def test_streamed_and_whole_answers_are_the_same(client):
    whole = (await client.post(URL, json=body(switchyard={"route": "rag"}))).json()
    streamed = await client.post(
        URL, json=body(stream=True, stream_options={"include_usage": True}, switchyard={"route": "rag"})
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = events_of(streamed)
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    for usage in (events[-1]["usage"], whole["usage"]):
        del usage["prompt_tokens_details"]  # the second one finds the prompt computed
    assert events[-1]["usage"] == whole["usage"]
    assert "switchyard" in events[0] and "switchyard" in events[-2]
    assert not any("switchyard" in event for event in events[1:-2])
    assert events[0]["switchyard"]["passages"] == whole["switchyard"]["passages"]
    assert events[-2]["switchyard"]["citations"] == whole["switchyard"]["citations"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


async def test_citations_are_left_out_when_cite_is_false(client):
    assert (await client.post(URL, json=body(switchyard={"cite": False}))).json()["switchyard"]["citations"] is None
    assert (await client.post(URL, json=body())).json()["switchyard"]["citations"] == []


async def test_a_stop_string_ends_the_answer_before_it(client):
    text = (await client.post(URL, json=body(max_tokens=16))).json()["choices"][0]["message"]["content"]
    stop = text[3:5]
    answer = (await client.post(URL, json=body(max_tokens=16, stop=stop))).json()["choices"][0]
    assert answer["message"]["content"] == text[: text.index(stop)]
    assert answer["finish_reason"] == "stop"


BAD_FIELDS = [
    (body(""), "messages: the last user message is empty", "messages"),
    (body("  \n"), "empty", None),
    ({"model": "auto", "messages": []}, "messages", "messages"),
    ({"messages": [{"role": "user", "content": "x"}]}, "model: Field required", "model"),
    (body(messages=[{"role": "assistant", "content": "x"}]), "must end with the user's turn", None),
    (body(messages=[{"role": "robot", "content": "x"}]), "messages.0.role", "messages.0.role"),
    (body(max_tokens=0), "max_tokens: Input should be greater than or equal to 1", "max_tokens"),
    (body(max_tokens=4, max_completion_tokens=5), "differ", "max_tokens"),
    (body(temperature=-1), "temperature", "temperature"),
    (body(temperature=2.5), "temperature", "temperature"),
    (body(n=2), "n is not implemented; leave it out (allowed: null, 1)", "n"),
    (body(logit_bias={"5": 1}), "logit_bias is not implemented", "logit_bias"),
    (body(top_logprobs=2), "top_logprobs=2 needs logprobs: true", "top_logprobs"),
    (body(logprobs=True, top_logprobs=21), "top_logprobs", "top_logprobs"),
    (body(frequency_penalty=3), "frequency_penalty", "frequency_penalty"),
    (body(repetition_penalty=0), "repetition_penalty", "repetition_penalty"),
    (body(min_p=1.5), "min_p", "min_p"),
    (body(tools=[{"type": "function"}]), "tools is not implemented", None),
    (body(response_format={"type": "xml"}), "response_format", "response_format"),
    (body(response_format={"type": "json_schema"}), "json_schema: Field required", None),
    (
        body(response_format={"type": "json_schema", "json_schema": {"name": "x y", "schema": {}}}),
        "json_schema.name: String should match pattern",
        None,
    ),
    (
        body(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}),
        "the schema cannot be used: Invalid type: strin",
        "response_format.json_schema.schema",
    ),
    (
        body(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "description": "y"}}),
        "json_schema.description",
        None,
    ),
    (body(guided_regex="("), "regular expression cannot be used", "guided_regex"),
    (body(guided_choice=[]), "at least one character", "guided_choice"),
    (body(guided_choice=["a"], guided_regex="a"), "send one of them", "response_format"),
    (body(guided_choice=["a"], ignore_eos=True), "ignore_eos contradicts a grammar", "ignore_eos"),
    (body(stop=["x"] * 9), "at most 8 strings", "stop"),
    (body(stop=""), "1 to 64 characters", "stop"),
    (body(stream_options={"include_usage": True}), "stream_options needs stream: true", None),
    (body(frobnicate=1), "frobnicate: unknown field", "frobnicate"),
    (body(switchyard={"rout": "rag"}), "switchyard.rout: unknown field", "switchyard.rout"),
    (body(switchyard={"route": "clarify"}), "switchyard.route", "switchyard.route"),
    (body(switchyard={"top_k": 0}), "switchyard.top_k", "switchyard.top_k"),
    (body(switchyard={"deadline_ms": -5}), "switchyard.deadline_ms", "switchyard.deadline_ms"),
    (body(max_tokens=500), "together more than max_model_len=512", "messages"),
]


@pytest.mark.parametrize(("request_body", "message", "param"), BAD_FIELDS, ids=[case[1][:40] for case in BAD_FIELDS])
async def test_chat_answers_400_that_names_field_and_fix(client, request_body, message, param):
    response = await client.post(URL, json=request_body)
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert message in error["message"]
    assert param is None or error["param"] == param
    assert "Traceback" not in response.text


async def test_fields_of_openai_that_ask_for_nothing_are_accepted(client):
    response = await client.post(
        URL, json=body(n=1, logprobs=False, presence_penalty=0, response_format={"type": "text"})
    )
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_come_in_the_form_of_openai(client, stream):
    asked = body(logprobs=True, top_logprobs=2, max_tokens=6, ignore_eos=True, stream=stream)
    response = await client.post(URL, json=asked)
    assert response.status_code == 200, response.text
    if stream:
        choices = [ChatCompletionChunk.model_validate(event).choices for event in events_of(response)]
        content = [token for (choice,) in choices if choice.logprobs for token in choice.logprobs.content or []]
        text = "".join(choice.delta.content or "" for (choice,) in choices)
    else:
        choice = ChatCompletion.model_validate(response.json()).choices[0]
        assert choice.logprobs is not None
        content, text = choice.logprobs.content or [], choice.message.content or ""
    assert len(content) == 6
    assert b"".join(bytes(token.bytes or []) for token in content).decode(errors="replace") == text
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.token == token.top_logprobs[0].token


async def test_sampling_fields_change_the_answer(client):
    async def text(**fields) -> str:
        response = await client.post(URL, json=body(max_tokens=20, ignore_eos=True, **fields))
        return response.json()["choices"][0]["message"]["content"]

    greedy = await text()
    drawn = {"temperature": 2.0, "seed": 1}
    assert await text(**drawn) == await text(**drawn) != greedy
    assert await text(**drawn, top_k=1) == await text(**drawn, min_p=1.0) == greedy
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 2}):
        assert await text(**penalty) != greedy


async def test_usage_says_how_much_of_the_prompt_was_computed_before(client):
    question = "How are snapshots of a volume kept, and for how many days? " * 3
    usages = [(await client.post(URL, json=body(question, max_tokens=1))).json()["usage"] for _ in range(2)]
    assert usages[0]["prompt_tokens_details"]["cached_tokens"] < usages[1]["prompt_tokens_details"]["cached_tokens"]


async def test_chat_answers_404_listing_the_models_when_the_model_is_unknown(client):
    response = await client.post(URL, json=body() | {"model": "gpt-5"})
    assert response.status_code == 404
    assert "model 'gpt-5' is unknown; known: auto, tiny" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_answers_404_when_a_named_collection_is_unknown(client, stream):
    response = await client.post(URL, json=body(stream=stream, switchyard={"collection": "nope"}))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "collection_not_found")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"model": "auto", "temperature": NaN, "messages": []}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"\xff\xfe",
        b"[1]",
        b"null",
    ],
    ids=repr,
)
async def test_chat_answers_400_when_the_body_is_not_json(client, content):
    response = await client.post(URL, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"].keys() == {"message", "type", "code", "param"}


async def test_chat_answers_415_when_the_body_is_a_form(client):
    response = await client.post(URL, data={"model": "auto"})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_chat_answers_413_when_the_question_is_too_large(client):
    response = await client.post(URL, json=body("x" * 70_000))
    assert response.status_code == 413
    assert "gateway.max_body_bytes" in response.json()["error"]["message"]


async def test_chat_answers_408_when_the_deadline_passes(client):
    response = await client.post(URL, json=body(max_tokens=400, switchyard={"deadline_ms": 1}))
    assert (response.status_code, response.json()["error"]["code"]) == (408, "deadline_exceeded")


async def test_chat_degrades_when_the_retriever_is_unavailable(client, backends):
    backends.retrieval_error = ComponentUnavailable("retriever", "it died")
    outcome = (await client.post(URL, json=body())).json()["switchyard"]
    assert (outcome["route"], outcome["degraded"]) == ("direct", True)
    assert "the retriever is unavailable" in outcome["reasons"][0]


async def test_chat_answers_503_when_rag_is_pinned_and_the_retriever_is_unavailable(client, backends):
    backends.retrieval_error = ComponentUnavailable("retriever", "it died")
    response = await client.post(URL, json=body(switchyard={"route": "rag"}))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"


async def test_chat_fails_by_policy_when_the_retriever_is_unavailable(backends, config):
    strict = config.model_copy(update={"gateway": config.gateway.model_copy(update={"on_retrieval_error": "fail"})})
    backends.retrieval_error = ComponentUnavailable("retriever", "it died")
    transport = httpx.ASGITransport(app=create_app(backends, strict))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post(URL, json=body())).status_code == 503


async def test_models_lists_auto_and_the_base_model(client):
    listed = (await client.get("/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == ["auto", "tiny"]


async def test_concurrent_questions_get_their_own_answers(client):
    questions = [f"question number {i} about volumes" for i in range(8)]
    together = await asyncio.gather(*(client.post(URL, json=body(question)) for question in questions))
    for question, response in zip(questions, together, strict=True):
        alone = (await client.post(URL, json=body(question))).json()
        assert response.json()["choices"] == alone["choices"]


async def test_an_address_of_a_later_version_says_so(client):
    response = await client.post("/v1/embeddings", json={})
    assert (response.status_code, response.json()["error"]["code"]) == (501, "not_implemented")


async def test_an_unknown_address_is_a_404_in_the_same_shape(client):
    response = await client.get("/nope")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_readyz_names_what_is_missing(client, backends):
    assert (await client.get("/readyz")).json()["ready"] is True
    backends.retrieval_error = ComponentUnavailable("retriever", "it died")
    response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["missing"] == ["retriever"]


async def test_the_playground_loads_nothing_from_elsewhere(client):
    page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; connect-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text
    assert "innerHTML" not in page.text, "answers and documents are shown as text only"


def conversation(**fields):
    turns = [("system", "Be kind."), ("user", "How do volumes work?"), ("assistant", "Well."), ("user", "And secrets?")]
    return body(messages=[{"role": role, "content": content} for role, content in turns], **fields)


def client_with(backends, config, **retriever) -> httpx.AsyncClient:
    changed = config.model_copy(update={"retriever": config.retriever.model_copy(update=retriever)})
    transport = httpx.ASGITransport(app=create_app(backends, changed), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)


@pytest.mark.usefixtures("knowledge")
async def test_a_follow_up_is_searched_with_words_of_its_conversation_and_says_so(client, backends, config):
    outcome = (await client.post(URL, json=conversation())).json()["switchyard"]
    assert backends.queries[-1].text == "And secrets? volumes work"
    assert outcome["reasons"][-1] == "searched for 'And secrets? volumes work' (with words of earlier turns)"
    assert "rewrite" not in outcome["timings_ms"]
    alone = (await client.post(URL, json=body())).json()["switchyard"]
    assert not any("searched for" in reason for reason in alone["reasons"])
    async with client_with(backends, config, followups="off") as as_written:
        outcome = (await as_written.post(URL, json=conversation())).json()["switchyard"]
    assert backends.queries[-1].text == "And secrets?"
    assert not any("searched for" in reason for reason in outcome["reasons"])


REWRITTEN = TokenDelta(" \n What do secrets cost? \nSure.", 9, finish_reason="stop")


def generator_that_rewrites(backends, monkeypatch, *deltas: TokenDelta, error: Exception | None = None):
    """Answers as before; asked to rewrite, it gives `deltas` or fails. Returns the requests it got."""
    requests: list[GenerationRequest] = []
    answer = backends.generate

    async def rewrite():
        for delta in deltas:
            yield delta
        if error is not None:
            raise error

    def generate(request):
        requests.append(request)
        return rewrite() if request.id.endswith("-search") else answer(request)

    monkeypatch.setattr(backends, "generate", generate)
    return requests


@pytest.mark.usefixtures("knowledge")
async def test_a_follow_up_is_rewritten_by_the_generator_where_that_is_set(backends, config, monkeypatch):
    requests = generator_that_rewrites(backends, monkeypatch, REWRITTEN)
    async with client_with(backends, config, followups="generator") as client:
        outcome = (await client.post(URL, json=conversation(switchyard={"route": "rag"}))).json()["switchyard"]
        assert backends.queries[-1].text == "What do secrets cost?"
        assert "searched for 'What do secrets cost?' (by the generator)" in outcome["reasons"]
        assert outcome["timings_ms"]["rewrite"] > 0
        rewrite, answer = requests
        assert (rewrite.sampling.temperature, rewrite.sampling.max_tokens) == (0.0, 48)
        assert rewrite.deadline_s is not None and answer.deadline_s is not None
        assert rewrite.deadline_s <= 10 < answer.deadline_s
        assert "User: How do volumes work?" in rewrite.messages[0].content
        assert "Be kind." not in rewrite.messages[0].content, "system text stays out of the search"
        assert [message.content for message in answer.messages][-1] == "And secrets?", "the prompt is not touched"
        await client.post(URL, json=body())
        assert len(requests) == 3, "a first question has nothing to be rewritten from"


@pytest.mark.parametrize(
    ("deltas", "error"),
    [
        ([TokenDelta(" \n ", 1, finish_reason="stop")], None),
        ([REWRITTEN], ComponentUnavailable("generator", "it died")),
        ([], DeadlineExceeded(10)),
    ],
    ids=["says nothing", "fails", "is too slow"],
)
@pytest.mark.usefixtures("knowledge")
async def test_the_rules_are_used_where_the_generator_gives_no_question(backends, config, monkeypatch, deltas, error):
    generator_that_rewrites(backends, monkeypatch, *deltas, error=error)
    async with client_with(backends, config, followups="generator") as client:
        response = await client.post(URL, json=conversation())
    assert response.status_code == 200, response.text
    assert backends.queries[-1].text == "And secrets? volumes work"
    assert "(with words of earlier turns)" in response.json()["switchyard"]["reasons"][-1]


async def test_a_generator_that_hangs_leaves_most_of_the_deadline_to_the_answer(backends):
    class Hanging(LocalBackends):
        def generate(self, request):
            async def never():
                await asyncio.Event().wait()
                yield ()

            return never()

    hanging = Hanging(backends.retriever, backends.engine, backends.config)
    turns = [Message("user", "How do volumes work?"), Message("user", "And secrets?")]
    found = await search_text("generator", hanging, turns, request_id="r", tenant="", remaining_s=0.2)
    assert found.text == "And secrets? volumes work"


@pytest.mark.usefixtures("knowledge")
async def test_a_real_generator_rewrites_within_its_tokens(backends, config):
    async with client_with(backends, config, followups="generator") as client:
        response = await client.post(URL, json=conversation())
    assert response.status_code == 200, response.text
    assert backends.queries[-1].text.strip()
    assert response.json()["switchyard"]["timings_ms"]["rewrite"] > 0


async def test_a_tenant_s_rewrites_and_answers_share_no_cached_prompt_with_others(backends, monkeypatch):
    requests = generator_that_rewrites(backends, monkeypatch, REWRITTEN)
    turns = [Message("user", "How do volumes work?"), Message("user", "And secrets?")]
    await search_text("generator", backends, turns, request_id="r", tenant="acme", remaining_s=9.0)
    assert [request.cache_salt for request in requests] == ["acme"]


@pytest.mark.parametrize(("weights", "named"), [("auto", None), ("int8", "int8")])
async def test_answer_names_weights_that_were_rounded_by_choice(backends, weights, named):
    config = parse_config({"generator": {"weights": weights}}, "test")
    transport = httpx.ASGITransport(app=create_app(backends, config))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        answer = (await client.post(URL, json=body())).json()
    assert answer["switchyard"]["versions"]["weights"] == named
