"""Which replica a request goes to."""

from __future__ import annotations

from itertools import count

import pytest
from simulated_fleet import Placing, PowerOfTwo, RoundRobin, simulate

from engine.generation.placement.ledger import MAX_REPORT_AGE_S
from engine.generation.placement.placement import SWAP_TOKENS, Placement
from engine.generation.placement.report import ReplicaReport
from engine.generation.placement.work import Work

NAMES = ("a", "b", "c", "d")
serials = count()


def placement(**waiting_tokens: int) -> Placement:
    """Of replicas that just reported, idle but for the tokens named."""
    made = Placement()
    made.keep(NAMES)
    for name in NAMES:
        made.report(name, report(waiting_tokens.get(name, 0)), 0.0)
    return made


def report(waiting_tokens: int = 0, *, running: int = 0, kv: int = 0, adapters: tuple[str, ...] = ()) -> ReplicaReport:
    return ReplicaReport(next(serials), waiting_tokens, running, kv, 100_000, 1000.0, frozenset(adapters))


def work(name: str, tokens: int = 100, *, adapter: str | None = None, prefix: int | None = None) -> Work:
    return Work(name, tokens, () if prefix is None else ((prefix, tokens),), adapter)


def send(made: Placement, each: Work, now_s: float = 0.0) -> str:
    best = made.rank(each, now_s)[0]
    made.sent(each, best, now_s)
    return best


def test_requests_go_where_the_fewest_prompt_tokens_wait():
    made = placement(a=900, b=300, c=600, d=1200)
    assert made.rank(work("r"), 0.0) == ["b", "c", "a", "d"]


def test_a_replica_whose_keys_and_values_are_nearly_full_is_avoided():
    made = placement(b=500, c=500, d=500)
    assert made.rank(work("r"), 0.0)[0] == "a"
    made.report("a", report(kv=95_000), 0.0)
    assert made.rank(work("r"), 0.0)[-1] == "a"


def test_what_was_sent_counts_before_the_next_report_tells_it():
    made = placement()
    assert {send(made, work(f"r{n}")) for n in range(4)} == set(NAMES)


def test_what_was_sent_is_worked_off_at_the_reported_speed():
    made = placement(b=200, c=200, d=200)
    made.sent(work("r", 500), "a", 0.0)
    assert made.rank(work("next"), 0.1)[-1] == "a"
    made.report("b", report(200), 1.0)
    made.report("c", report(200), 1.0)
    made.report("d", report(200), 1.0)
    assert made.rank(work("next"), 1.0)[0] == "a"


def test_a_report_does_not_hide_what_was_sent_just_before_it():
    made = placement()
    made.sent(work("r", 5000), "a", 0.9)
    made.report("a", report(0), 1.0)
    assert made.rank(None, 1.0)[-1] == "a"
    made.report("a", report(0), 2.0)
    for name in "bcd":
        made.report(name, report(10), 2.0)
    assert made.rank(None, 2.0)[0] == "a"


def test_a_prompt_returns_to_where_it_is_cached_unless_more_waits_there():
    made = placement()
    home = send(made, work("r1", 1000, prefix=7))
    made.done("r1")
    others = [name for name in NAMES if name != home]
    for name in NAMES:
        made.report(name, report(900 if name == home else 0), 5.0)
    assert made.rank(work("r2", 1000, prefix=7), 5.0)[0] == home
    made.report(home, report(1100), 5.0)
    assert made.rank(work("r2", 1000, prefix=7), 5.0)[0] in others


def test_an_adapter_stays_where_it_has_a_slot_unless_more_than_a_swap_waits_there():
    made = placement()
    for _ in range(100):  # so that one more is a small share
        made.sent(work(f"base{next(serials)}", 0), "b", -10.0)
    made.report("a", report(SWAP_TOKENS - 10, adapters=("tone",)), 0.0)
    assert made.rank(work("r", adapter="tone"), 0.0)[0] == "a"
    made.report("a", report(SWAP_TOKENS + 200, adapters=("tone",)), 0.0)
    assert made.rank(work("r", adapter="tone"), 0.0)[0] != "a"


def test_an_adapter_with_more_than_a_replicas_share_of_the_traffic_spreads_and_others_do_not():
    def homes(num_hot_of_10: int) -> set[str]:
        made, used, slots = placement(), set(), {name: set() for name in NAMES}
        for turn in range(400):
            now_s = turn / 10
            adapter = "hot" if turn % 10 < num_hot_of_10 else f"cold{turn % 40}"
            each = Work(f"r{turn}", 50, (), adapter)
            place = send(made, each, now_s)
            slots[place].add(adapter)
            made.done(each.id)
            if adapter == "hot":
                used.add(place)
            for name in NAMES:
                made.report(name, report(adapters=tuple(slots[name])), now_s)
        return used

    assert len(homes(2)) == 1
    assert len(homes(6)) in (2, 3)
    assert len(homes(10)) == 4


def test_without_reports_the_least_outstanding_is_chosen():
    made = Placement()
    made.keep(NAMES)
    first = [send(made, work(f"r{n}")) for n in range(4)]
    assert set(first) == set(NAMES)
    made.done("r2")
    assert made.rank(work("next"), 0.0)[0] == first[2]


def test_a_replica_whose_reports_stopped_is_not_taken_for_idle():
    made = placement()
    late_s = MAX_REPORT_AGE_S + 1
    for name in "bcd":
        made.report(name, report(400), late_s)
    made.sent(work("stuck", 1000), "a", 0.0)
    assert made.rank(work("r"), late_s)[-1] == "a"
    made.done("stuck")
    assert "a" in {send(made, work(f"r{n}"), late_s) for n in range(4)}  # as busy as the others, so it gets its share


def test_a_request_that_went_elsewhere_counts_there_alone():
    made = placement()
    made.sent(work("r", 1000), "a", 0.0)
    made.sent(work("r", 1000), "b", 0.0)
    assert made.outstanding["a"] == 0 < made.outstanding["b"]
    made.done("r")
    made.done("r")
    assert set(made.outstanding.values()) == {0}


def test_a_replica_that_is_gone_is_forgotten_with_its_requests():
    made = placement()
    made.sent(work("r", prefix=7), "a", 0.0)
    made.keep(NAMES[1:])
    made.done("r")
    assert set(made.rank(work("next", prefix=7), 0.0)) == set(NAMES[1:])


def test_equal_replicas_take_turns():
    made = placement()
    assert {made.rank(None, 0.0)[0] for _ in range(4)} == set(NAMES)


def test_report_survives_json_and_what_is_none_is_refused():
    told = report(5, running=2, kv=64, adapters=("tone",))
    assert ReplicaReport.parse(told.as_json()) == told
    assert ReplicaReport.parse({}) is None
    assert ReplicaReport.parse({**told.as_json(), "new_field": 1}) is None


@pytest.mark.parametrize("seed", [1, 2])
def test_simulated_fleet_computes_less_swaps_less_and_waits_less_than_with_choices_that_know_only_load(seed: int):
    ours = simulate(lambda: Placing(4), seed=seed)
    for other in (simulate(RoundRobin, seed=seed), simulate(PowerOfTwo, seed=seed)):
        assert ours.cached_share > other.cached_share + 0.1
        assert ours.num_swaps < 0.5 * other.num_swaps
        assert ours.p95_wait_s < 0.9 * other.p95_wait_s
    assert ours.busiest_share < 0.35
