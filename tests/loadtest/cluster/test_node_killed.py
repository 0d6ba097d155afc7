"""Two Ray nodes, of which one is killed under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.cluster.node_killed import judge, run
from loadtest.cluster.writer import Write, Writer
from loadtest.open_loop.request_log import Request

CLEAR = "the generator is unavailable (it died or is being restarted). Retry after 2 s."


def request(at_s: float, ending: str = "complete", error: str | None = None, status: int | None = 200) -> Request:
    return Request(at_s, 0, "stream", ending, error=error, status=status)


def holds(requests: list[Request], *, lost: tuple[str, ...] = (), seconds: float = 80) -> dict[str, bool | None]:
    writer = Writer("http://127.0.0.1:1")
    writer.writes.append(Write("log/0.md", "text", 0.0, 0.1, 200))
    return {each.name: each.holds for each in judge(requests, 40.0, seconds, writer, list(lost))}


def test_answers_and_clear_errors_within_half_a_minute_hold():
    found = holds([request(10), request(41, "failed", CLEAR), request(50, "rejected", status=503), request(79)])
    assert found == {"answers": True, "full service": True, "kept": True}


@pytest.mark.parametrize(
    "unclear",
    [
        request(41, "failed", "connection reset", None),
        request(41, "failed", "HTTP 500: internal error", 500),
        request(41, "cut off"),
        request(41, "not sent"),
    ],
    ids=lambda each: f"{each.ending}: {each.error}",
)
def test_request_whose_end_says_nothing_does_not_hold(unclear):
    assert holds([request(10), unclear])["answers"] is False


def test_service_is_not_full_again_when_a_request_is_refused_after_half_a_minute():
    assert holds([request(75, "rejected", status=503)])["full service"] is False


def test_service_is_not_judged_full_when_it_was_not_watched_for_half_a_minute():
    assert holds([request(41)], seconds=60)["full service"] is False


def test_lost_write_does_not_hold():
    assert holds([request(1)], lost=("log/0.md",))["kept"] is False


@pytest.mark.chaos
@pytest.mark.timeout(500)
def test_two_node_cluster_answers_or_refuses_clearly_and_keeps_every_write_when_a_node_is_killed(
    tmp_path: Path, tiny_sources
):
    verdicts = run(
        tmp_path,
        seconds=80,
        rate=3,
        **tiny_sources,
        flags=["--max-tokens", "16", "--max-lag-ms", "10000"],
    )
    assert all(each.holds for each in verdicts), verdicts
    assert (tmp_path / "report.html").is_file()
