"""`POST /v1/classify`: probabilities that transformers with PEFT gives too, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from local_backends import LocalBackends
from tiny_adapter import PeftReference, write_tiny_adapter
from tiny_model import tiny_tokenizer, write_tiny_model

from engine.api.app import create_app
from engine.api.classifying import label_scores
from engine.config import EngineConfig
from engine.generation.adapters.manifest import AdapterManifest, Label
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.service import AdapterService
from engine.values import ContinuationScore, ScoreRequest

URL, CHAT = "/v1/classify", "/v1/chat/completions"
# One label begins like another, so that only the end tells them apart.
LABELS = {"card": "card", "card_arrival": "card arrival", "fee": "a fee", "cash": "cash withdrawal"}
INSTRUCTION = "Name the intent of the message."
TEXTS = ["Where is my new card?", "What do you charge?", "The machine gave me no money."]


def manifest(**changed: Any) -> str:
    labels = [{"name": name, "text": text} for name, text in LABELS.items()]
    return json.dumps({"task": "classify", "labels": labels, "instruction": INSTRUCTION} | changed)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("intents", "other")):
        write_tiny_adapter(home / name, base, seed=seed)
        (home / name / "switchyard.json").write_text(manifest())
    write_tiny_adapter(home / "tone", base, seed=2)
    return home


@pytest.fixture(scope="session")
def reference(base: Path, made: Path) -> PeftReference:
    return PeftReference(base, {"intents": made / "intents"})


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data" / "adapters"))


@pytest.fixture
def service(backends: LocalBackends, home: Path) -> AdapterService:
    backends.adapter_service = AdapterService(backends.engine, AdapterRegistry(home), base_name="tiny")
    return backends.adapter_service


@pytest.fixture
async def client(backends: LocalBackends, config: EngineConfig, service: AdapterService) -> AsyncIterator[Any]:
    transport = httpx.ASGITransport(app=create_app(backends, config), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client
    for info in backends.engine.adapters():  # the engine is shared
        backends.engine.unload_adapter(info.name)


async def classify(client: httpx.AsyncClient, text: object, model: str = "intents", **fields: object) -> dict[str, Any]:
    response = await client.post(URL, json={"model": model, "input": text, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refused(client: httpx.AsyncClient, status: int, **body: object) -> dict[str, Any]:
    response = await client.post(URL, json={"model": "intents", "input": "Hi", **body})
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def expected(reference: PeftReference, text: str, instruction: str, temperature: float) -> dict[str, float]:
    """Each label scored by itself, with the end of the answer behind it."""
    tokenizer = tiny_tokenizer()
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(written, add_special_tokens=False)
    scores = []
    for label in LABELS.values():
        tokens = [*tokenizer.encode(label, add_special_tokens=False), tokenizer.eos_token_id]
        logprobs = reference.logits("intents", prompt + tokens).log_softmax(-1)
        scores.append(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens)))
    shares = (torch.tensor(scores, dtype=torch.float64) / temperature).softmax(0).tolist()
    return dict(zip(LABELS, shares, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
async def test_probabilities_sum_to_1_and_equal_each_label_scored_by_transformers(
    client: httpx.AsyncClient, service: AdapterService, home: Path, reference: PeftReference, temperature: float
):
    (home / "intents" / "switchyard.json").write_text(manifest(temperature=temperature))
    digest = service.load("intents").digest
    answer = await classify(client, TEXTS)
    assert (answer["model"], answer["digest"], len(answer["results"])) == ("intents", digest, len(TEXTS))
    for text, result in zip(TEXTS, answer["results"], strict=True):
        assert list(result["scores"]) == list(LABELS)
        assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-12)
        assert result["scores"] == pytest.approx(expected(reference, text, INSTRUCTION, temperature), abs=1e-4)
        assert result["label"] == max(result["scores"], key=result["scores"].__getitem__)
    assert len({json.dumps(result) for result in answer["results"]}) == len(TEXTS)


async def test_adapter_without_an_instruction_is_asked_under_the_generator_s_system_prompt(
    client: httpx.AsyncClient, service: AdapterService, home: Path, reference: PeftReference, config: EngineConfig
):
    (home / "intents" / "switchyard.json").write_text(manifest(instruction=""))
    service.load("intents")
    (result,) = (await classify(client, TEXTS[0]))["results"]
    assert result["scores"] == pytest.approx(
        expected(reference, TEXTS[0], config.generator.system_prompt, 1.0), abs=1e-4
    )


async def test_more_texts_than_a_batch_holds_are_answered_in_their_order(
    client: httpx.AsyncClient, service: AdapterService, backends: LocalBackends
):
    service.load("intents")
    texts = [f"{text} ({number})" for number in range(14) for text in TEXTS]
    together = (await classify(client, texts))["results"]
    assert [len(request.items) for request in backends.scored] == [32, 10]
    for index in (0, 31, 32, 41):
        (alone,) = (await classify(client, texts[index]))["results"]
        assert together[index]["label"] == alone["label"]
        assert together[index]["scores"] == pytest.approx(alone["scores"], abs=1e-4)


def test_first_label_of_the_manifest_is_taken_where_two_are_equally_likely():
    about = AdapterManifest(task="classify", labels=tuple(Label(name=name, text=name) for name in "abc"))
    assert label_scores(about, [-9.0, -3.0, -3.0]).label == "b"
    assert label_scores(about, [-9000.0, -8000.0, -9000.0]).scores == {"a": 0, "b": 1, "c": 0}


async def test_auto_takes_the_only_adapter_with_labels(client: httpx.AsyncClient, service: AdapterService):
    error = await refused(client, 400, model="auto")
    assert "there are 0: none; tune one: switchyard tune" in error["message"] and error["param"] == "model"
    service.load("tone")
    service.load("intents")
    assert (await classify(client, "Hi", model="auto"))["model"] == "intents"
    service.load("other")
    assert "there are 2: intents, other. Name one." in (await refused(client, 400, model="auto"))["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "gpt"}, 404, "model 'gpt' is unknown; known: auto, intents."),
        ({"model": "other"}, 404, "model 'other' is unknown"),  # there, and not loaded
        ({"model": "tiny"}, 400, "model 'tiny' has no labels; loaded adapters with labels: intents."),
        ({"model": "tone"}, 400, "model 'tone' has no labels"),
        ({"input": []}, 400, "input: holds 0 texts; send 1 to 256"),
        ({"input": ["a"] * 257}, 400, "input: holds 257 texts; send 1 to 256"),
        ({"input": " \n"}, 400, "input: is empty; send a text"),
        ({"input": ["a", "", "b"]}, 400, "input: text 1 is empty; leave it out"),
        ({"input": 5}, 400, "input: takes a text or a list of texts"),
        ({"input": ["a", None]}, 400, "input: takes a text or a list of texts"),
        ({"input": ["a"] * 40 + ["word " * 600]}, 400, "input 40 has "),
        ({"labels": ["x"]}, 400, "labels: unknown field"),
        ({"switchyard": {"route": "rag"}}, 400, "switchyard.route: unknown field"),
    ],
)
async def test_requests_that_cannot_be_answered_say_why(
    client: httpx.AsyncClient, service: AdapterService, body: dict[str, object], status: int, message: str
):
    service.load("intents")
    service.load("tone")
    assert message in (await refused(client, status, **body))["message"]


async def test_text_that_is_too_long_is_named_with_its_size_and_the_limit(
    client: httpx.AsyncClient, service: AdapterService
):
    service.load("intents")
    error = await refused(client, 400, input=["Short.", "word " * 600])
    assert error["message"].startswith("input 1 has ") and "max_model_len=512" in error["message"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_deadline_ends_the_request_naming_it(client: httpx.AsyncClient, service: AdapterService):
    service.load("intents")
    error = await refused(client, 408, input=["word " * 30] * 256, switchyard={"deadline_ms": 20})
    assert "the deadline of 20 ms passed" in error["message"]
    assert await classify(client, "Hi")


async def test_tenants_share_no_cached_prompt(backends: LocalBackends, config: EngineConfig, service: AdapterService):
    service.load("intents")
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("key-a", "key-b")}
    gateway = config.gateway.model_copy(
        update={"api_key_sha256": tuple(keys.values()), "key_tenants": {keys["key-a"]: "a", keys["key-b"]: "b"}}
    )
    app = create_app(backends, config.model_copy(update={"gateway": gateway}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test", timeout=60) as client:
        for key in keys:
            headers = {"Authorization": f"Bearer {key}"}
            body = {"model": "intents", "input": "Hi"}
            assert (await client.post(URL, json=body, headers=headers)).status_code == 200
        assert (await client.post(URL, json=body)).status_code == 401
    assert [request.cache_salt for request in backends.scored] == ["a", "b"]
    backends.engine.unload_adapter("intents")


async def test_adapter_replaced_meanwhile_is_not_asked_for_the_labels_of_the_earlier_one(
    client: httpx.AsyncClient, service: AdapterService, backends: LocalBackends, home: Path, monkeypatch
):
    service.load("intents")
    score = backends.score

    async def replaced(request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        (home / "intents" / "switchyard.json").write_text(manifest(instruction="Another."))
        service.load("intents")
        return await score(request)

    monkeypatch.setattr(backends, "score", replaced)
    error = await refused(client, 503)
    assert "adapter 'intents' was replaced while it was being asked" in error["message"]
    monkeypatch.undo()
    assert await classify(client, "Hi")


def chat(**fields: object) -> dict[str, object]:
    return {"model": "intents", "messages": [{"role": "user", "content": TEXTS[0]}], **fields}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 5}])
async def test_chat_with_such_an_adapter_is_answered_with_a_label_streamed_or_whole(
    client: httpx.AsyncClient, service: AdapterService, backends: LocalBackends, sampling: dict[str, object]
):
    service.load("intents")
    whole = (await client.post(CHAT, json=chat(**sampling))).json()
    answer = whole["choices"][0]["message"]["content"]
    assert answer in LABELS.values() and whole["choices"][0]["finish_reason"] == "stop"
    stream = await client.post(CHAT, json=chat(stream=True, **sampling))
    chunks = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == answer
    outcome = whole["switchyard"]
    assert (outcome["route"], outcome["adapter"], outcome["degraded"]) == ("direct", "intents", False)
    assert outcome["reasons"][0] == "adapter 'intents' labels the text itself"
    assert backends.queries == []


@pytest.mark.parametrize(
    ("fields", "instruction"),
    [
        ({}, INSTRUCTION),
        ({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": TEXTS[0]}]}, "Be kind."),
    ],
)
async def test_instruction_is_the_system_message_unless_the_request_has_one(
    client: httpx.AsyncClient, service: AdapterService, fields: dict[str, object], instruction: str
):
    service.load("intents")
    answer = (await client.post(CHAT, json=chat(**fields))).json()
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": TEXTS[0]}]
    tokens = tiny_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert answer["usage"]["prompt_tokens"] == len(tokens)


async def test_form_of_the_request_s_own_is_the_one_that_counts(client: httpx.AsyncClient, service: AdapterService):
    service.load("intents")

    async def answer(**fields: object) -> str:
        response = await client.post(CHAT, json=chat(max_tokens=12, **fields))
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    assert await answer(guided_choice=["maybe"]) == "maybe"
    assert await answer(guided_regex="[0-9]{3}") not in LABELS.values()
    assert await answer(response_format={"type": "text"}, ignore_eos=True) not in LABELS.values()
    refusal = (await client.post(CHAT, json=chat(ignore_eos=True))).json()["error"]
    assert "ignore_eos contradicts the adapter's labels" in refusal["message"] and refusal["param"] == "ignore_eos"


async def test_pinned_route_is_obeyed_and_other_adapters_are_not_held_to_labels(
    client: httpx.AsyncClient, service: AdapterService, backends: LocalBackends
):
    service.load("intents")
    service.load("tone")
    url = "/v1/collections/default/documents/docs/cards.md"
    assert (await client.put(url, json={"text": "# Cards\n\nA new card comes within a week."})).status_code == 200
    pinned = (await client.post(CHAT, json=chat(switchyard={"route": "rag"}))).json()
    assert pinned["switchyard"]["route"] == "rag" and len(pinned["switchyard"]["passages"]) == 1
    assert pinned["choices"][0]["message"]["content"] in LABELS.values()
    direct = (await client.post(CHAT, json=chat(switchyard={"route": "direct"}))).json()
    assert direct["switchyard"]["reasons"][0] == "route 'direct' pinned by the request"
    backends.queries.clear()
    other = (await client.post(CHAT, json=chat(model="tone", max_tokens=12, ignore_eos=True))).json()
    assert other["choices"][0]["message"]["content"] not in LABELS.values() and len(backends.queries) == 1
