"""Clients that ask again as soon as they are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def closed_loop(items: Sequence[Item], clients: int, work: Callable[[Item], Awaitable[None]]) -> float:
    """Each of `clients` takes the next item when its last one is done. Returns the seconds until all are done."""
    waiting = iter(items)

    async def client() -> None:
        for item in waiting:
            await work(item)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started
