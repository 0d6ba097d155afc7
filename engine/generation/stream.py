"""The bridge from the engine's thread to a caller's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from engine.values import TokenDelta

# A delta, the error that ends the answer, or None: cancelled by its id.
Item = TokenDelta | Exception | None


class Mailbox:
    """Where one request's deltas go. Holds at most one item per token, so a slow reader stops nobody."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[Item] = asyncio.Queue()


def post(letters: Iterable[tuple[Mailbox, Item]]) -> list[Mailbox]:
    """Deliver from any thread, waking each event loop once. Returns the mailboxes whose loop is closed."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Item]]] = {}
    for mailbox, item in letters:
        by_loop.setdefault(mailbox.loop, []).append((mailbox, item))
    unreachable: list[Mailbox] = []
    for loop, batch in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put_all, batch)
        except RuntimeError:  # closed with requests in flight
            unreachable += [mailbox for mailbox, _ in batch]
    return unreachable


def _put_all(batch: list[tuple[Mailbox, Item]]) -> None:
    for mailbox, item in batch:
        mailbox.items.put_nowait(item)


class DeltaStream:
    """Async iterator over one answer (TokenStream). The engine holds its mailbox only, so dropping it is noticed."""

    def __init__(self, mailbox: Mailbox, release: Callable[[], None], timer: asyncio.TimerHandle | None) -> None:
        """`release` frees the request's place and does nothing once the answer is complete."""
        self._mailbox = mailbox
        self._release = release
        self._timer = timer
        self._is_open = True

    def __aiter__(self) -> DeltaStream:
        return self

    async def __anext__(self) -> TokenDelta:
        if not self._is_open:
            raise StopAsyncIteration
        try:
            item = await self._mailbox.items.get()
        except asyncio.CancelledError:
            self._close()
            raise
        if isinstance(item, TokenDelta):
            if item.finish_reason is not None:
                self._close()
            return item
        self._close()
        if item is None:
            raise StopAsyncIteration
        raise item

    async def aclose(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            if self._timer is not None:
                self._timer.cancel()
            self._release()

    def __del__(self) -> None:
        with suppress(AttributeError):  # an __init__ that did not get far
            self._close()
