"""Searches beside answers take turns, and leave them most of the time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable

import httpx
import pytest

from engine.api.search_turns import SearchTurns
from engine.config import parse_config
from engine.errors import Overloaded, SearchTooLate


class Server:
    """A clock whose timers go off when a test moves it, and searches that a test begins and ends."""

    def __init__(self, *, profile: str = "cpu", max_queued_queries: int = 256, **gateway: object) -> None:
        self.now_s = 0.0
        self.is_answering = True
        self.begun: list[str] = []
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._ends: dict[str, asyncio.Event] = {}
        retriever = {"max_queued_queries": max_queued_queries}
        config = parse_config({"profile": profile, "gateway": gateway, "retriever": retriever}, "test")
        self.turns = SearchTurns(config, lambda: self.is_answering, lambda: self.now_s, self._call_later)

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._timers.append((self.now_s + delay_s, call))

    async def ask(self, name: str, num_queries: int = 1) -> asyncio.Task[None]:
        """A search that runs, once it has begun, until `end`."""
        self._ends[name] = asyncio.Event()
        task = asyncio.create_task(self._search(name, num_queries))
        await settled()
        return task

    async def _search(self, name: str, num_queries: int) -> None:
        async with self.turns.take(num_queries):
            self.begun.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str, after_s: float = 0.0) -> None:
        await self.wait(after_s)
        for name in names:
            self._ends[name].set()
        await settled()

    async def wait(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while due := [each for each in self._timers if each[0] <= until_s]:
            first = min(due, key=lambda each: each[0])
            self._timers.remove(first)
            self.now_s = first[0]
            first[1]()
            await settled()
        self.now_s = until_s

    async def wait_for_timer(self) -> None:
        await self.wait(min(at_s for at_s, _ in self._timers) - self.now_s)


async def settled() -> None:
    """Whatever needs no time has been done; a request over HTTP takes some dozens of turns of the loop."""
    for _ in range(200):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def ended(*tasks: asyncio.Task[None]):
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_searches_go_as_they_come_while_nothing_is_answered():
    server = Server(search_share=0.25)
    server.is_answering = False
    async with ended(*[await server.ask(name) for name in "abc"]):
        assert server.begun == ["a", "b", "c"]
        await server.end("a", "b", "c", after_s=1.0)
        async with ended(await server.ask("d")):
            assert server.begun[-1] == "d"


async def test_search_beside_answers_rests_three_times_as_long_as_the_last_one_took():
    server = Server(search_share=0.25)
    async with ended(await server.ask("a")):
        await server.end("a", after_s=0.1)
        async with ended(await server.ask("b")):
            await server.wait(0.29)
            assert server.begun == ["a"]
            await server.wait(0.02)
            assert server.begun == ["a", "b"]


async def test_those_that_wait_begin_together_when_the_turn_before_and_its_rest_are_over():
    server = Server(search_share=0.5)
    async with ended(*[await server.ask(name) for name in "abc"]):
        assert server.begun == ["a"]
        await server.end("a", after_s=0.05)
        assert server.begun == ["a"]
        await server.wait(0.06)
        assert server.begun == ["a", "b", "c"]


async def test_no_more_begin_together_than_one_turn_has_time_for_and_a_large_one_goes_alone():
    server = Server(search_share=0.5)
    names = [f"b{number}" for number in range(4)]
    async with ended(
        await server.ask("a"), *[await server.ask(name) for name in names], await server.ask("large", num_queries=99)
    ):
        await server.end("a", after_s=0.04)  # so that two fit into a turn
        await server.wait(0.05)
        assert server.begun[1:] == ["b0", "b1"]
        await server.end("b0", "b1", after_s=0.07)
        await server.wait(0.1)
        assert server.begun[3:] == ["b2", "b3"]
        await server.end("b2", "b3", after_s=0.07)
        await server.wait(0.12)
        assert server.begun[5:] == ["large"]


async def test_after_a_search_that_took_minutes_others_rest_for_seconds():
    server = Server(search_share=0.25)
    async with ended(await server.ask("a"), await server.ask("b")):
        await server.end("a", after_s=300)
        await server.wait(2.01)
        assert server.begun == ["a", "b"]


async def test_search_that_would_begin_too_late_is_refused_with_the_time_to_come_back():
    server = Server(search_share=0.25, max_ttft_ms=1000)
    async with ended(await server.ask("a")):
        await server.end("a", after_s=0.05)
        async with ended(*[await server.ask(name) for name in "bcd"]):
            # Three of 50 ms in a quarter of the time, after the rest of 150 ms.
            refused = await server.ask("e")
            with pytest.raises(
                SearchTooLate, match=r"after 0\.8 s \(3 queries wait.*gateway\.max_ttft_ms=1000"
            ) as error:
                await refused
            assert error.value.retry_after_s == 1


async def test_without_an_objective_searches_are_refused_by_their_number_alone():
    server = Server(search_share=0.25, max_queued_queries=3)
    async with ended(await server.ask("a"), *[await server.ask(name) for name in "bcd"]):
        refused = await server.ask("e")
        with pytest.raises(Overloaded, match=r"queue of searches is full \(3 waiting\).*retriever\.max_queued_queries"):
            await refused


async def test_client_that_leaves_while_it_waits_holds_up_nobody():
    server = Server(search_share=0.5)
    async with ended(await server.ask("a"), await server.ask("c")):
        left = await server.ask("b")
        left.cancel()
        await server.end("a", after_s=0.1)
        await server.wait(0.11)
        assert server.begun == ["a", "c"]
        # And one that leaves in the moment in which its turn comes.
        late = await server.ask("d")
        await server.end("c", after_s=0.1)
        server.now_s += 0.2
        server.turns._next_turn()
        late.cancel()
        await settled()
        server.is_answering = False
        async with ended(await server.ask("e")):
            assert server.begun == ["a", "c", "e"]


async def test_search_that_fails_ends_its_turn():
    server = Server(search_share=0.5)
    with pytest.raises(RuntimeError):
        async with server.turns.take(1):
            server.now_s += 0.1
            raise RuntimeError
    async with ended(await server.ask("b")):
        await server.wait(0.11)
        assert server.begun == ["b"]


async def test_several_gateways_each_give_their_part_of_the_share():
    server = Server(search_share=0.5, num_replicas=2)
    async with ended(await server.ask("a"), await server.ask("b")):
        await server.end("a", after_s=0.1)
        await server.wait(0.29)
        assert server.begun == ["a"]
        await server.wait(0.02)
        assert server.begun == ["a", "b"]


async def test_on_a_gpu_searches_wait_for_nobody_unless_told_to():
    server = Server(profile="gpu")
    async with ended(*[await server.ask(name) for name in "ab"]):
        assert server.begun == ["a", "b"]
    server = Server(profile="gpu", search_share=0.5)
    async with ended(*[await server.ask(name) for name in "ab"]):
        assert server.begun == ["a"]


async def test_flood_of_searches_gets_its_share_and_no_more():
    server, busy_s = Server(search_share=0.25), 0.0
    async with contextlib.AsyncExitStack() as stack:
        for number in range(100):
            await stack.enter_async_context(ended(await server.ask(f"{number}")))
        for _ in range(100):
            num_ended = len(server.begun)
            if num_ended == 100:
                break
            await server.end(*server.begun, after_s=0.04)
            busy_s += 0.04
            await server.wait_for_timer()
            assert len(server.begun) > num_ended
    assert busy_s / server.now_s == pytest.approx(0.25, abs=0.01)


@pytest.fixture
def held(backends, monkeypatch) -> dict[str, asyncio.Event]:
    """Searches by their text, each set when it reached the retriever; they go on when `go` is set."""
    reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
    evidence = backends.evidence

    async def slow(query):
        reached[query.text].set()
        await reached["go"].wait()
        return await evidence(query)

    monkeypatch.setattr(backends, "evidence", slow)
    return reached


async def test_search_over_http_waits_for_the_one_before_it_only_while_a_chat_request_is_answered(client, held):
    def search(text: str, **more: int) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(client.post("/v1/search", json={"query": text, **more}))

    chat = {"model": "auto", "messages": [{"role": "user", "content": "chat"}], "max_tokens": 2}
    asked = [search("first"), search("second")]
    async with asyncio.timeout(30):
        await held["first"].wait()
        await held["second"].wait()
        asked.append(asyncio.create_task(client.post("/v1/chat/completions", json=chat)))
        await held["chat"].wait()
        asked.append(search("third"))
        await settled()
        assert not held["third"].is_set()
        asked.append(search("for a version", min_version=1))
        await held["for a version"].wait()
        assert not held["third"].is_set()
        held["go"].set()
        assert [(await each).status_code for each in asked] == [404, 404, 200, 404, 404]  # there is no collection
    assert held["third"].is_set()
