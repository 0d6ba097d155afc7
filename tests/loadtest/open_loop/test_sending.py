"""The open loop under a clock of the test's own: no request waits for another, and none is lost."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from loadtest.asking import Outcome
from loadtest.open_loop.arrivals import Arrival
from loadtest.open_loop.sending import OpenLoop, Planned


class Clock:
    """Time that passes only while somebody sleeps; calls that were set for a moment run then."""

    def __init__(self) -> None:
        self.now = 100.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, moment: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, len(self._due), call))

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            moment, _, call = heapq.heappop(self._due)
            self.now = max(self.now, moment)
            call()
        self.now = max(self.now, until)


class Server:
    """Answers a request so long after it came; all that come until `stalled_until` wait for that moment too.

    `spawn` starts a request at once and ends it at its moment, as a greenlet would.
    """

    def __init__(self, clock: Clock, takes_s: float = 0.1, stalled_until: float = 0.0) -> None:
        self.clock, self.takes_s, self.stalled_until = clock, takes_s, stalled_until
        self.came: list[float] = []

    def spawn(self, call: Callable[[], None]) -> None:
        self.came.append(self.clock.now)
        self.clock.at(max(self.clock.now, self.stalled_until) + self.takes_s, call)

    def send(self, kind: str, question: str, started: float) -> Outcome:
        return Outcome("complete", self.clock.now - started, "rag", 200, 1)


def plan(*at_s: float) -> list[Planned]:
    return [Planned(Arrival(each, 0), "chat", "why?") for each in at_s]


def loop_of(clock: Clock, server: Server, max_in_flight: int = 100) -> OpenLoop:
    return OpenLoop(server.send, lambda: clock.now, clock.sleep, server.spawn, max_in_flight)


def latencies(loop: OpenLoop) -> list[float | None]:
    rows = sorted(loop.requests, key=lambda each: each.intended_s)
    return [None if each.latency_s is None else round(each.latency_s, 6) for each in rows]


def test_requests_go_on_while_the_server_stalls_and_each_shows_how_long_it_waited():
    clock = Clock()
    server = Server(clock, takes_s=0.1, stalled_until=105.0)
    loop = loop_of(clock, server)
    loop.run(plan(0, 1, 2, 3, 4, 5, 6))
    clock.sleep(10)
    assert server.came == [100, 101, 102, 103, 104, 105, 106]
    # One client in a closed loop would have sent one request in these 5 s, and five short ones later.
    assert latencies(loop) == [5.1, 4.1, 3.1, 2.1, 1.1, 0.1, 0.1]


def test_a_client_that_is_late_sends_at_once_and_times_from_when_the_request_was_due():
    clock = Clock()
    server = Server(clock, takes_s=0.0)
    loop = loop_of(clock, server)
    # The client is held up for 2.5 s while it starts its first request.
    held = server.spawn

    def slow(call: Callable[[], None]) -> None:
        held(call)
        if len(server.came) == 1:
            clock.now += 2.5

    loop.spawn = slow
    loop.run(plan(0, 1, 2, 3))
    clock.sleep(1)
    assert server.came == [100, 102.5, 102.5, 103]
    rows = sorted(loop.requests, key=lambda each: each.intended_s)
    assert [round(each.latency_s or 0, 6) for each in rows[1:]] == [1.5, 0.5, 0.0]


def test_beyond_the_limit_arrivals_are_recorded_as_not_sent():
    clock = Clock()
    server = Server(clock, takes_s=10.0)
    loop = loop_of(clock, server, max_in_flight=2)
    loop.run(plan(0, 1, 2, 3, 11))
    clock.sleep(20)
    rows = sorted(loop.requests, key=lambda each: each.intended_s)
    assert [each.ending for each in rows] == ["complete", "complete", "not sent", "not sent", "complete"]
    assert rows[2].sent_s is None and rows[2].lag_s is None


def test_what_is_in_flight_at_the_end_is_recorded_as_cut_off():
    clock = Clock()
    loop = loop_of(clock, Server(clock, takes_s=60.0))
    loop.run(plan(0, 1))
    assert loop.kinds_in_flight() == {"chat": 2}
    loop.end()
    assert [each.ending for each in loop.requests] == ["cut off", "cut off"]
    assert not loop.kinds_in_flight()
    # An answer that comes all the same changes nothing.
    clock.sleep(100)
    assert [each.ending for each in loop.requests] == ["cut off", "cut off"]


def test_rejections_and_failures_keep_what_the_server_said():
    clock = Clock()
    server = Server(clock)
    ends = iter([Outcome("rejected", 0.01, status=503, retry_after_s=2.0), Outcome("failed", 0.2, error="broke")])
    server.send = lambda *_: next(ends)  # type: ignore[method-assign]
    loop = loop_of(clock, server)
    loop.run(plan(0, 1))
    clock.sleep(1)
    refused, failed = loop.requests
    assert (refused.ending, refused.status, refused.retry_after_s, refused.end_s) == ("rejected", 503, 2.0, 0.01)
    assert (failed.ending, failed.error, failed.status) == ("failed", "broke", None)
