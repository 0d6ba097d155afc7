"""Which chat requests may begin, by the pace at which first tokens come."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from random import Random

import pytest

from engine.api.admission import Admission, Ticket
from engine.config import parse_config
from engine.errors import ExpectedTooLate, Overloaded

URL = "/v1/chat/completions"
DEADLINE_MS = 120_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admission(clock: Clock, **gateway: int) -> Admission:
    generator = {"max_num_seqs": 8, "max_queued": 16}
    return Admission(parse_config({"gateway": gateway, "generator": generator}, "test"), clock)


def see(admission: Admission, clock: Clock, pace_s: float, times: int = 8) -> None:
    """Requests that come one after the other to a server with one first token each `pace_s`."""
    for _ in range(times):
        ticket = admission.enter(DEADLINE_MS)
        clock.now_s += pace_s
        ticket.begun()
        ticket.close()


def admitted(admission: Admission, offered: int, deadline_ms: float = DEADLINE_MS) -> list[Ticket]:
    """Those of `offered` requests that may begin."""
    tickets = []
    for _ in range(offered):
        try:
            tickets.append(admission.enter(deadline_ms))
        except Overloaded:
            break
    return tickets


def test_as_many_may_wait_as_have_their_first_token_in_time(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=0.25)
    assert len(admitted(gate, 20)) == 4
    with pytest.raises(
        ExpectedTooLate, match=r"after 1\.2 s \(4 requests wait\), not safely within gateway\.max_ttft_ms=1500 ms\."
    ):
        gate.enter(DEADLINE_MS)


def test_first_token_makes_room_for_one_more_and_the_end_of_an_answer_does_not(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=0.25)
    tickets = admitted(gate, 4)
    clock.now_s += 0.25
    tickets[0].begun()
    assert len(admitted(gate, 9)) == 1
    tickets[0].close()
    assert admitted(gate, 9) == []


def test_what_was_done_for_the_next_one_counts(clock):
    gate = admission(clock, max_ttft_ms=1300)
    see(gate, clock, pace_s=0.5)
    assert len(admitted(gate, 9)) == 1
    clock.now_s += 0.2  # of its 0.5 s, so 0.8 s remain for both
    assert len(admitted(gate, 9)) == 1


def test_one_stall_is_no_pace(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=0.25)
    see(gate, clock, pace_s=20, times=1)
    assert len(admitted(gate, 20)) == 4


def test_request_that_leaves_before_its_first_token_makes_room(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=0.25)
    tickets = admitted(gate, 4)
    tickets[0].close()
    tickets[0].close()
    assert len(admitted(gate, 9)) == 1


def test_nothing_is_refused_by_a_pace_that_was_hardly_seen(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=30, times=3)
    assert len(admitted(gate, 20)) == 20


def test_the_only_one_that_waits_is_let_in_and_shows_how_fast_the_server_became(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=5)
    assert len(admitted(gate, 9)) == 1
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=5)
    for _ in range(12):
        clock.now_s += 60  # nobody asks for a while
        see(gate, clock, pace_s=0.1, times=1)
    assert len(admitted(gate, 20)) == 10


def test_request_whose_deadline_would_pass_is_refused_by_name_of_the_deadline(clock):
    gate = admission(clock)
    see(gate, clock, pace_s=0.25)
    assert len(admitted(gate, 20, deadline_ms=750)) == 2
    with pytest.raises(ExpectedTooLate, match=r"switchyard\.deadline_ms=750 ms"):
        gate.enter(750)
    assert len(admitted(gate, 20)) == 20


def test_places_of_several_generators_are_not_counted_since_more_may_be_added(clock):
    several = {"num_replicas": 2, "max_num_seqs": 1, "max_queued": 1}
    assert len(admitted(Admission(parse_config({"generator": several}, "test"), clock), 99)) == 99


def test_more_than_the_generator_has_places_for_are_refused_before_anything_else_happens(clock):
    gate = admission(clock)
    tickets = admitted(gate, 99)
    assert len(tickets) == 8 + 16
    with pytest.raises(Overloaded, match=r"generator's queue is full \(16 waiting\).*raise generator\.max_queued"):
        gate.enter(DEADLINE_MS)
    tickets[0].begun()  # it is answered, and has its place until it ends
    assert admitted(gate, 9) == []
    tickets[0].close()
    assert len(admitted(gate, 9)) == 1


def test_client_is_told_to_come_back_when_enough_have_their_first_token(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=0.9)
    admitted(gate, 1)
    with pytest.raises(ExpectedTooLate) as refused:
        gate.enter(DEADLINE_MS)
    assert refused.value.retry_after_s == 1
    slow = admission(clock)
    see(slow, clock, pace_s=2)
    admitted(slow, 24)
    with pytest.raises(Overloaded) as refused:
        slow.enter(DEADLINE_MS)
    assert refused.value.retry_after_s == 30


def test_share_of_the_limit_that_is_counted_on_falls_while_those_behind_others_are_late_and_rises_again(clock):
    gate = admission(clock, max_ttft_ms=1500)

    def let_in_behind(took_s: float, times: int) -> None:
        for _ in range(times):
            see(gate, clock, pace_s=0.25, times=12)
            tickets = [gate.enter(DEADLINE_MS), gate.enter(DEADLINE_MS)]
            clock.now_s += took_s
            for ticket in tickets:
                ticket.begun()
                ticket.close()

    def room() -> int:
        tickets = admitted(gate, 20)
        for ticket in tickets:
            ticket.close()
        return len(tickets)

    see(gate, clock, pace_s=0.25)
    assert room() == 4
    let_in_behind(took_s=1.6, times=10)
    see(gate, clock, pace_s=0.25, times=12)
    assert room() == 2
    let_in_behind(took_s=0.1, times=150)
    see(gate, clock, pace_s=0.25, times=12)
    assert room() == 6


def test_late_prompt_with_none_before_it_says_nothing_about_waiting(clock):
    gate = admission(clock, max_ttft_ms=1500)
    see(gate, clock, pace_s=5, times=30)
    see(gate, clock, pace_s=0.25, times=12)
    assert len(admitted(gate, 20)) == 4


def goodput_s(rate_s: float, *, seconds: float = 400, **gateway: int) -> float:
    """First tokens/s within a second, of Poisson arrivals at a server that works on one prompt after the other, short
    ones and long ones.
    """
    random, clock = Random(7), Clock()
    gate, due, good = admission(clock, **gateway), random.expovariate(rate_s), 0
    queue: deque[tuple[float, Ticket]] = deque()
    done_at = math.inf
    while due < seconds:
        clock.now_s = min(due, done_at)
        if due <= done_at:
            with contextlib.suppress(Overloaded):
                queue.append((due, gate.enter(DEADLINE_MS)))
            due += random.expovariate(rate_s)
        else:
            came_at, ticket = queue.popleft()
            ticket.begun()
            ticket.close()
            good += done_at - came_at <= 1
            done_at = math.inf
        if queue and done_at == math.inf:
            done_at = clock.now_s + (random.uniform(0.1, 0.15) if random.random() < 0.4 else random.gauss(0.6, 0.1))
    return good / seconds


def test_ten_times_too_much_brings_as_much_in_time_as_the_server_can_do():
    rates = (1.0, 1.5, 2.0, 2.5)
    knee_s = max(goodput_s(rate_s, max_ttft_ms=1000) for rate_s in rates)
    assert goodput_s(10 * knee_s, max_ttft_ms=1000) > 0.9 * knee_s
    # The margin costs a server that is not overloaded little, and without any limit nothing is in time.
    assert goodput_s(1.0, max_ttft_ms=1000) > 0.9 * goodput_s(1.0)
    assert goodput_s(10 * knee_s) < 0.1 * knee_s


async def test_refused_request_costs_no_search_and_says_when_to_come_back(client, backends, monkeypatch):
    monkeypatch.setattr("engine.api.admission._MIN_SEEN", 2)
    body = {"model": "auto", "messages": [{"role": "user", "content": "how"}], "max_tokens": 4}
    for _ in range(2):
        assert (await client.post(URL, json=body)).status_code == 200
    began, go = asyncio.Event(), asyncio.Event()
    evidence = backends.evidence

    async def held(query):
        began.set()
        await go.wait()
        return await evidence(query)

    monkeypatch.setattr(backends, "evidence", held)
    first = asyncio.create_task(client.post(URL, json=body))
    try:
        await asyncio.wait_for(began.wait(), 30)
        refused = await client.post(URL, json={**body, "switchyard": {"deadline_ms": 1}})
    finally:
        go.set()
    assert (await first).status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), refused.text
    assert refused.json()["error"]["code"] == "overloaded" and "1 requests wait" in refused.text
    assert len(backends.queries) == 3
