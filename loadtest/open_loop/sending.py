"""Requests that are sent when they are due, whether or not earlier ones were answered.

A client that waits for its answers offers a slow server less, and then measures the requests that it did not send as
if nothing had been slow (coordinated omission). Here arrivals go on, and every time counts from when a request was due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from loadtest.asking import Outcome
from loadtest.open_loop.arrivals import Arrival
from loadtest.open_loop.request_log import Request


class Planned(NamedTuple):
    """An arrival, and what it asks."""

    arrival: Arrival
    kind: str
    question: str


# Sends one request of a kind, timed from a moment on the clock.
Send = Callable[[str, str, float], Outcome]


@dataclass
class OpenLoop:
    """Sends planned requests; what became of each is in `requests`.

    No waiting of its own: `clock` tells seconds, `sleep` lets others work, `spawn` starts a call beside this one.
    """

    send: Send
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    spawn: Callable[[Callable[[], None]], object]
    max_in_flight: int
    requests: list[Request] = field(default_factory=list)
    _pending: dict[int, Request] = field(default_factory=dict)

    def run(self, plan: Iterable[Planned]) -> None:
        """Start every request at its time, late ones at once; return when the last was started.

        Where `max_in_flight` are waiting for an answer, an arrival is recorded as "not sent".
        """
        begun = self.clock()
        for number, (arrival, kind, question) in enumerate(plan):
            # Also where it is late: requests that are in flight must come to read what arrived.
            self.sleep(max(begun + arrival.at_s - self.clock(), 0.0))
            if len(self._pending) >= self.max_in_flight:
                self.requests.append(Request(arrival.at_s, arrival.part, kind, "not sent"))
                continue
            self._pending[number] = Request(arrival.at_s, arrival.part, kind, "cut off")
            self.spawn(partial(self._one, number, question, begun))

    def end(self) -> None:
        """Record what is still in flight as "cut off". The slowest would be missing if it left no trace."""
        self.requests.extend(self._pending.values())
        self._pending.clear()

    def kinds_in_flight(self) -> Counter[str]:
        """Requests that wait for an answer, by kind."""
        return Counter(each.kind for each in self._pending.values())

    def _one(self, number: int, question: str, begun: float) -> None:
        if number not in self._pending:
            return  # the run had ended before this one came to be sent
        self._pending[number] = due = replace(self._pending[number], sent_s=self.clock() - begun)
        made = self.send(due.kind, question, begun + due.intended_s)
        if self._pending.pop(number, None) is None:
            return  # the run has ended, and it was recorded as cut off
        self.requests.append(
            replace(
                due,
                ending=made.ending,
                first_token_s=None if made.ttft_s is None else due.intended_s + made.ttft_s,
                end_s=due.intended_s + made.latency_s,
                route=made.route,
                status=made.status,
                tokens=made.tokens,
                itl_ms=None if made.itl_s is None else 1000 * made.itl_s,
                max_gap_ms=None if made.max_gap_s is None else 1000 * made.max_gap_s,
                retry_after_s=made.retry_after_s,
                error=made.error,
            )
        )
