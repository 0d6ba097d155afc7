"""`POST /v1/route`, and chats whose route a learned router decides."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from made_router import artefact, learned

from engine.api.app import create_app
from engine.config import parse_config
from engine.errors import ComponentUnavailable
from engine.generation.adapters.inputs import TrainingInputs
from engine.generation.adapters.status import ServedAdapter
from engine.routing.artefact import ARRAYS_FILE, JSON_FILE, Artefact, write_artefact
from engine.routing.keys import keys_from_json

URL, CHAT = "/v1/route", "/v1/chat/completions"
SHORT, LONG = "how do volumes work", "please tell me how do volumes work here"
# Long questions get passages: the mean number of words is between the two.
MEAN = 6.0


def chat(text: str, **fields):
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}


@pytest.fixture
async def knowledge(client):
    for name in ("volumes", "machines", "secrets"):
        text = f"# {name.title()}\n\nAll about {name}: how {name} work and what they cost."
        done = await client.put(f"/v1/collections/default/documents/docs/{name}.md", json={"text": text})
        assert done.status_code == 200, done.text


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "data" / "router"


async def install(client, backends, folder: Path, signals=("lexical.tokens", "search.best"), **changed) -> Artefact:
    """A router for what is served; `write_artefact` gives it its name."""
    keys = keys_from_json((await client.post(URL, json={"input": "x"})).json()["keys"])
    made = artefact(**{"keys": keys, "signals": signals, "learned": learned(mean=MEAN), **changed})
    written = write_artefact(made, folder)
    await backends.host.check()
    return written


async def outcome(client, text: str, **fields) -> dict:
    response = await client.post(CHAT, json=chat(text, **fields))
    assert response.status_code == 200, response.text
    return response.json()["switchyard"]


async def router_status(client) -> dict:
    response = await client.get("/readyz")
    assert response.status_code == 200
    return response.json()["components"]["router"]


@pytest.mark.usefixtures("knowledge")
async def test_route_decides_gives_the_signals_and_answers_nothing(client, backends, monkeypatch):
    monkeypatch.setattr(backends, "generate", lambda request: pytest.fail("something was generated"))
    response = await client.post(URL, json={"input": [SHORT, "zebras"], "embeddings": True})
    assert response.status_code == 200, response.text
    found = response.json()
    first, second = found["results"]
    assert (first["route"], first["adapter"], found["router"]) == ("rag", None, "score-rule-1")
    assert first["signals"]["lexical.tokens"] == 4 and first["signals"]["search.documents"] == 3
    # Of the three texts all have "work", and none "zebras".
    assert (first["signals"]["lexical.unknown_share"], second["signals"]["lexical.unknown_share"]) == (0, 1)
    assert first["signals"]["search.coherence"] is not None
    assert first["signals"]["search.z_best"] is None, "three chunks have no background"
    assert sum(value * value for value in first["embedding"]) == pytest.approx(1.0, abs=1e-3)
    assert set(found["timings_ms"]) == {"embed", "search", "signals", "route"}
    assert found["arms"] == ["base", "base+context"]


@pytest.mark.usefixtures("knowledge")
async def test_route_keys_are_those_that_outcomes_and_routers_are_made_with(client):
    first = (await client.post(URL, json={"input": "x"})).json()["keys"]
    await client.put("/v1/collections/other/documents/a", json={"text": "something"})
    await client.put("/v1/collections/default/documents/more", json={"text": "something"})
    second = (await client.post(URL, json={"input": "x", "collection": "other"})).json()["keys"]
    third = (await client.post(URL, json={"input": "x"})).json()["keys"]
    assert keys_from_json(first).differences(keys_from_json(third)) == [], "a document changes no key"
    (difference,) = keys_from_json(second).differences(keys_from_json(first))
    assert difference.startswith("index is default/")
    assert first["model"] == "0" * 64 and first["adapters"] == {}


@pytest.mark.usefixtures("knowledge")
async def test_route_leaves_out_what_is_not_asked_for(client):
    found = (await client.post(URL, json={"input": SHORT, "signals": False})).json()["results"][0]
    assert (found["signals"], found["embedding"]) == (None, None)


async def test_route_knows_the_words_and_the_embedding_where_nothing_was_ingested(client):
    found = (await client.post(URL, json={"input": SHORT, "embeddings": True})).json()["results"][0]
    assert found["route"] == "direct" and "the knowledge base is empty" in found["reasons"][0]
    assert found["signals"]["lexical.tokens"] == 4 and found["signals"]["search.best"] is None
    assert len(found["embedding"]) > 1


@pytest.mark.usefixtures("knowledge")
@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"input": []}, 400, "input: holds 0 questions; send 1 to 64"),
        ({"input": ["x"] * 65}, 400, "input: holds 65 questions; send 1 to 64"),
        ({"input": ["x", " "]}, 400, "input: text 1 is empty"),
        ({"input": " "}, 400, "input: is empty"),
        ({"input": 5}, 400, "input: takes a text or a list of texts"),
        ({"input": [["x"]]}, 400, "input: takes a text or a list of texts"),
        ({}, 400, "input: Field required"),
        ({"input": "x", "route": "rag"}, 400, "route: unknown field"),
        ({"input": "x", "top_k": 0}, 400, "top_k"),
        ({"input": "x", "model": "gpt-5"}, 404, "model 'gpt-5' is unknown"),
        ({"input": "x", "collection": "none"}, 404, "collection 'none' is unknown"),
    ],
)
async def test_route_refuses_what_is_wrong_and_says_what_is_right(client, fields, status, message):
    response = await client.post(URL, json=fields)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


@pytest.mark.usefixtures("knowledge")
async def test_route_says_503_where_the_retriever_does_not_answer(client, backends):
    backends.retrieval_error = ComponentUnavailable("retriever", "it died")
    assert (await client.post(URL, json={"input": "x"})).status_code == 503


async def test_route_needs_a_key_and_knows_its_tenants_texts_alone(backends, config):
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    gateway = config.gateway.model_copy(
        update={"api_key_sha256": (*keys.values(),), "key_tenants": {digest: name for name, digest in keys.items()}}
    )
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        assert (await client.post(URL, json={"input": "x"})).status_code == 401
        for name, text in (("one", "ordinary words"), ("two", "the secret merger")):
            auth = {"Authorization": f"Bearer {name}"}
            done = await client.put("/v1/collections/default/documents/a", json={"text": text}, headers=auth)
            assert done.status_code == 200
        shares = {}
        for name in keys:
            auth = {"Authorization": f"Bearer {name}"}
            found = (await client.post(URL, json={"input": "secret merger"}, headers=auth)).json()["results"][0]
            shares[name] = found["signals"]["lexical.unknown_share"]
    assert shares == {"one": 1.0, "two": 0.0}


@pytest.mark.usefixtures("knowledge")
async def test_chat_is_routed_by_the_learned_router_and_names_it(client, backends, folder):
    assert (await outcome(client, SHORT))["versions"]["router"] == "score-rule-1"
    assert not backends.queries[-1].wants_clues, "clues that nobody reads are not made"
    written = await install(client, backends, folder)
    short, long = await outcome(client, SHORT), await outcome(client, LONG)
    assert (short["route"], long["route"]) == ("direct", "rag")
    assert short["versions"]["router"] == long["versions"]["router"] == written.name
    assert 0.5 < long["confidence"] <= 1 and "expected quality: base+context" in long["reasons"][0]
    assert backends.queries[-1].wants_clues
    results = (await client.post(URL, json={"input": [SHORT, LONG]})).json()["results"]
    for result, answered in zip(results, (short, long), strict=True):
        assert {name: result[name] for name in ("route", "adapter", "confidence", "reasons")} == {
            name: answered[name] for name in ("route", "adapter", "confidence", "reasons")
        }
    status = await router_status(client)
    assert (status["name"], status["is_learned"], status["warnings"]) == (written.name, True, [])


@pytest.mark.usefixtures("knowledge")
async def test_chat_pins_its_route_whatever_the_router_would_say(client, backends, folder):
    await install(client, backends, folder)
    pinned = await outcome(client, SHORT, switchyard={"route": "rag"})
    assert (pinned["route"], pinned["confidence"], len(pinned["passages"])) == ("rag", None, 3)
    backends.queries.clear()
    assert (await outcome(client, LONG, switchyard={"route": "direct"}))["route"] == "direct"
    assert backends.queries == []


@pytest.mark.usefixtures("knowledge")
async def test_chat_searches_nothing_where_the_router_is_sure_without(client, backends, folder):
    await install(client, backends, folder, signals=("lexical.tokens", "adapter.max_cosine"))
    backends.queries.clear()
    short = await outcome(client, SHORT)
    assert (short["route"], backends.queries) == ("direct", [])
    assert "embed" in short["timings_ms"] and "search" not in short["timings_ms"]
    long = await outcome(client, LONG)
    assert (long["route"], len(backends.queries), len(long["passages"])) == ("rag", 1, 3)


async def test_chat_is_direct_where_the_passages_that_the_router_wants_are_not_there(client, backends, folder):
    written = await install(client, backends, folder, signals=("lexical.tokens", "adapter.max_cosine"))
    found = await outcome(client, LONG)
    assert (found["route"], found["passages"], found["versions"]["router"]) == ("direct", [], written.name)


@pytest.mark.usefixtures("knowledge")
@pytest.mark.parametrize("signal", ["search.best", "adapter.max_cosine"])
async def test_chat_degrades_under_a_learned_router_too(client, backends, folder, signal):
    await install(client, backends, folder, signals=("lexical.tokens", signal))
    backends.retrieval_error = ComponentUnavailable("retriever", "it died")
    found = await outcome(client, LONG)
    assert (found["route"], found["degraded"]) == ("direct", True)


@pytest.mark.usefixtures("knowledge")
async def test_router_is_replaced_while_it_serves_and_a_broken_one_is_refused(client, backends, folder, tmp_path):
    first = await install(client, backends, folder)
    other = tmp_path / "made"
    second = write_artefact(replace(first, created="2026-02-02T00:00:00+00:00"), other)
    folder.rename(tmp_path / "old")
    other.rename(folder)
    await backends.host.check()
    assert second.name != first.name
    assert (await outcome(client, LONG))["versions"]["router"] == second.name
    whole = (folder / ARRAYS_FILE).read_bytes()
    (folder / ARRAYS_FILE).write_bytes(whole[:-1] + b"x")
    await backends.host.check()
    status = await router_status(client)
    assert status["name"] == second.name and status["is_learned"]
    (warning,) = status["warnings"]
    assert ARRAYS_FILE in warning and f"{second.name} goes on" in warning and str(tmp_path) not in warning
    assert (await outcome(client, LONG))["versions"]["router"] == second.name
    (folder / ARRAYS_FILE).write_bytes(whole)
    os.utime(folder / JSON_FILE)
    await backends.host.check()
    assert (await router_status(client))["warnings"] == []


@pytest.mark.usefixtures("knowledge")
async def test_router_survives_a_moment_without_its_folder_and_ends_when_that_is_gone(client, backends, folder):
    first = await install(client, backends, folder)
    shutil.rmtree(folder)
    await backends.host.check()
    assert (await router_status(client))["name"] == first.name
    await backends.host.check()
    status = await router_status(client)
    assert (status["name"], status["is_learned"], status["warnings"]) == ("score-rule-1", False, [])
    assert (await outcome(client, LONG))["versions"]["router"] == "score-rule-1"


@pytest.mark.usefixtures("knowledge")
async def test_router_of_other_weights_warns_in_readyz_and_in_answers(client, backends, folder):
    keys = keys_from_json((await client.post(URL, json={"input": "x"})).json()["keys"])
    await install(client, backends, folder, keys=replace(keys, model="1" * 64))
    (warning,) = (await router_status(client))["warnings"]
    assert "model is 000000000000..., was 111111111111..." in warning
    assert warning in (await outcome(client, SHORT))["reasons"]


async def test_a_folder_that_is_named_and_holds_no_router_is_told(backends, config, tmp_path):
    settings = config.router.model_copy(update={"artefact": tmp_path / "nowhere"})
    host = type(backends.host)(config.model_copy(update={"router": settings}), backends)
    status = await host.status()
    assert status["ready"] and status["warnings"] == ["the folder that router.artefact names holds no router"]
    host.close()


@pytest.mark.usefixtures("knowledge")
async def test_adapter_is_chosen_by_how_near_the_question_is_to_its_training_inputs(client, backends, folder, encoder):
    near = encoder.encode([LONG], is_query=True).astype(np.float16)
    adapter = ServedAdapter("tone", "5" * 64, None)
    served = [adapter]

    async def served_adapters() -> list[ServedAdapter]:
        return list(served)

    backends.served_adapters = served_adapters
    backends.training[adapter.digest] = TrainingInputs(near, "tiny", backends.retriever.index_info().encoder)
    found = (await client.post(URL, json={"input": LONG})).json()
    assert found["arms"] == ["base", "base+context", "tone", "tone+context"]
    assert found["keys"]["adapters"] == {"tone": "5" * 64}
    assert found["results"][0]["signals"]["adapter.max_cosine.tone"] == pytest.approx(1.0, abs=1e-3)
    signals = ("adapter.max_cosine.tone", "search.best")
    await install(
        client, backends, folder, signals, learned=learned(mean=0.9), arms=("base", "tone"), ranked=("base", "tone")
    )
    found = (await client.post(URL, json={"input": LONG})).json()["results"][0]
    assert (found["route"], found["adapter"]) == ("direct", "tone")
    assert (await router_status(client))["arms"] == ["base", "tone"]
    # Unloaded since the router last looked: the base model answers, and nothing fails.
    served.clear()
    backends.queries.clear()
    for pinned in ("auto", "direct"):
        # Which of two direct arms is better the search may tell, so that a pinned route may need it.
        found = await outcome(client, LONG, switchyard={"route": pinned})
        assert found["adapter"] is None
        assert found["route"] == "direct" or pinned == "auto"
    assert [query.wants_clues for query in backends.queries] == [True, True]


async def test_inputs_of_another_encoder_are_told_and_not_compared(client, backends):
    adapter = ServedAdapter("tone", "5" * 64, None)

    async def served_adapters() -> list[ServedAdapter]:
        return [adapter]

    backends.served_adapters = served_adapters
    backends.training[adapter.digest] = TrainingInputs(np.eye(2, dtype=np.float16), "other-encoder", "e" * 64)
    found = (await client.post(URL, json={"input": "x"})).json()["results"][0]
    assert "adapter.max_cosine.tone" not in found["signals"]
    (warning,) = (await router_status(client))["warnings"]
    assert "adapter 'tone' carries training inputs embedded by other-encoder" in warning


def test_allowed_arms_are_checked_when_the_configuration_is_read():
    assert parse_config({"router": {"arms": ["base", "tone+context"]}}, "test").router.arms == ("base", "tone+context")
    with pytest.raises(Exception, match="arm 'a b' is no arm; write base, base\\+context"):
        parse_config({"router": {"arms": ["a b"]}}, "test")
