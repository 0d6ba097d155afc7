"""Searches beside answers: they take turns, so that many cheap ones do not take the cores that answers are computed on.

Answers are refused when there are too many (`admission`), and what a refused one would have used is free for more
searches: without a limit a flood of both ends with searches alone. An answer's own search is part of it and waits for
nobody here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from engine.api.admission import SURE_SHARE
from engine.config import EngineConfig
from engine.errors import Overloaded, SearchTooLate

# As many searches go together as were done in this time. More of them in one batch cost less each, and an answer's own
# search may have to wait for it.
_TURN_S = 0.1
# After one that took very long others do not wait in proportion.
_MAX_REST_S = 2.0
# Weight of the last turn in what a query takes.
_LEARNING_RATE = 0.2


class _Waiting(NamedTuple):
    begun: asyncio.Future[None]
    num_queries: int


class SearchTurns:
    """Turns of the searches of one gateway. While answers are under way, searches are for no more than a share of the
    time: those that wait begin together, and after them comes a rest in proportion to how long they took.

    Where there are several gateways, each gives its part of the share. For one event loop.
    """

    def __init__(
        self,
        config: EngineConfig,
        is_answering: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        """`is_answering`: whether answers are under way; `call_later`: default that of the event loop."""
        gateway = config.gateway
        self._share = gateway.share_of_searches(config.profile)
        if self._share < 1:
            self._share /= gateway.num_replicas
        self._max_wait_ms = gateway.max_ttft_ms
        self._max_queued = config.retriever.max_queued_queries
        self._is_answering = is_answering
        self._clock = clock
        self._call_later = call_later
        self._waiting: deque[_Waiting] = deque()  # by arrival
        self._is_planned = False
        self._num_running = 0
        self._num_queries = 0  # of this turn
        self._began_at = 0.0
        self._rests_until = -math.inf
        self._query_s = 0.0

    @contextlib.asynccontextmanager
    async def take(self, num_queries: int) -> AsyncIterator[None]:
        """The block is one search of so many queries; it begins when it is its turn.

        Raises: Overloaded where too many wait, or so many that it would begin near `gateway.max_ttft_ms` or after it.
        """
        if self._has_to_wait():
            self._check_room(num_queries)
            await self._wait(num_queries)
        else:
            self._begin(num_queries)
        try:
            yield
        finally:
            self._end()

    def _has_to_wait(self) -> bool:
        if self._share == 1:
            return False
        is_others_time = self._num_running > 0 or self._clock() < self._rests_until
        return bool(self._waiting) or (is_others_time and self._is_answering())

    def _check_room(self, num_queries: int) -> None:
        if not self._waiting:
            return
        num_waiting = sum(each.num_queries for each in self._waiting)
        running = self._num_queries if self._num_running else 0
        rest_s = max(self._rests_until - self._clock(), 0.0)
        expected_s = rest_s + (running + num_waiting) * self._query_s / self._share
        if num_waiting + num_queries > self._max_queued:
            retry_s = max(math.ceil(expected_s), 1)
            raise Overloaded("the queue of searches", self._max_queued, "retriever.max_queued_queries", retry_s)
        if self._max_wait_ms is not None and 1000 * expected_s > SURE_SHARE * self._max_wait_ms:
            retry_s = max(math.ceil(expected_s - SURE_SHARE * self._max_wait_ms / 1000), 1)
            raise SearchTooLate(num_waiting, expected_s, self._max_wait_ms, retry_s)

    async def _wait(self, num_queries: int) -> None:
        ticket = _Waiting(asyncio.get_running_loop().create_future(), num_queries)
        self._waiting.append(ticket)
        self._plan_turn()
        try:
            await ticket.begun
        except asyncio.CancelledError:
            if ticket.begun.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove(ticket)
            else:
                self._end()  # its turn had come in the same moment
            raise

    def _begin(self, num_queries: int) -> None:
        if self._num_running == 0:
            self._began_at, self._num_queries = self._clock(), 0
        self._num_running += 1
        self._num_queries += num_queries

    def _end(self) -> None:
        self._num_running -= 1
        if self._num_running or self._share == 1:
            return
        took_s = self._clock() - self._began_at
        query_s = took_s / self._num_queries
        self._query_s += (query_s - self._query_s) * (_LEARNING_RATE if self._query_s else 1)
        self._rests_until = self._clock() + min(took_s * (1 / self._share - 1), _MAX_REST_S)
        self._plan_turn()

    def _plan_turn(self) -> None:
        if self._waiting and not self._num_running and not self._is_planned:
            self._is_planned = True
            rest_s = max(self._rests_until - self._clock(), 0.0)
            (self._call_later or asyncio.get_running_loop().call_later)(rest_s, self._next_turn)

    def _next_turn(self) -> None:
        """Let as many begin as one turn has time for; at least one."""
        self._is_planned = False
        if self._num_running:
            return  # of those that began while nobody waited; their end plans the next turn
        while self._waiting:
            num_queries = self._num_queries if self._num_running else 0
            if num_queries and (num_queries + self._waiting[0].num_queries) * self._query_s > _TURN_S:
                return
            ticket = self._waiting.popleft()
            if not ticket.begun.cancelled():
                self._begin(ticket.num_queries)
                ticket.begun.set_result(None)
