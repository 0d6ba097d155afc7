"""Bundle token deltas into fewer messages: each message between processes costs about a millisecond of CPU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from engine.generation.protocol import TokenStream
from engine.values import TokenDelta

MAX_DELAY_S = 0.03


async def coalesce(deltas: TokenStream, max_delay_s: float = MAX_DELAY_S) -> AsyncGenerator[list[TokenDelta]]:
    """Yield the first delta at once, then what each `max_delay_s` brought, and the last one without delay.

    An error of `deltas` is raised after what came before it. Closing this iterator closes `deltas`.
    """
    pending: list[TokenDelta] = []
    first = asyncio.Event()

    async def pump() -> None:
        try:
            async for delta in deltas:
                pending.append(delta)
                first.set()
        finally:
            first.set()

    task = asyncio.create_task(pump())
    try:
        await first.wait()
        while True:
            bundle = pending.copy()
            pending.clear()
            if bundle:
                yield bundle
            if task.done() and not pending:
                task.result()
                return
            await asyncio.wait({task}, timeout=max_delay_s)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await deltas.aclose()
