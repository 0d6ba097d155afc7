"""A generator of two processes on real Ray: it answers as one process does, and lives and dies as one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from running_server import Server, is_alive, start_server
from tiny_adapter import write_tiny_adapter

from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from engine.values import GenerationRequest, Message, SamplingParams

REPOSITORY = Path(__file__).parents[2]
QUESTIONS = ("hello", "How do I cancel?", "Snapshots of a volume are kept for five days. " * 4)
GROUPS = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps(list(ray.util.placement_group_table().values())))
"""


def eventually(holds: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def named(server: Server, title: str) -> list[psutil.Process]:
    found = []
    for process in server.processes():
        try:
            if any(title in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def first_ranks(server: Server) -> list[psutil.Process]:
    return named(server, "ServeReplica:switchyard:Generator")


def other_ranks(server: Server) -> list[psutil.Process]:
    return named(server, "ray::Rank")


def placement_groups(server: Server) -> list[dict[str, Any]]:
    """Those that Ray has created and not removed."""
    (address,) = {
        part.partition("=")[2]
        for process in server.processes()
        for part in process.cmdline()
        if part.startswith("--gcs-address=")
    }
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(server.data / "ray_token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", GROUPS, address], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    groups = json.loads(done.stdout.splitlines()[-1])
    return [group for group in groups if group["state"] == "CREATED"]


def ask(server: Server, model: str, question: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 12, "temperature": 0}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body | {"switchyard": {"route": "direct"}}, timeout=60)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    answer: str = response.json()["choices"][0]["message"]["content"]
    return answer


async def answers_of_one_process(model: Path, adapter: Path) -> list[str]:
    engine = Engine(model, GeneratorSettings(dtype="float32", threads=1, max_model_len=512, kv_tokens=4096))
    try:
        engine.load_adapter("tone", adapter)
        texts = []
        for name in (None, "tone"):
            for question in QUESTIONS:
                request = GenerationRequest(
                    question, (Message("user", question),), sampling=SamplingParams(max_tokens=12), adapter=name
                )
                texts.append("".join([delta.text async for delta in engine.submit(request)]).strip())
        return texts
    finally:
        engine.close()


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_tensor_parallel_generator_is_one_placement_group_that_answers_as_one_process_and_survives_kills(
    tmp_path: Path, tiny_models: tuple[str, ...]
):
    model = Path(tiny_models[1].partition("=")[2])
    adapter = write_tiny_adapter(tmp_path / "data" / "adapters" / "tone", model, seed=1)
    expected = asyncio.run(answers_of_one_process(model, adapter))
    options = ("tensor_parallel=2", "dtype=float32", "threads=1", "kv_tokens=4096")
    settings = [part for option in options for part in ("--set", f"generator.{option}")]
    server = start_server(tmp_path, *tiny_models, *settings)
    try:
        assert len(first_ranks(server)) == len(other_ranks(server)) == 1
        (group,) = placement_groups(server)
        assert group["strategy"] == "STRICT_PACK" and list(group["bundles"].values()) == [{"CPU": 0.5}] * 2

        loaded = httpx.post(f"{server.url}/v1/adapters", json={"name": "tone"}, timeout=60)
        assert loaded.status_code == 200, loaded.text
        found = [text(ask(server, name, question)).strip() for name in ("tiny", "tone") for question in QUESTIONS]
        assert found == expected

        for victims in (other_ranks, first_ranks):  # either takes the other with it, and both come back
            before = [*first_ranks(server), *other_ranks(server)]
            victims(server)[0].kill()
            eventually(lambda before=before: not any(map(is_alive, before)))
            eventually(lambda: ask(server, "tone", QUESTIONS[0]).status_code == 200)
            assert text(ask(server, "tone", QUESTIONS[0])).strip() == expected[len(QUESTIONS)]
            eventually(lambda: len(placement_groups(server)) == 1)
    finally:
        left = server.stop()
    assert not left
