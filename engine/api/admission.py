"""Which chat requests may begin: those whose first token can be expected in time.

A queue that only its length bounds is full of requests that are too late when a server is overloaded: each is computed,
and none is of use. What is refused here costs no search, no message and no place in the generator's queue.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from engine.config import EngineConfig
from engine.errors import ExpectedTooLate, Overloaded

# First tokens that the pace is the mean of, and how many there must be before anything is refused by it.
_WINDOW, _MIN_SEEN = 32, 8
_MAX_RETRY_S = 30


class Admission:
    """The chat requests of one gateway that wait for a first token, and the pace at which first tokens come.

    The pace is the mean time between two first tokens while requests waited; for one that came to an idle server, all
    of its wait. Gateways that share generators see their own requests and their part of the pace. For one event loop.
    """

    def __init__(self, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        generator = config.generator
        self._max_ttft_ms = config.gateway.max_ttft_ms
        self._max_queued = generator.max_queued
        # More than these the generators would refuse, after all that comes before.
        self._most = (generator.max_num_seqs + generator.max_queued) * generator.most_replicas
        self._clock = clock
        self._num_inside = 0
        self._num_waiting = 0
        self._last_at = -math.inf
        self._gaps_s: deque[float] = deque(maxlen=_WINDOW)

    def enter(self, deadline_ms: float) -> Ticket:
        """Let a request begin. Its ticket is to be closed, whatever becomes of it.

        Raises: Overloaded where the generators have no place, or its first token is expected too late: after
        `gateway.max_ttft_ms` or its own deadline.
        """
        if self._num_inside >= self._most:
            raise Overloaded("the generator's queue", self._max_queued, "generator.max_queued", self._retry_s(0.0))
        limit_ms = deadline_ms if self._max_ttft_ms is None else min(deadline_ms, self._max_ttft_ms)
        expected_s = (self._num_waiting + 1) * self._pace_s
        # The only one that waits shows how fast the server is now.
        if self._num_waiting and expected_s * 1000 > limit_ms:
            setting = "switchyard.deadline_ms" if limit_ms == deadline_ms else "gateway.max_ttft_ms"
            raise ExpectedTooLate(self._num_waiting, expected_s, limit_ms, setting, self._retry_s(limit_ms / 1000))
        self._num_inside += 1
        self._num_waiting += 1
        return Ticket(self, self._clock())

    @property
    def _pace_s(self) -> float:
        seen = self._gaps_s
        return sum(seen) / len(seen) if len(seen) >= _MIN_SEEN else 0.0

    def _retry_s(self, limit_s: float) -> int:
        """When as many have had their first token as are too many now."""
        return min(max(math.ceil(self._num_waiting * self._pace_s - limit_s), 1), _MAX_RETRY_S)

    def _begun(self, entered_at: float) -> None:
        now = self._clock()
        self._gaps_s.append(now - max(entered_at, self._last_at))
        self._last_at = now
        self._num_waiting -= 1

    def _left(self, has_begun: bool) -> None:
        self._num_inside -= 1
        self._num_waiting -= not has_begun


class Ticket:
    """A request that was let in."""

    def __init__(self, admission: Admission, entered_at: float) -> None:
        self._admission = admission
        self._entered_at = entered_at
        self._has_begun = False
        self._is_closed = False

    def begun(self) -> None:
        """Its first token is there."""
        self._has_begun = True
        self._admission._begun(self._entered_at)

    def close(self) -> None:
        """It has ended, whichever way; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._admission._left(self._has_begun)
