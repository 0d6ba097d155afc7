"""Two replicas of the generator on real Ray, with the adapters of one data folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from running_server import Server, start_server
from tiny_adapter import write_tiny_adapter
from tiny_model import write_tiny_model

NUM_ASKED = 12


def replicas(server: Server, deployment: str) -> list[psutil.Process]:
    found = []
    for process in server.processes():
        try:
            if any(f"ServeReplica:switchyard:{deployment}" in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def generators(server: Server) -> list[psutil.Process]:
    return replicas(server, "Generator")


def ready(server: Server) -> dict:
    return httpx.get(f"{server.url}/readyz", timeout=60).json()


def eventually(holds: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def load(server: Server, name: str, **fields: str) -> dict:
    response = httpx.post(f"{server.url}/v1/adapters", json={"name": name, **fields}, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def card(server: Server, name: str) -> dict:
    cards = httpx.get(f"{server.url}/v1/adapters", timeout=60).json()["data"]
    return next(each for each in cards if each["name"] == name)


def ask(server: Server, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body | {"switchyard": {"route": "direct"}}, timeout=60)


def digests(server: Server, model: str) -> set[str]:
    """Of the adapters that answered many requests, most of them where the adapter has a slot."""
    answers = [ask(server, model) for _ in range(NUM_ASKED)]
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    return {answer.json()["switchyard"]["versions"]["adapter"] for answer in answers}


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_two_replicas_serve_the_same_adapters_through_load_replace_unload_and_a_kill(tmp_path: Path, tiny_models):
    base = write_tiny_model(tmp_path / "base")
    made = [write_tiny_adapter(tmp_path / f"made{seed}", base, seed=seed) for seed in range(2)]
    wide = write_tiny_adapter(tmp_path / "wide", base, seed=3, rank=16)
    home = tmp_path / "data" / "adapters"
    shutil.copytree(made[0], home / "tone")
    shutil.copytree(made[1], home / "news")
    shutil.copytree(wide, home / "wide")
    options = ("--set", "generator.num_replicas=2", "--set", "generator.threads=1")
    server = start_server(tmp_path, *tiny_models, *options, "--set", "generator.max_adapter_rank=8")
    try:
        status = ready(server)["components"]["generator"]
        assert (status["replicas"], status["num_replicas"], len(generators(server))) == (2, 2, 2)

        first = load(server, "tone")
        assert (first["replicas"], first["loaded"]) == (2, True)
        assert digests(server, "tone") == {first["digest"]}
        assert ready(server)["components"]["generator"]["output_tokens"] > 0
        models = [entry["id"] for entry in httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"]]
        assert models == ["auto", "tiny", "tone"]

        shutil.rmtree(home / "tone")
        shutil.copytree(made[1], home / "tone")
        second = load(server, "tone")
        assert second["digest"] != first["digest"]
        assert digests(server, "tone") == {second["digest"]}

        refused = httpx.post(f"{server.url}/v1/adapters", json={"name": "wide"}, timeout=60)
        assert refused.status_code == 400 and "its rank r=16" in refused.json()["error"]["message"]

        load(server, "news")
        assert httpx.delete(f"{server.url}/v1/adapters/news", timeout=120).status_code == 200
        assert {ask(server, "news").status_code for _ in range(NUM_ASKED)} == {404}

        (owner,) = replicas(server, "Adapters")
        owner.kill()
        assert digests(server, "tone") == {second["digest"]}
        eventually(lambda: httpx.get(f"{server.url}/v1/adapters", timeout=60).status_code == 200)
        eventually(lambda: card(server, "tone")["replicas"] == 2)

        victim = generators(server)[0]
        victim.kill()
        loaded = load(server, "news")  # a dead replica is not waited for, one that starts may be
        eventually(lambda: len(generators(server)) == 2 and victim.pid not in [p.pid for p in generators(server)])
        eventually(lambda: ready(server)["components"].get("generator", {}).get("replicas") == 2)
        eventually(lambda: (card(server, "tone")["replicas"], card(server, "news")["replicas"]) == (2, 2))
        assert digests(server, "tone") == {second["digest"]} and digests(server, "news") == {loaded["digest"]}
    finally:
        left = server.stop()
    assert not left


def say(server: Server, turns: list[dict], text: str) -> int:
    """Ask in a conversation, which grows by question and answer. Returns tokens of the prompt that were cached."""
    turns.append({"role": "user", "content": text})
    body = {"model": "tiny", "messages": turns, "max_tokens": 8, "switchyard": {"route": "direct"}}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    turns.append({"role": "assistant", "content": response.json()["choices"][0]["message"]["content"]})
    usage = response.json()["usage"]
    return (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_turns_of_a_conversation_meet_their_cache_and_conversations_use_both_replicas(tmp_path: Path, tiny_models):
    server = start_server(tmp_path, *tiny_models, "--set", "generator.num_replicas=2", "--set", "generator.threads=1")
    try:
        talks: list[list[dict]] = [[] for _ in range(8)]
        first = [say(server, turns, f"{number} " * 100) for number, turns in enumerate(talks)]
        least = 100 + max(first)  # cached tokens that only the conversation's own first turn explains
        for question in ("and then?", "and after that?"):
            again = [say(server, turns, question) for turns in talks]
            assert min(again) > least, (first, again)
        # What one of them had is gone with it, and only that.
        generators(server)[0].kill()
        left = [say(server, turns, "and now?") > least for turns in talks]
        assert any(left) and not all(left)
    finally:
        processes = server.stop()
    assert not processes


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_server_with_autoscaling_starts_the_least_generators_and_the_owner_of_their_adapters(
    tmp_path: Path, tiny_models
):
    scaled = ("--set", "generator.autoscaling.max_replicas=2", "--set", "generator.threads=1")
    server = start_server(tmp_path, *tiny_models, *scaled)
    try:
        status = ready(server)["components"]["generator"]
        assert (status["replicas"], status["num_replicas"], len(generators(server))) == (1, 1, 1)
        assert len(replicas(server, "Adapters")) == 1
        assert ask(server, "tiny").status_code == 200
    finally:
        left = server.stop()
    assert not left
