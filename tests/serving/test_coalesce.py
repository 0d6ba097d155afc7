"""Deltas travel in bundles: the first at once, the last without delay, an error after what came before it."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import ComponentUnavailable
from engine.serving.coalesce import coalesce
from engine.values import TokenDelta

LONG_S = 60.0


class Source:
    """An async stream fed by the test, which knows whether it was closed."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[TokenDelta | Exception | None] = asyncio.Queue()
        self.closed = False

    async def stream(self):
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True

    def put(self, *texts: str, last: bool = False) -> None:
        for text in texts:
            self.queue.put_nowait(TokenDelta(text, 1))
        if last:
            self.queue.put_nowait(TokenDelta("", 0, finish_reason="stop"))
            self.queue.put_nowait(None)


def texts(bundle):
    return "".join(delta.text for delta in bundle)


async def test_first_delta_is_sent_at_once_and_the_last_without_delay():
    source = Source()
    bundles = coalesce(source.stream(), max_delay_s=LONG_S)
    source.put("a")
    async with asyncio.timeout(5):
        assert texts(await anext(bundles)) == "a"
        source.put("b", "c", last=True)
        bundle = await anext(bundles)
        assert (texts(bundle), bundle[-1].finish_reason) == ("bc", "stop")
        with pytest.raises(StopAsyncIteration):
            await anext(bundles)


async def test_deltas_between_are_bundled_by_time():
    source = Source()
    bundles = coalesce(source.stream(), max_delay_s=0.01)
    source.put("a")
    await anext(bundles)
    source.put("b", "c", "d")
    assert texts(await anext(bundles)) == "bcd"
    source.put("e", last=True)
    rest = [texts(bundle) async for bundle in bundles]
    assert "".join(rest) == "e"


async def test_an_error_is_raised_after_what_came_before_it():
    source = Source()
    source.put("a")
    source.queue.put_nowait(ComponentUnavailable("generator", "it died"))
    seen = []
    with pytest.raises(ComponentUnavailable):
        async for bundle in coalesce(source.stream(), max_delay_s=0.01):
            seen.append(texts(bundle))
    assert "".join(seen) == "a"


async def test_closing_the_bundles_closes_the_stream_behind_them():
    source = Source()
    bundles = coalesce(source.stream(), max_delay_s=LONG_S)
    source.put("a")
    await anext(bundles)
    await bundles.aclose()
    assert source.closed
