"""The report of an open-loop run: whole, self-contained, and made of texts that stay texts."""

from __future__ import annotations

import io
import json
import random
import re
from dataclasses import replace

import pytest
from rich.console import Console

from engine.errors import ConfigError
from loadtest.open_loop.report import main, make_report, print_summary
from loadtest.open_loop.request_log import REQUESTS_FILE, Request, write_requests
from loadtest.open_loop.run import Happening, LoadRun, parse_happening, read_happenings, read_run

RUN = LoadRun(
    url="http://127.0.0.1:8000",
    shape="steps:1,2,4x10s",
    arrivals="poisson",
    seed=7,
    workload="6 streamed, 1 whole, 3 searches",
    slo_ttft_ms=1000,
    slo_tpot_ms=100,
    max_lag_ms=50,
    max_in_flight=64,
    started_unix=1_790_000_000.0,
)


def requests_of(lag_s=0.001):
    """The last part is too much: its first tokens come late, and some requests are refused or fail."""
    drawn = random.Random(1)
    rows = []
    for part, rate in enumerate((1, 2, 4)):
        for n in range(10 * rate):
            due_s = 10 * part + n / rate
            ttft_s = 0.2 + 0.3 * drawn.random() + (2.0 if part == 2 else 0)
            route = "rag" if n % 2 else "direct"
            row = Request(
                due_s,
                part,
                "stream",
                "complete",
                due_s + lag_s,
                due_s + ttft_s,
                due_s + ttft_s + 1,
                route,
                200,
                21,
                50.0,
            )
            if part == 2 and n % 5 == 0:
                row = Request(due_s, part, "chat", "rejected", due_s, None, due_s + 0.02, None, 503, retry_after_s=1.0)
            if part == 2 and n % 5 == 1:
                row = Request(due_s, part, "chat", "failed", due_s, None, due_s + 1, "rag", 500, error="<b>no</b> room")
            rows.append(row)
    return rows


@pytest.fixture
def folder(tmp_path):
    RUN.write(tmp_path)
    write_requests(tmp_path / REQUESTS_FILE, requests_of())
    return tmp_path


def test_report_has_every_section_and_a_plot_of_each_kind(folder):
    page = make_report(folder).read_text()
    for title in ("Parts of the run", "The run second by second", "Routes", "Rejections and failures"):
        assert f">{title}</h2>" in page
    for name in ("latency-ttft", "latency-e2e", "goodput", "rates", "first-tokens", "share-ttft", "share-itl"):
        assert f'id="{name}-' in page, name
    assert "knee: 2/s (the highest rate at which, as at all lower ones, 95%" in page
    assert "503 chat" in page


def test_report_needs_no_network_and_runs_nothing(folder):
    page = make_report(folder).read_text()
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "default-src" in page


def test_texts_of_the_server_and_of_events_are_escaped(folder):
    page = make_report(folder, [Happening(12.5, "<i>worker</i> killed")]).read_text()
    assert "&lt;b&gt;no&lt;/b&gt; room" in page and "<b>no</b>" not in page
    assert "&lt;i&gt;worker&lt;/i&gt; killed" in page and "<i>worker" not in page


def test_result_file_has_the_shape_of_a_benchmark(folder):
    make_report(folder)
    content = json.loads((folder / "report.json").read_text())
    assert content["bench"] == "load" and content["ratios"] == []
    assert {"machine", "versions", "commit", "rows", "knee", "client_lag_ms", "failures", "run"} <= set(content)
    assert set(content["rows"][0]) == {"case", "system", "metric", "unit", "value", "p20", "p80"}
    assert content["knee"]["rate_s"] == 2.0
    assert content["run"]["shape"] == RUN.shape


def test_events_of_a_script_are_placed_by_the_wall_clock(folder, tmp_path, capsys):
    events = tmp_path / "events.jsonl"
    events.write_text('{"unix_s": 1790000012.5, "label": "worker killed"}\n\n{"at_s": 20, "label": "back"}\n')
    main([str(folder), "--events", str(events), "--event", "3 cache [emptied]"])
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    content = json.loads((folder / "report.json").read_text())
    assert [(each["at_s"], each["label"]) for each in content["run"]["happenings"]] == [
        (3.0, "cache [emptied]"),
        (12.5, "worker killed"),
        (20.0, "back"),
    ]


@pytest.mark.parametrize("text", ["soon worker killed", "12", "nan worker", "inf worker", ""])
def test_an_event_needs_a_second_and_words(text):
    with pytest.raises(ConfigError, match="an event is a second of the run and words"):
        parse_happening(text)


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"at_s": "x", "label": "a"}', '{"at_s": 1}', "1", '{"at_s": 1, "label": 2}']
)
def test_a_line_that_is_no_event_is_named(tmp_path, line):
    (tmp_path / "events.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match=r"events\.jsonl:2: is not an event"):
        read_happenings(tmp_path / "events.jsonl", 0.0)


def test_run_comes_back_as_it_was(tmp_path):
    run = replace(RUN, happenings=(Happening(1.5, "cut"),))
    run.write(tmp_path)
    assert read_run(tmp_path) == run


def test_folder_without_a_run_is_named_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert "run.json: cannot be read" in str(caught.value)
    (tmp_path / "run.json").write_text('{"happenings": []}')
    with pytest.raises(ConfigError, match="is no run of an open-loop load test"):
        read_run(tmp_path)


def test_requests_of_another_shape_are_refused(folder):
    write_requests(folder / REQUESTS_FILE, [Request(1.0, 9, "chat", "not sent")])
    with pytest.raises(ConfigError, match="do not belong together"):
        make_report(folder)


def summary_of(requests, run=RUN):
    console = Console(file=io.StringIO(), width=300)
    valid = print_summary(run, requests, console)
    return valid, console.file.getvalue()


def test_summary_says_the_knee_and_how_late_the_client_was():
    valid, printed = summary_of(requests_of())
    assert valid
    assert "part 1: 1/s for 10 s, 10 due, goodput 1.00/s (10 complete)" in printed
    assert "knee: 2/s" in printed
    assert "client: requests were sent 1.0 ms late at p50" in printed


def test_a_client_that_did_not_keep_up_makes_the_run_invalid():
    valid, printed = summary_of(requests_of(lag_s=0.2))
    assert not valid
    assert "INVALID: more than 50 ms at p99, so the client was too slow for this load" in printed


def test_a_run_in_which_nothing_was_sent_is_reported_as_such(tmp_path):
    RUN.write(tmp_path)
    write_requests(tmp_path / REQUESTS_FILE, [Request(1.0, 0, "chat", "not sent")])
    page = make_report(tmp_path).read_text()
    assert "sent nothing, so this run says nothing" in page and "Nothing was answered." in page
    valid, printed = summary_of([])
    assert not valid and "nothing was due" in printed


def test_a_run_that_was_ended_early_is_invalid():
    rows = requests_of()
    valid, printed = summary_of(rows, replace(RUN, num_planned=len(rows) + 5))
    assert not valid
    assert f"INVALID: the run was ended after {len(rows)} of {len(rows) + 5} requests" in printed
