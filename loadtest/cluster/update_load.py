"""Requests that go on while a service is updated: streamed and whole, direct and with passages, base and adapters."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest.open_loop.arrivals import draw, parse_shape

# Longer than the server's default deadline of 120 s, so that it is the server that gives up on an answer.
TIMEOUT_S = 180.0
# Longer than any run; it ends with `stop`.
_RUN_S = 1800


@dataclass(frozen=True, slots=True)
class Kind:
    """What a request asks: a model by name, on a route, and whether as a stream."""

    model: str
    route: str
    is_stream: bool

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.model} {self.route} {'streamed' if self.is_stream else 'whole'}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. Times are `time.time()`; `error` says what was wrong, None of a complete answer.

    `adapter` is the digest that the answer names as the version of its adapter.
    """

    kind: Kind
    begun_s: float
    end_s: float
    status: int | None
    error: str | None
    text: str = ""
    adapter: str | None = None
    router: str | None = None
    is_degraded: bool = False

    @property
    def latency_s(self) -> float:
        """From the moment at which it was due."""
        return self.end_s - self.begun_s


class UpdateLoad(threading.Thread):
    """Sends requests by Poisson until `stop`, answered or not, each with a question of its own kind."""

    def __init__(self, url: str, kinds: Sequence[Kind], *, rate: float, max_tokens: int, seed: int = 0) -> None:
        """`rate`: requests/s. `max_tokens`: every answer has so many, or what its model's length leaves."""
        super().__init__(name="load", daemon=True)
        self.answers: list[Answer] = []
        self.num_streams = 0  # on their way
        self._url = url
        self._kinds = kinds
        self._arrivals = draw(parse_shape(f"constant:{rate}x{_RUN_S}s"), "poisson", seed)
        self._random = random.Random(seed)
        self._max_tokens = max_tokens
        self._stopping = threading.Event()

    def run(self) -> None:
        asyncio.run(self._send_all())

    def stop(self) -> list[Answer]:
        """Send no more, and return what became of all once the last is answered."""
        self._stopping.set()
        self.join(timeout=TIMEOUT_S + 10)
        return sorted(self.answers, key=lambda each: each.begun_s)

    async def _send_all(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_S, trust_env=False, limits=limits) as http,
            asyncio.TaskGroup() as sent,
        ):
            begun = time.time()
            for arrival in self._arrivals:
                due = begun + arrival.at_s
                if await asyncio.to_thread(self._stopping.wait, max(due - time.time(), 0.0)):
                    return
                sent.create_task(self._one(http, self._random.choice(self._kinds), due))

    async def _one(self, http: httpx.AsyncClient, kind: Kind, due: float) -> None:
        self.num_streams += kind.is_stream
        self.answers.append(await ask(http, kind, self._max_tokens, due))
        self.num_streams -= kind.is_stream


async def ask(http: httpx.AsyncClient, kind: Kind, max_tokens: int, due: float) -> Answer:
    """Send one request, and read its answer to the end."""
    body = {
        "model": kind.model,
        "messages": [{"role": "user", "content": "How do volumes of a region work?"}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": kind.is_stream,
        "switchyard": {"route": kind.route, "cite": False},
    }
    try:
        if kind.is_stream:
            return await _streamed(http, kind, body, due)
        answer = await http.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return Answer(kind, due, time.time(), answer.status_code, answer.text[:300])
        return _read(kind, due, [answer.json()], "message")
    except (httpx.HTTPError, ValueError, LookupError) as error:
        return Answer(kind, due, time.time(), None, f"{type(error).__name__}: {error}")


async def _streamed(http: httpx.AsyncClient, kind: Kind, body: dict[str, Any], due: float) -> Answer:
    chunks: list[dict[str, Any]] = []
    is_done = False
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return Answer(kind, due, time.time(), response.status_code, (await response.aread()).decode()[:300])
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ") if line.startswith("data: ") else ""
            if data == "[DONE]":
                is_done = True
            elif data:
                chunks.append(json.loads(data))
    for chunk in chunks:
        if "error" in chunk:
            return Answer(kind, due, time.time(), 200, str(chunk["error"]["message"]))
    if not is_done:
        return Answer(kind, due, time.time(), 200, f"cut off after {len(chunks)} events")
    return _read(kind, due, chunks, "delta")


def _read(kind: Kind, due: float, parts: list[dict[str, Any]], field: str) -> Answer:
    """A complete answer, from its one body or its chunks."""
    choices = [choice for part in parts for choice in part["choices"]]
    told = [part["switchyard"] for part in parts if part.get("switchyard")]
    text = "".join(choice[field].get("content") or "" for choice in choices)
    if not any(choice.get("finish_reason") for choice in choices):
        return Answer(kind, due, time.time(), 200, "has no finish_reason", text)
    versions = told[-1]["versions"]
    return Answer(
        kind,
        due,
        time.time(),
        200,
        None,
        text,
        adapter=versions["adapter"],
        router=versions["router"],
        is_degraded=any(each["degraded"] for each in told),
    )
