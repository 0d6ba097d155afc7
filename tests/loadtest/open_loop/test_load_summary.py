"""Figures of an open-loop run: parts, knee, lag, routes."""

from __future__ import annotations

import pytest

from loadtest.measures import Slo
from loadtest.open_loop.arrivals import parse_shape
from loadtest.open_loop.request_log import Request
from loadtest.open_loop.summary import bench_rows, by_route, client_lag, failures, figures, find_knee, part_figures

SLO = Slo(ttft_s=1.0, tpot_s=0.1)


def search(due_s, part=0, *, took_s=0.1, lag_s=0.0, ending="complete", route="dense", **more):
    return Request(due_s, part, "search", ending, due_s + lag_s, None, due_s + took_s, route, 200, 5, **more)


def run_of(*shares_of_10):
    """Steps of 10 requests each, of which so many were within the objective."""
    shape = parse_shape("steps:" + ",".join(str(rate) for rate in range(1, len(shares_of_10) + 1)) + "x10s")
    rows = [
        search(10 * part + n, part, took_s=0.1 if n < good else 5.0)
        for part, good in enumerate(shares_of_10)
        for n in range(10)
    ]
    return part_figures(rows, shape, SLO), rows, shape


def test_a_request_belongs_to_the_part_in_which_it_was_due():
    parts, _, _ = run_of(10, 4)
    assert [part.num_offered for part in parts] == [10, 10]
    assert [part.goodput_s for part in parts] == [1.0, 0.4]
    assert [(part.rate_s, part.start_s) for part in parts] == [(1.0, 0.0), (2.0, 10.0)]


def test_throughput_is_what_was_answered_while_a_part_lasted():
    shape = parse_shape("steps:1,2x10s")
    # Both of the second part's are answered after its end, and one of the first in the second.
    rows = [search(1), search(9, took_s=2.0), search(12, 1, took_s=9.0), search(13, 1, took_s=9.0)]
    rows.append(search(5, took_s=0.1, ending="failed"))
    assert [part.num_answered for part in part_figures(rows, shape, SLO)] == [1, 1]


@pytest.mark.parametrize(
    ("shares", "knee"),
    [
        ((10, 10, 10), 2),
        ((10, 10, 4), 1),
        # A rate that held by luck beyond one that did not is no knee.
        ((10, 4, 10), 0),
        ((4, 10, 10), None),
        ((), None),
    ],
)
def test_knee_is_the_last_rate_up_to_which_all_kept_the_objective(shares, knee):
    parts = run_of(*shares)[0] if shares else []
    assert find_knee(parts) == knee


def test_knee_needs_95_percent_of_what_was_offered():
    shape = parse_shape("constant:10x10s")
    for late, knee in ((5, 0), (6, None)):
        rows = [search(n / 10, took_s=5.0 if n < late else 0.1) for n in range(100)]
        assert find_knee(part_figures(rows, shape, SLO)) == knee


def test_what_was_not_sent_counts_against_the_goodput():
    shape = parse_shape("constant:1x10s")
    rows = [search(0), Request(1, 0, "chat", "not sent"), search(2, ending="rejected"), search(3, ending="cut off")]
    (part,) = part_figures(rows, shape, SLO)
    assert part.good_share == 0.25
    assert [part.count(each) for each in ("not sent", "rejected", "cut off", "failed")] == [1, 1, 1, 0]


def test_client_lag_is_that_of_what_was_sent():
    lag = client_lag([search(n, lag_s=n / 1000) for n in range(101)] + [Request(1, 0, "chat", "not sent")])
    assert lag is not None
    assert (round(lag.p50_ms, 6), round(lag.p99_ms, 6), round(lag.max_ms, 6)) == (50, 99, 100)
    assert client_lag([Request(1, 0, "chat", "not sent")]) is None


def test_measures_of_a_route_are_those_of_complete_answers():
    stream = Request(1.0, 0, "stream", "complete", 1.0, 1.5, 2.5, "rag", 200, 11, 40.0, 60.0)
    whole = Request(1.0, 0, "chat", "complete", 1.0, None, 3.0, "direct", 200, 11)
    broken = Request(1.0, 0, "stream", "failed", 1.0, None, 9.0, "rag", 200, error="broke")
    found = by_route([stream, whole, broken, search(0)])
    assert found == {
        ("TTFT", "rag"): [500.0],
        ("ITL", "rag"): [40.0],
        ("TPOT", "rag"): [pytest.approx(100.0)],
        ("E2E", "rag"): [1500.0],
        ("WHOLE", "direct"): [2000.0],
        ("SEARCH", "dense"): [pytest.approx(100.0)],
    }
    assert failures([broken, broken]) == {("stream", "rag", "broke"): 2}


def test_result_rows_name_each_part_and_each_route():
    parts, rows, shape = run_of(10, 4)
    made = {(row.case, row.metric): row for row in bench_rows(parts, rows)}
    assert made["part 1: 1/s", "goodput"].value == 1.0
    assert made["part 2: 2/s", "goodput"].unit == "requests/s"
    assert made["route dense", "search_p50"].p80 >= made["route dense", "search_p50"].value
    assert {row.system for row in made.values()} == {"switchyard"}
    said = figures(parts, rows, shape)
    assert said["knee"] == {"rate_s": 1.0, "goodput_s": 1.0, "is_highest_tried": False}
    assert said["endings"] == {"complete": 20}


def test_a_shape_that_falls_has_no_knee():
    parts, rows, _ = run_of(10, 10, 10)
    assert figures(parts, rows, parse_shape("spike:1,3,1"))["knee"] is None
