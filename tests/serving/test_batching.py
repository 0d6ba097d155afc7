"""Calls that arrive while a batch is computed form the next one; nobody waits for company or hears another's error."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import ComponentUnavailable
from engine.serving.batching import Batches


class Doubling:
    """Doubles numbers, one batch after another, each when the test says so."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.has_begun = asyncio.Event()
        self.go = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def compute(self, numbers: list[int]) -> list[int]:
        self.seen.append(numbers)
        self.has_begun.set()
        await self.go.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return [2 * number for number in numbers]


async def test_what_arrives_while_a_batch_is_computed_forms_the_next_one():
    doubling = Doubling()
    batches = Batches(doubling.compute, max_size=8)
    first = asyncio.create_task(batches.submit(1))
    await doubling.has_begun.wait()
    others = []
    for number in (2, 3, 4):
        others.append(asyncio.create_task(batches.submit(number)))
        await asyncio.sleep(0.01)  # each comes on its own, as requests do
    doubling.go.release()
    doubling.go.release()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert doubling.seen == [[1], [2, 3, 4]]


async def test_a_batch_holds_no_more_than_it_may():
    doubling = Doubling()
    batches = Batches(doubling.compute, max_size=2)
    for _ in range(3):
        doubling.go.release()
    assert await asyncio.gather(*(batches.submit(number) for number in range(5))) == [0, 2, 4, 6, 8]
    assert doubling.seen == [[0, 1], [2, 3], [4]]


async def test_an_error_reaches_everyone_in_its_batch_and_nobody_after_it():
    doubling = Doubling()
    batches = Batches(doubling.compute, max_size=2)
    doubling.error = ComponentUnavailable("retriever", "it is shutting down")
    doubling.go.release()
    doubling.go.release()
    outcomes = await asyncio.gather(*(batches.submit(number) for number in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ComponentUnavailable, ComponentUnavailable, int]
    doubling.go.release()
    assert await batches.submit(7) == 14


async def test_a_caller_that_leaves_is_not_computed_and_holds_up_nobody():
    doubling = Doubling()
    batches = Batches(doubling.compute, max_size=8)
    leaves_early, stays = (asyncio.create_task(batches.submit(number)) for number in (1, 2))
    await doubling.has_begun.wait()
    leaves_late, kept = (asyncio.create_task(batches.submit(number)) for number in (5, 6))
    await asyncio.sleep(0)
    leaves_early.cancel()
    leaves_late.cancel()
    doubling.go.release()
    doubling.go.release()
    assert await asyncio.gather(stays, kept) == [4, 12]
    assert doubling.seen == [[1, 2], [6]]
    with pytest.raises(asyncio.CancelledError):
        await leaves_late
