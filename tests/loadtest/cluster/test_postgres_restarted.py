"""A database that stops under load, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.cluster.postgres_restarted import How, judge, main, run
from loadtest.cluster.writer import Write, Writer
from loadtest.open_loop.request_log import Request
from loadtest.open_loop.run import Happening
from loadtest.postgres_server import missing
from loadtest.verdicts import Verdict

AWAY = (Happening(40.0, "database stopped"), Happening(65.0, "database back"))
BEGAN = 1000.0


def search(at_s: float, ending: str = "complete") -> Request:
    return Request(at_s, 0, "search", ending, at_s, None, at_s + 0.02, status=200)


def write(at_s: float, took_s: float = 0.05, status: int | None = 200, *, retry_after: bool = False) -> Write:
    return Write(f"{at_s}", "text", BEGAN + at_s, took_s, status, has_retry_after=retry_after)


REFUSED = write(41, 20.1, 503, retry_after=True)
WAITED = write(61.5, 3.9)


def judged(
    requests: tuple[Request, ...] = (search(41), search(70)),
    writes: tuple[Write, ...] = (write(1), REFUSED, WAITED),
    lost: tuple[str, ...] = (),
) -> dict[str, Verdict]:
    writer = Writer("http://127.0.0.1:1")
    writer.writes += writes
    return {each.name: each for each in judge(requests, AWAY, writer, list(lost), BEGAN)}


def test_writes_that_wait_or_are_refused_and_searches_that_go_on_hold_while_postgres_is_away():
    found = judged()
    names = ("answers", "searches", "writes", "resumed", "kept")
    assert {name: each.holds for name, each in found.items()} == dict.fromkeys(names, True)
    assert found["writes"].words == "3 sent, 1 refused, 0 without a clear answer, the longest wait 20.1 s"
    assert found["resumed"].value == pytest.approx(0.4)


def test_search_that_is_refused_while_postgres_is_away_does_not_hold():
    assert judged(requests=(search(41, "rejected"), search(70)))["searches"].holds is False
    assert judged(requests=(search(39, "rejected"), search(50)))["searches"].holds is True
    assert judged(requests=(search(70),))["searches"].holds is None


@pytest.mark.parametrize(
    "unclear",
    [write(41, 1, 503), write(41, 1, 500), write(41, 1, None), write(41, 31.0)],
    ids=["no Retry-After", "500", "connection lost", "too long"],
)
def test_write_that_is_unclear_or_waits_too_long_does_not_hold_while_postgres_is_away(unclear):
    assert judged(writes=(write(1), unclear, WAITED))["writes"].holds is False


def test_writes_that_do_not_resume_when_postgres_is_back_do_not_hold():
    assert judged(writes=(write(1), REFUSED))["resumed"].holds is False
    assert judged(writes=(write(1), write(85)))["resumed"].holds is False


def test_write_that_postgres_lost_does_not_hold():
    assert judged(lost=("1",))["kept"].holds is False


def test_postgres_must_be_back_before_the_load_ends(capsys):
    assert main(["--away", "40", "--time", "80"]) == 1
    assert "--away 40 must be above 0 and below half of --time 80" in capsys.readouterr().err


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_postgres_restarted_under_load_loses_nothing_and_stops_no_search(how: How, tmp_path: Path, tiny_models):
    if why := missing():
        pytest.skip(why)
    verdicts = run(
        tmp_path,
        how=how,
        seconds=60,
        rate=5,
        away_s=24,  # some writes wait, some are refused
        models=tiny_models,
        flags=["--max-tokens", "8", "--max-lag-ms", "10000"],
    )
    assert all(each.holds for each in verdicts), verdicts
    assert (tmp_path / "report.html").is_file()
