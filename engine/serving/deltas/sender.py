"""The generator's side: answers of one gateway share a connection, and what comes at a time shares a frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from engine.errors import ComponentUnavailable
from engine.generation.protocol import TokenStream
from engine.serving.deltas.wire import ReplyTo, encode, pack
from engine.values import TokenDelta

# A reader sees nothing of the first; what waits longer comes in visible jerks.
_MIN_DELAY_S, _MAX_DELAY_S = 0.04, 0.1
# Of all answers to one gateway: every event costs it CPU, however little is in it.
_EVENTS_PER_S = 400
_CONNECT_S = 5.0
# What a gateway may have unread before its answers wait.
_MAX_UNSENT_BYTES = 4 << 20


def delay_s(num_answers: int) -> float:
    """For how long deltas of `num_answers` answers to a gateway are kept to be sent together."""
    return min(max(num_answers / _EVENTS_PER_S, _MIN_DELAY_S), _MAX_DELAY_S)


class DeltaSender:
    """The connections of one generator. Belongs to one event loop."""

    def __init__(self, delay_s: Callable[[int], float] = delay_s) -> None:
        """`delay_s`: the first delta of an answer and the last are sent at once, others together after so long."""
        self._delay_s = delay_s
        self._connections: dict[tuple[str, int, str], _Connection] = {}
        self._connecting = asyncio.Lock()

    async def send(self, deltas: TokenStream, reply_to: ReplyTo) -> None:
        """Send a whole answer. Closes `deltas`, also where this is cancelled.

        Raises: ComponentUnavailable where the gateway cannot be reached or is gone; what `deltas` raises.
        """
        try:
            connection = await self._connection(reply_to)
            connection.num_answers += 1
            try:
                async for delta in deltas:
                    await connection.put(reply_to.key, delta)
            finally:
                connection.num_answers -= 1
                connection.flush()  # what came before an error
        finally:
            await deltas.aclose()

    async def close(self) -> None:
        """Hang up on every gateway."""
        for connection in self._connections.values():
            await connection.close()

    async def _connection(self, reply_to: ReplyTo) -> _Connection:
        async with self._connecting:
            found = self._connections.get(reply_to.gateway)
            if found is None or found.is_lost:
                for gone in [key for key, each in self._connections.items() if each.is_lost]:
                    del self._connections[gone]
                found = self._connections[reply_to.gateway] = await _connect(reply_to, self._delay_s)
            return found


class _Connection:
    """One gateway."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: Callable[[int], float]
    ) -> None:
        self._writer = writer
        self._delay_s = delay_s
        self.num_answers = 0
        self._unsent: dict[int, list[TokenDelta]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.is_lost = False
        self._watching = asyncio.create_task(self._watch(reader))

    async def put(self, key: int, delta: TokenDelta) -> None:
        """Send it, at once or within the delay. Raises: ComponentUnavailable when the gateway is gone."""
        if self.is_lost:
            raise ComponentUnavailable("gateway", "it does not take the answer any more")
        self._unsent.setdefault(key, []).append(delta)
        if delta.prompt is not None or delta.finish_reason is not None:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s(self.num_answers), self.flush)
        if self._writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            with suppress(ConnectionError):
                await self._writer.drain()

    def flush(self) -> None:
        """Send what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unsent and not self.is_lost:
            self._writer.write(pack(encode(self._unsent)))
        self._unsent.clear()

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._watching

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            await reader.read(1)  # a gateway says nothing, so this is its end
        self.is_lost = True
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


async def _connect(reply_to: ReplyTo, delay_s: Callable[[int], float]) -> _Connection:
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(reply_to.host, reply_to.port)
    except OSError as error:  # a timeout too
        where = f"{reply_to.host}:{reply_to.port}"
        raise ComponentUnavailable("gateway", f"its generator cannot reach it on {where} ({error})") from None
    writer.write(pack(reply_to.secret.encode()))
    return _Connection(reader, writer, delay_s)
