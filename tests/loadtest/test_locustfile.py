"""Runs the real locust in a process of its own against a small server that speaks our HTTP."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chat_stub import TOKENS, Stub, running_stub

# Looked for, not imported: locust turns every thread of the process that imports it into a greenlet.
if importlib.util.find_spec("locust") is None:
    pytest.skip("locust is in the bench extra: pip install '.[bench]'", allow_module_level=True)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server


@dataclass(frozen=True)
class Result:
    """`rows` of locust's JSON file by (type, name), and all that was printed."""

    exit_code: int
    rows: dict[tuple[str, str], dict[str, Any]]
    printed: str


def run_locust(server: Stub, folder: Path, *flags: str, run_time: str = "2s") -> Result:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "-u", "2", "-r", "2"]
    command += ["-t", run_time, "--stop-timeout", "5", "--host", server.url, "--only-summary"]
    # The CSV files lag by up to a second, so the JSON file is what a short run can be judged by.
    command += ["--json-file", str(folder / "out"), *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    printed = " ".join((done.stdout + done.stderr).split())
    assert (folder / "out.json").exists(), printed
    rows = json.loads((folder / "out.json").read_text())
    return Result(done.returncode, {(row["method"], row["name"]): row for row in rows}, printed)


STREAMS_ONLY = ("--chat-weight", "0", "--search-weight", "0")


def test_locust_reports_each_measure_per_route_without_failures(stub: Stub, tmp_path: Path) -> None:
    result = run_locust(stub, tmp_path, "--max-tokens", "8", "--collection", "docs", run_time="3s")
    assert result.exit_code == 0, result.printed
    measured = {(measure, route) for measure in ("TTFT", "ITL", "TPOT", "E2E") for route in ("direct", "rag")}
    assert measured | {("SEARCH", "dense")} <= set(result.rows)
    assert any(measure == "WHOLE" for measure, _ in result.rows)
    assert not any(row["num_failures"] for row in result.rows.values())
    for key in measured:
        assert result.rows[key]["total_content_length"] == result.rows[key]["num_requests"] * len(TOKENS)
    assert "goodput:" in result.printed
    assert "rejected: none failed: none" in result.printed
    asked = [body for body in stub.behaviour.bodies if "messages" in body]
    assert {body["max_tokens"] for body in asked} == {8}
    assert {body["switchyard"]["collection"] for body in asked} == {"docs"}
    assert {body["collection"] for body in stub.behaviour.bodies if "query" in body} == {"docs"}


def test_first_token_is_timed_when_it_arrives_and_not_with_the_rest(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.pause_s = 1.0
    result = run_locust(stub, tmp_path, *STREAMS_ONLY, run_time="1s")
    first_ms, whole_ms = (
        max(row["max_response_time"] for key, row in result.rows.items() if key[0] == measure)
        for measure in ("TTFT", "E2E")
    )
    # The server pauses for 3 s after the first token; a client that waits for a full buffer sees both at once.
    assert whole_ms - first_ms > 1000


def test_streams_of_one_user_share_a_connection(stub: Stub, tmp_path: Path) -> None:
    run_locust(stub, tmp_path, *STREAMS_ONLY)
    assert len(stub.behaviour.bodies) > 4
    assert len(stub.behaviour.connections) == 2


def test_a_connection_closed_after_done_does_not_spoil_the_answer(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.ending = "abrupt"
    result = run_locust(stub, tmp_path, *STREAMS_ONLY, run_time="1s")
    assert result.exit_code == 0, result.printed
    assert {"TTFT", "E2E"} <= {measure for measure, _ in result.rows}
    assert "failed: none" in result.printed


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("cut", "connection broke mid-stream"),
        ("error", "the generator is unavailable"),
        ("unfinished", "stream ended without data: [DONE]"),
    ],
)
def test_a_stream_that_breaks_off_counts_as_a_failure_of_its_route(
    stub: Stub, tmp_path: Path, ending: str, message: str
) -> None:
    stub.behaviour.ending = ending
    result = run_locust(stub, tmp_path, *STREAMS_ONLY, run_time="1s")
    assert result.exit_code == 1
    assert {measure for measure, _ in result.rows} == {"E2E"}
    for (_, route), row in result.rows.items():
        assert row["num_failures"] == row["num_requests"] > 0
        assert f"x E2E {route}: {message}" in result.printed


def test_a_full_server_counts_as_rejected_and_not_as_failed(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.ending = "full"
    result = run_locust(stub, tmp_path, *STREAMS_ONLY)
    assert result.exit_code == 0
    assert set(result.rows) == {("REJECTED", "503 stream")}
    assert result.rows["REJECTED", "503 stream"]["num_failures"] == 0
    assert f"rejected: {len(stub.behaviour.bodies)} x 503 stream" in result.printed
    # Two users who wait a second after each rejection cannot send many in two seconds.
    assert len(stub.behaviour.bodies) <= 8


def test_a_run_in_which_nothing_finished_fails_and_says_what_was_cut_off(stub: Stub, tmp_path: Path) -> None:
    stub.behaviour.pause_s = 10.0
    result = run_locust(stub, tmp_path, *STREAMS_ONLY, "--stop-timeout", "0", run_time="1s")
    assert result.exit_code == 1
    assert result.rows == {}
    assert "cut off by the end of the run: 2 x stream" in result.printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--stream-weight", "0", *STREAMS_ONLY), "are all 0"),
        (("--questions", "absent.jsonl"), "absent.jsonl: cannot be read"),
        (("--max-tokens", "0"), "'0' is not a whole number of 1 or more"),
    ],
)
def test_bad_flags_end_with_one_message_and_exit_code_2(flags: tuple[str, ...], message: str) -> None:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "-u", "1", "-t", "1s"]
    command += ["--host", "http://127.0.0.1:9", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
