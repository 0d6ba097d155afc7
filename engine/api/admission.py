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
_WINDOW, _MIN_SEEN = 12, 4
# What part of the time that a request may wait is counted on. Under overload whoever is let in stands just within the
# limit, and half of them would come to be beyond it.
SURE_SHARE = 0.7
# Where there is an objective, that part is learned from those that were let in behind others: it falls with each whose
# first token is late and rises with each in time, and so settles where one in ten is late. Simulated
# (tests/api/test_admission.py), 0.05 brings no more in time and 0.2 less, with up to twice as many late.
_LATE_SHARE, _LEARNING_STEP = 0.1, 0.05
# Long prompts are late whatever waits before them, and must not close a server to all others.
_LEAST_SURE_SHARE, _MOST_SURE_SHARE = 0.35, 1.0
_MAX_RETRY_S = 30


class Admission:
    """The chat requests of one gateway that wait for a first token, and the pace at which first tokens come.

    The pace is the mean time between two first tokens while requests waited, for one that came to an idle server all of
    its wait; the longest of the last ones is left out, since one stall is no pace. Gateways that share generators see
    their own requests and their part of the pace. For one event loop.
    """

    def __init__(self, config: EngineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        generator = config.generator
        self._max_ttft_ms = config.gateway.max_ttft_ms
        self._max_queued = generator.max_queued
        # More than these the generator would refuse, after all that comes before. Of several, nobody here knows how
        # many there are: they may be added while this gateway serves.
        self._most = math.inf if generator.has_several else generator.max_num_seqs + generator.max_queued
        self._clock = clock
        self._num_inside = 0
        self._waiting: dict[Ticket, float] = {}  # since when, the first first
        self._last_at = -math.inf
        self._gaps_s: deque[float] = deque(maxlen=_WINDOW)
        self._sure_share = SURE_SHARE

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way."""
        return self._num_inside > 0

    def enter(self, deadline_ms: float) -> Ticket:
        """Let a request begin. Its ticket is to be closed, whatever becomes of it.

        Raises: Overloaded where the only generator has no place, or its first token is expected too late: near
        `gateway.max_ttft_ms` or its own deadline, or after them.
        """
        if self._num_inside >= self._most:
            raise Overloaded("the generator's queue", self._max_queued, "generator.max_queued", self._retry_s(0.0))
        limit_ms = deadline_ms if self._max_ttft_ms is None else min(deadline_ms, self._max_ttft_ms)
        now = self._clock()
        expected_s = self._wait_s(now) + self._pace_s
        # The only one that waits shows how fast the server is now.
        if self._waiting and expected_s * 1000 > self._sure_share * limit_ms:
            setting = "switchyard.deadline_ms" if limit_ms == deadline_ms else "gateway.max_ttft_ms"
            retry_s = self._retry_s(self._sure_share * limit_ms / 1000)
            raise ExpectedTooLate(len(self._waiting), expected_s, limit_ms, setting, retry_s)
        ticket = Ticket(self, is_behind=bool(self._waiting))
        self._num_inside += 1
        self._waiting[ticket] = now
        return ticket

    @property
    def _pace_s(self) -> float:
        seen = self._gaps_s
        return (sum(seen) - max(seen)) / (len(seen) - 1) if len(seen) >= _MIN_SEEN else 0.0

    def _wait_s(self, now: float) -> float:
        """Until all that wait have their first token; what was done for the next one counts."""
        if not self._waiting:
            return 0.0
        since = max(self._last_at, next(iter(self._waiting.values())))
        return len(self._waiting) * self._pace_s - min(now - since, self._pace_s)

    def _retry_s(self, limit_s: float) -> int:
        """When as many have had their first token as are too many now."""
        return min(max(math.ceil(self._wait_s(self._clock()) - limit_s), 1), _MAX_RETRY_S)

    def _begun(self, ticket: Ticket) -> None:
        now, since = self._clock(), self._waiting.pop(ticket)
        self._gaps_s.append(now - max(since, self._last_at))
        self._last_at = now
        if ticket.is_behind and self._max_ttft_ms is not None:
            is_late = 1000 * (now - since) > self._max_ttft_ms
            learned = self._sure_share + _LEARNING_STEP * (_LATE_SHARE - is_late)
            self._sure_share = min(max(learned, _LEAST_SURE_SHARE), _MOST_SURE_SHARE)

    def _left(self, ticket: Ticket) -> None:
        self._num_inside -= 1
        self._waiting.pop(ticket, None)


class Ticket:
    """A request that was let in, behind others or with none waiting before it."""

    def __init__(self, admission: Admission, *, is_behind: bool) -> None:
        self.is_behind = is_behind
        self._admission = admission
        self._is_closed = False

    def begun(self) -> None:
        """Its first token is there; called once."""
        self._admission._begun(self)

    def close(self) -> None:
        """It has ended, whichever way; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._admission._left(self)
