"""Rows of an open-loop run: written, read again, and held against the objective."""

from __future__ import annotations

import csv

import pytest

from engine.errors import ConfigError
from loadtest.measures import Slo
from loadtest.open_loop.request_log import COLUMNS, REQUESTS_FILE, Request, read_requests, write_requests

SLO = Slo(ttft_s=1.0, tpot_s=0.1)


def stream(due_s=10.0, *, ttft_s=0.5, latency_s=1.0, tokens=11):
    return Request(
        due_s, 0, "stream", "complete", due_s, due_s + ttft_s, due_s + latency_s, "rag", 200, tokens, 50.0, 60.0
    )


def test_rows_come_back_as_they_were_in_the_order_in_which_they_were_due(tmp_path):
    rows = [
        stream(2.5),
        Request(0.25, 1, "search", "rejected", 0.5, None, 0.75, None, 503, retry_after_s=1.0),
        Request(1.0, 0, "chat", "failed", 1.0, None, 2.0, "direct", 500, error='a "quoted", text\nof two lines'),
        Request(3.0, 1, "chat", "not sent"),
        Request(4.0, 1, "stream", "cut off", 4.5),
    ]
    write_requests(tmp_path / REQUESTS_FILE, rows)
    assert read_requests(tmp_path / REQUESTS_FILE) == sorted(rows, key=lambda row: row.intended_s)


def test_columns_are_those_that_other_tools_read(tmp_path):
    write_requests(tmp_path / REQUESTS_FILE, [stream()])
    with (tmp_path / REQUESTS_FILE).open() as file:
        (row,) = csv.DictReader(file)
    assert list(row) == list(COLUMNS)
    assert {"intended_s", "sent_s", "first_token_s", "end_s", "route", "status", "tokens", "error"} <= set(row)
    assert (row["first_token_s"], row["route"], row["status"], row["error"]) == ("10.5", "rag", "200", "")


def test_text_of_a_server_that_is_no_unicode_is_written_all_the_same(tmp_path):
    write_requests(tmp_path / REQUESTS_FILE, [Request(0.0, 0, "chat", "failed", error="half \ud800")])
    assert read_requests(tmp_path / REQUESTS_FILE)[0].error == "half \\ud800"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "has other columns"),
        ("", "has other columns"),
        (",".join(COLUMNS) + "\nsoon" + "," * (len(COLUMNS) - 1) + "\n", ":2: is not a request"),
        (",".join(COLUMNS) + "\n1.0,0,chat,lost" + "," * (len(COLUMNS) - 4) + "\n", ":2: is not a request"),
        (",".join(COLUMNS) + "\n1.0,0\n", ":2: is not a request"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_line(tmp_path, content, message):
    (tmp_path / REQUESTS_FILE).write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_requests(tmp_path / REQUESTS_FILE)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"requests\.csv: cannot be read"):
        read_requests(tmp_path / REQUESTS_FILE)


def test_times_count_from_when_a_request_was_due():
    late = Request(10.0, 0, "stream", "complete", 14.0, 14.5, 15.5, "rag", 200, 11)
    assert (late.lag_s, late.ttft_s, late.latency_s) == (4.0, 4.5, 5.5)
    assert late.tpot_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("request_", "keeps"),
    [
        (stream(), True),
        (stream(ttft_s=1.1, latency_s=1.2), False),
        (stream(latency_s=1.6), False),  # TPOT of 0.11 s
        (stream(latency_s=9.0, tokens=1), True),  # no TPOT
        (Request(0.0, 0, "chat", "complete", 0.0, None, 1.9, "rag", 200, 11), True),
        (Request(0.0, 0, "chat", "complete", 0.0, None, 2.1, "rag", 200, 11), False),
        (Request(0.0, 0, "search", "complete", 0.0, None, 0.9, "dense", 200, 5), True),
        (Request(0.0, 0, "search", "complete", 0.0, None, 1.1, "dense", 200, 5), False),
        (Request(0.0, 0, "search", "rejected", 0.0, None, 0.01, None, 503), False),
        (Request(0.0, 0, "chat", "not sent"), False),
    ],
)
def test_what_keeps_the_objective(request_, keeps):
    assert request_.keeps(SLO) is keeps
