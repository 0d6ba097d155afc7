"""`/v1/adapters`, and chats that name an adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from local_backends import LocalBackends
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

from engine.api.app import create_app
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.service import AdapterService

URL = "/v1/adapters"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of the tiny model that answers here."""
    base = write_tiny_model(tmp_path_factory.mktemp("base"))
    home = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("tone", "other")):
        write_tiny_adapter(home / name, base, seed=seed)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data" / "adapters"))


@pytest.fixture
async def client(backends: LocalBackends, config, home: Path) -> AsyncIterator[httpx.AsyncClient]:
    service = AdapterService(backends.engine, AdapterRegistry(home), base_name="tiny")
    backends.adapter_service = service
    transport = httpx.ASGITransport(app=create_app(backends, config), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client
    for info in backends.engine.adapters():  # the engine is shared
        backends.engine.unload_adapter(info.name)


def chat(model: str, **fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "How do I cancel?"}]
    return {"model": model, "messages": messages, "max_tokens": 12, "ignore_eos": True, **fields}


async def text(client: httpx.AsyncClient, model: str) -> str:
    response = await client.post("/v1/chat/completions", json=chat(model))
    assert response.status_code == 200, response.text
    answer: str = response.json()["choices"][0]["message"]["content"]
    return answer


async def test_adapters_are_listed_loaded_used_and_unloaded(client: httpx.AsyncClient):
    listed = (await client.get(URL)).json()
    assert [(card["name"], card["loaded"], card["parent"]) for card in listed["data"]] == [
        ("other", False, "tiny"),
        ("tone", False, "tiny"),
    ]
    card = (await client.post(URL, json={"name": "tone"})).json()
    assert (card["loaded"], card["rank"], card["path"], len(card["digest"])) == (True, 4, "tone", 64)
    assert [each["replicas"] for each in (await client.get(URL)).json()["data"]] == [0, 1]
    models = {entry["id"]: entry for entry in (await client.get("/v1/models")).json()["data"]}
    assert list(models) == ["auto", "tiny", "tone"]
    assert (models["tone"]["parent"], models["tone"]["digest"]) == ("tiny", card["digest"])
    assert models["tiny"]["digest"] == "0" * 64
    answer = (await client.post("/v1/chat/completions", json=chat("tone"))).json()
    outcome = answer["switchyard"]
    assert (answer["model"], outcome["adapter"], outcome["versions"]["adapter"]) == ("tone", "tone", card["digest"])
    assert outcome["reasons"][-1] == "adapter 'tone' named by the request"
    assert answer["choices"][0]["message"]["content"] != await text(client, "auto")
    assert (await client.delete(f"{URL}/tone")).json() == {"name": "tone", "files_deleted": False}
    refused = await client.post("/v1/chat/completions", json=chat("tone"))
    assert refused.status_code == 404
    assert refused.json()["error"]["message"].startswith("model 'tone' is unknown; known: auto, tiny.")


async def test_base_answers_name_no_adapter(client: httpx.AsyncClient):
    await client.post(URL, json={"name": "tone"})
    for model in ("auto", "tiny"):
        outcome = (await client.post("/v1/chat/completions", json=chat(model))).json()["switchyard"]
        assert (outcome["adapter"], outcome["versions"]["adapter"]) == (None, None)


async def test_load_again_serves_the_changed_files(client: httpx.AsyncClient, home: Path):
    first = (await client.post(URL, json={"name": "tone"})).json()
    before = await text(client, "tone")
    shutil.rmtree(home / "tone")
    shutil.copytree(home / "other", home / "tone")
    assert await text(client, "tone") == before
    second = (await client.post(URL, json={"name": "tone"})).json()
    assert second["digest"] != first["digest"]
    after = await text(client, "tone")
    assert after != before
    await client.post(URL, json={"name": "alias", "path": "other"})
    assert await text(client, "alias") == after


@pytest.mark.parametrize("stream", [False, True])
async def test_route_can_be_pinned_beside_an_adapter(client: httpx.AsyncClient, stream: bool):
    await client.post(URL, json={"name": "tone"})
    pinned = chat("tone", stream=stream, switchyard={"route": "direct"})
    response = await client.post("/v1/chat/completions", json=pinned)
    assert response.status_code == 200 and '"adapter":"tone"' in response.text and '"route":"direct"' in response.text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"name": "nope"}, 404, "adapter 'nope' is unknown; known: other, tone"),
        ({"name": "../tone"}, 400, "a name has 1 to 64 letters"),
        ({"name": "auto"}, 400, "is not `auto`"),
        ({"name": "tiny", "path": "tone"}, 400, "the base model has that name"),
        ({"name": "tone", "path": "../../x"}, 400, "lies outside the data folder's adapters/"),
        ({"name": "tone", "path": "/etc"}, 400, "lies outside the data folder's adapters/"),
        ({"name": "tone", "path": "missing"}, 400, "its folder is not there"),
        ({"name": "tone", "rank": 4}, 400, "rank: unknown field"),
        ({"name": "tone", "version": "0" * 12}, 404, "adapter 'tone' has no version '000000000000'; it has: none."),
        ({"name": "tone", "version": "../other"}, 404, "adapter 'tone' has no version '../other'"),
        ({"name": "tone", "version": "0" * 12, "path": "other"}, 400, "path and version both say which files"),
        ({}, 400, "name: Field required"),
    ],
)
async def test_bad_loads_are_refused_and_load_nothing(
    client: httpx.AsyncClient, body: dict[str, object], status: int, message: str
):
    response = await client.post(URL, json=body)
    assert (response.status_code, message in response.json()["error"]["message"]) == (status, True), response.text
    assert not any(card["loaded"] for card in (await client.get(URL)).json()["data"])


async def test_files_are_deleted_only_when_asked_for(client: httpx.AsyncClient, home: Path):
    await client.post(URL, json={"name": "tone"})
    assert (await client.delete(f"{URL}/tone")).status_code == 200
    assert (home / "tone").is_dir()
    assert (await client.delete(f"{URL}/tone")).status_code == 404
    assert (await client.delete(f"{URL}/tone", params={"files": True})).json()["files_deleted"]
    assert not (home / "tone").exists()


async def test_versions_are_listed_loaded_and_gone_back_to(client: httpx.AsyncClient, home: Path):
    registry = AdapterRegistry(home)  # as a trainer has it, in a process of its own
    first, second = registry.add("bot", home / "tone"), registry.add("bot", home / "other")
    card = (await client.post(URL, json={"name": "bot"})).json()
    assert (card["version"], card["path"], card["digest"][:12]) == (second, f"bot/{second}", second)
    assert [(each["version"], each["current"]) for each in card["versions"]] == [(first, False), (second, True)]
    newer = await text(client, "bot")
    card = (await client.post(URL, json={"name": "bot", "version": first})).json()
    assert (card["version"], [each["current"] for each in card["versions"]]) == (first, [True, False])
    older = await text(client, "bot")
    assert older != newer
    assert json.loads((home / "served.json").read_text()) == {"bot": f"bot/{first}"}
    (home / "tone" / "switchyard.json").write_text('{"task": "chat"}')
    third = registry.add("bot", home / "tone")
    card = (await client.get(URL)).json()["data"][0]
    assert (card["version"], card["versions"][-1]["version"], card["versions"][-1]["current"]) == (first, third, True)
    assert await text(client, "bot") == older
    assert (await client.post(URL, json={"name": "bot"})).json()["version"] == third
    assert (await client.delete(f"{URL}/bot", params={"files": True})).status_code == 200
    assert not (home / "bot").exists()


async def test_version_that_is_broken_is_refused_and_the_current_one_goes_on(client: httpx.AsyncClient, home: Path):
    registry = AdapterRegistry(home)
    broken = registry.add("bot", home / "tone")
    (home / "bot" / broken / "adapter_model.safetensors").write_text("damaged")
    good = registry.add("bot", home / "other")
    await client.post(URL, json={"name": "bot"})
    refused = await client.post(URL, json={"name": "bot", "version": broken})
    assert "adapter_model.safetensors is not safetensors" in refused.json()["error"]["message"]
    card = (await client.get(URL)).json()["data"][0]
    assert (card["version"], card["loaded"], card["error"]) == (good, True, None)
    assert registry.versions("bot").current == good


async def test_damaged_list_of_versions_is_named_beside_the_other_adapters(client: httpx.AsyncClient, home: Path):
    AdapterRegistry(home).add("bot", home / "tone")
    (home / "bot" / "versions.json").write_text("{")
    bot, *others = (await client.get(URL)).json()["data"]
    assert "versions.json: cannot be read" in bot["error"] and [card["error"] for card in others] == [None, None]


async def test_cards_show_what_an_adapter_is_for_before_and_after_it_is_loaded(client: httpx.AsyncClient, home: Path):
    labels = [{"name": "fee", "text": "a fee"}, {"name": "card", "text": "a card"}]
    inputs = {"rows": 7, "dimension": 32, "encoder": "tiny", "encoder_digest": "e" * 64, "sha256": "0" * 64}
    about = {"task": "classify", "labels": labels, "verdict": "risky", "metrics": {"accuracy": 0.5}, "inputs": inputs}
    (home / "tone" / "switchyard.json").write_text(json.dumps(about))
    shown = {"task": "classify", "labels": ["fee", "card"], "verdict": "risky", "metrics": {"accuracy": 0.5}}
    shown |= {"num_inputs": 7, "inputs_encoder": "tiny"}
    nothing = {"task": None, "labels": [], "verdict": None, "metrics": {}, "num_inputs": None, "inputs_encoder": None}
    other, tone = (await client.get(URL)).json()["data"]
    assert (tone["loaded"], tone | shown, other | nothing) == (False, tone, other)
    loaded = (await client.post(URL, json={"name": "tone"})).json()
    assert loaded | shown == loaded
    (home / "other" / "switchyard.json").write_text("{")
    other, tone = (await client.get(URL)).json()["data"]
    assert (tone, other | nothing) == (loaded, other)
    refused = (await client.post(URL, json={"name": "other"})).json()["error"]
    assert "switchyard.json is not a JSON object" in refused["message"]
