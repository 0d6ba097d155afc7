"""Whole rounds of streamed answers, as their clients see them.

The client is aiohttp's, which takes less of the processor than httpx: it shares that with the server.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from engine.errors import SwitchyardError
from loadtest.closed_loop import closed_loop
from loadtest.measures import Chunk, Served, percentile, tpot_s, ttft_s


@dataclass(frozen=True, slots=True)
class Answered:
    """One complete answer as its client saw it."""

    served: Served
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one system: `c` clients, all questions."""

    answers: tuple[Answered, ...]
    duration_s: float

    def output_tok_s(self) -> float:
        """Generated tokens per second, over the whole round."""
        return sum(answer.num_tokens for answer in self.answers) / self.duration_s

    def ttft_ms(self) -> float:
        """Median time to first token in milliseconds."""
        return 1000 * percentile([answer.served.ttft_s for answer in self.answers], 50)

    def tpot_ms(self) -> float:
        """Median time per output token in milliseconds."""
        return 1000 * percentile([a.served.tpot_s for a in self.answers if a.served.tpot_s is not None], 50)


Ask = Callable[[str], Awaitable[Answered]]


async def ask_all(ask: Ask, questions: Sequence[str], clients: int) -> Round:
    """Every question once, by `clients` that each wait for their answer before they ask again."""
    answers: list[Answered] = []

    async def one(question: str) -> None:
        answers.append(await ask(question))

    duration_s = await closed_loop(questions, clients, one)
    return Round(tuple(answers), duration_s)


def session(url: str) -> aiohttp.ClientSession:
    """A client of the server at `url`; a context manager."""
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(120), connector=aiohttp.TCPConnector(limit=0))


def over_http(http: aiohttp.ClientSession, route: str, *, max_tokens: int) -> Ask:
    """Streamed answers of a server. Raises: SwitchyardError where one is refused or breaks off."""

    async def ask(question: str) -> Answered:
        body = {
            "model": "auto",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "switchyard": {"route": route, "cite": False},
        }
        start = time.perf_counter()
        chunks: list[Chunk] = []
        num_tokens = 0
        async with http.post("/v1/chat/completions", json=body) as response:
            await check(response)
            async for event in _events(response):
                at_s = time.perf_counter() - start
                chunks += [Chunk(at_s, choice["delta"].get("content", "")) for choice in event["choices"]]
                num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        return answered(chunks, num_tokens, time.perf_counter() - start)

    return ask


async def check(response: aiohttp.ClientResponse) -> None:
    """Raises: SwitchyardError where the server refuses."""
    if response.status != 200:
        raise SwitchyardError(f"the server answered {response.status}: {(await response.text())[:300]}")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line == b"data: [DONE]\n":
            return
        if line != b"\n":
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise SwitchyardError(event["error"]["message"])
            yield event
    raise SwitchyardError("a stream ended before it was complete")


def answered(chunks: Sequence[Chunk], num_tokens: int, latency_s: float) -> Answered:
    """What the chunks of a stream and its length say."""
    first_s = ttft_s(chunks)
    return Answered(Served(first_s, tpot_s(latency_s, first_s, num_tokens) if num_tokens > 1 else None), num_tokens)
