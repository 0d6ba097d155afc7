"""Answers of a given form over HTTP, streamed and whole, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import json
import re

import jsonschema
import pytest

URL = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "urgent": {"type": "boolean"}},
    "required": ["name", "urgent"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA, "strict": True}}


def body(text: str = "how do volumes work", **fields):
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 400, **fields}


async def answer(client, **fields) -> tuple[str, str]:
    response = await client.post(URL, json=body(**fields))
    assert response.status_code == 200, response.text
    if not fields.get("stream"):
        choice = response.json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]
    events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line and line != "data: [DONE]"]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    return text, events[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strict", [True, False, None])
async def test_an_answer_matches_the_schema_that_the_request_names(client, stream, strict):
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA, "strict": strict}}
    text, reason = await answer(client, response_format=form, stream=stream)
    assert reason == "stop"
    jsonschema.validate(json.loads(text), SCHEMA)


async def test_streamed_and_whole_answers_are_the_same(client):
    assert await answer(client, response_format=AS_SCHEMA) == await answer(
        client, response_format=AS_SCHEMA, stream=True
    )


async def test_json_object_is_an_object_as_far_as_it_goes(client):
    text, reason = await answer(client, response_format={"type": "json_object"}, max_tokens=60)
    assert text.lstrip().startswith("{")
    if reason == "stop":
        assert isinstance(json.loads(text), dict)


async def test_an_expression_and_a_choice_bind_the_answer(client):
    text, reason = await answer(client, guided_regex="[a-c]{3}-[0-9]{2}")
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", text) and reason == "stop"
    text, reason = await answer(client, guided_choice=["positive", "negative"], response_format={"type": "text"})
    assert text in ("positive", "negative") and reason == "stop"


async def test_an_answer_cut_short_says_length(client):
    text, reason = await answer(client, response_format=AS_SCHEMA, max_tokens=3)
    assert reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


async def test_a_bad_schema_is_a_400_that_names_its_place_and_others_are_answered(client):
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"type": "strin"}}}}}
    streamed = body(response_format=bad, stream=True)
    refused, fine = await asyncio.gather(client.post(URL, json=streamed), client.post(URL, json=body(max_tokens=5)))
    assert refused.status_code == 400 and fine.status_code == 200
    error = refused.json()["error"]
    assert error["message"] == "the schema cannot be used at properties.a: Invalid type: strin."
    assert (error["code"], error["param"]) == ("invalid_grammar", "response_format.json_schema.schema")
