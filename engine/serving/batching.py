"""Single calls into batches: what arrives while one batch is computed forms the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches(Generic[Item, Result]):
    """One batch at a time, in the order of arrival, and nobody waits for company.

    Ray Serve's `batch` takes each item from its queue at once where it is not told to wait, and so computes as many
    batches of one as there are callers.
    """

    def __init__(self, compute: Callable[[list[Item]], Awaitable[Sequence[Result]]], *, max_size: int) -> None:
        """`compute` answers at most `max_size` items with as many results, in order."""
        self._compute = compute
        self._max_size = max_size
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The result for this item. Raises: what computing its batch raised."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_size))]
            # Whoever has gone needs no answer.
            batch = [(item, future) for item, future in batch if not future.done()]
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._compute([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
