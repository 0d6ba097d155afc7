"""The open loop of the real locust, in a process of its own, against a small server that speaks our HTTP."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_stub import Stub, running_stub

from loadtest.open_loop.request_log import REQUESTS_FILE, Request, read_requests

if importlib.util.find_spec("locust") is None:
    pytest.skip("locust is in the bench extra: pip install '.[bench]'", allow_module_level=True)

REPOSITORY = Path(__file__).resolve().parents[3]
EVEN = ("--arrivals", "even")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server


def load(url: str, out: Path, *flags: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "loadtest", "--url", url, "--out", str(out), *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def rows_of(out: Path) -> list[Request]:
    return read_requests(out / REQUESTS_FILE)


def test_a_run_writes_rows_figures_and_a_report(stub: Stub, tmp_path: Path) -> None:
    # The lag of a busy machine is not what is tested.
    code, printed = load(stub.url, tmp_path, *EVEN, "--shape", "steps:5,10x2s", "--max-lag-ms", "20000")
    assert code == 0, printed
    rows = rows_of(tmp_path)
    assert len(rows) == len(stub.behaviour.bodies) == 30
    assert {row.ending for row in rows} == {"complete"}
    assert {row.kind for row in rows} == {"stream", "chat", "search"}
    assert {row.route for row in rows} == {"direct", "rag", "dense"}
    for row in rows:
        assert row.sent_s is not None and row.end_s is not None and row.intended_s <= row.sent_s <= row.end_s
        assert (row.first_token_s is not None) == (row.kind == "stream")
    assert (tmp_path / "report.html").exists()
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["endings"] == {"complete": 30} and content["run"]["shape"] == "steps:5,10x2s"
    assert content["run"]["started_unix"] > 1e9
    assert "part 2: 10/s for 2 s, 20 due" in printed


def test_requests_are_sent_while_none_is_answered(stub: Stub, tmp_path: Path) -> None:
    # A client that waits for answers would wait here for ever: the first is given when the last request came.
    stub.behaviour.answer_after = 20
    flags = ("--shape", "constant:10x2s", "--max-lag-ms", "20000", "--search-weight", "0")
    code, printed = load(stub.url, tmp_path, *EVEN, *flags)
    assert code == 0, printed
    rows = rows_of(tmp_path)
    assert len(rows) == 20 and {row.ending for row in rows} == {"complete"}
    # Each waited until the last was due.
    for row in rows:
        assert row.latency_s is not None and row.latency_s >= rows[-1].intended_s - row.intended_s


def test_surplus_is_counted_as_rejected_and_the_run_is_no_failure(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.ending = "full"
    code, printed = load(stub.url, tmp_path, *EVEN, "--rate", "10", "-t", "1s", "--max-lag-ms", "20000")
    assert code == 0, printed
    rows = rows_of(tmp_path)
    assert len(rows) == 10
    assert {(row.ending, row.status, row.retry_after_s) for row in rows} == {("rejected", 503, 1.0)}


def test_what_cannot_be_in_flight_is_not_sent_and_said(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.answer_after = 3
    flags = ("--shape", "constant:10x1s", "--max-in-flight", "2", "--drain-s", "1", "--max-lag-ms", "20000")
    _, printed = load(stub.url, tmp_path, *EVEN, *flags)
    endings = [row.ending for row in rows_of(tmp_path)]
    assert endings == ["cut off", "cut off"] + ["not sent"] * 8
    assert "2 cut off, 8 not sent" in printed
    assert len(stub.behaviour.bodies) == 2


def test_a_late_client_makes_the_run_invalid(stub: Stub, tmp_path: Path) -> None:
    code, printed = load(stub.url, tmp_path, *EVEN, "--shape", "constant:10x1s", "--max-lag-ms", "0.000001")
    assert code == 1
    assert "INVALID: more than 1e-06 ms at p99" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shape", "wave:1"), "'wave:1' is not a shape; shapes are steps:"),
        (("--rate", "0"), "'0' is not a number above 0"),
        (("--rate", "2"), "--rate needs -t"),
        (("--rate", "2", "--shape", "constant:1x1s"), "--rate and --shape are both set"),
        (("--rate", "2", "-t", "1s", "-u", "4"), "send from one user in one process"),
    ],
)
def test_bad_flags_end_with_one_message_and_exit_code_2(
    stub: Stub, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    code, printed = load(stub.url, tmp_path, *flags)
    assert code == 2, printed
    assert message in printed
    assert "Traceback" not in printed
    assert not stub.behaviour.bodies


def test_no_server_is_said_with_how_to_start_one(tmp_path: Path) -> None:
    code, printed = load("http://127.0.0.1:9", tmp_path)
    assert code == 1
    assert "no server answers at http://127.0.0.1:9" in printed and "make up" in printed
    assert "Traceback" not in printed
