"""The gateway's side: where its generators send the deltas of its answers."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import secrets
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Protocol

from engine.errors import ComponentUnavailable
from engine.serving.deltas.wire import ReplyTo, decode, read_frame
from engine.values import TokenDelta

# Long: a busy gateway may read it late, and every answer of that generator would fail.
_SECRET_S = 30.0
# Deltas and the end of the call come by different ways: for so long the last of them are waited for, where the call
# ended well, and where it failed.
_LAST_FRAME_S, _FAILED_S = 5.0, 0.05

_log = logging.getLogger(__name__)


class Call(Protocol):
    """A call to a generator that ends when its answer is complete, as Ray Serve's handles make it."""

    def __await__(self) -> Generator[Any, None, Any]: ...

    def cancel(self) -> None:
        """Without effect on a call that ended."""


class Answer:
    """The deltas of one answer: an async iterator that ends after the last of them."""

    def __init__(self, reply_to: ReplyTo, receiver: DeltaReceiver) -> None:
        self.reply_to = reply_to
        self._receiver = receiver
        self._deltas: asyncio.Queue[TokenDelta | None] = asyncio.Queue()
        self._call: Call | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_complete = False

    def put(self, delta: TokenDelta | None) -> None:
        """More of the answer; None: no more will come."""
        self._deltas.put_nowait(delta)

    def follow(self, call: Call) -> None:
        """`call` makes the answer; where it raises, so does this iterator, after what came before."""
        self._call = call
        self._ending = asyncio.create_task(self._wait_for_end(call))

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_complete:
            raise StopAsyncIteration
        delta = await self._deltas.get()
        if delta is None:
            assert self._ending is not None
            await self._ending
            raise ComponentUnavailable("generator", "its stream ended before the answer was complete")
        self._is_complete = delta.finish_reason is not None
        return delta

    def cancel(self) -> None:
        """Forget the answer, and end the call where that still runs."""
        self._receiver.forget(self.reply_to.key)
        if self._ending is not None:
            self._ending.cancel()
        if self._call is not None:
            self._call.cancel()

    async def _wait_for_end(self, call: Call) -> None:
        later_s = _FAILED_S
        try:
            await call
            later_s = _LAST_FRAME_S
        finally:
            asyncio.get_running_loop().call_later(later_s, self.put, None)


class DeltaReceiver:
    """Listens on a port of its own. Belongs to one event loop."""

    def __init__(self, host: str) -> None:
        """`host`: the address that generators reach this process by."""
        self._host = host
        self._secret = secrets.token_hex(16)
        self._keys = itertools.count()
        self._answers: dict[int, Answer] = {}
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._connected: dict[asyncio.Task[None] | None, asyncio.WriteTransport] = {}

    async def open(self) -> Answer:
        """An answer that is about to be asked for. Cancel it in the end, also where it is complete."""
        async with self._starting:
            if self._server is None:
                self._server = await asyncio.start_server(self._serve, self._host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        answer = Answer(ReplyTo(self._host, port, self._secret, next(self._keys)), self)
        self._answers[answer.reply_to.key] = answer
        return answer

    def forget(self, key: int) -> None:
        """Deltas of this answer are dropped from now on."""
        self._answers.pop(key, None)

    async def close(self) -> None:
        """Listen no more, and hang up."""
        if self._server is not None:
            self._server.close()
        serving = dict(self._connected)
        for transport in serving.values():
            transport.abort()
        await asyncio.gather(*filter(None, serving))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._connected[task] = writer.transport
        try:
            async with asyncio.timeout(_SECRET_S):
                said = await read_frame(reader)
            if not hmac.compare_digest(said, self._secret.encode()):
                return
            while True:
                for key, delta in decode(await read_frame(reader)):
                    if (answer := self._answers.get(key)) is not None:
                        answer.put(delta)
        except (EOFError, ConnectionError, TimeoutError):
            pass  # the end of the generator, of which its calls tell
        except ValueError as error:
            _log.warning("a connection from a generator is closed: %s", str(error)[:200])
        finally:
            del self._connected[task]
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
