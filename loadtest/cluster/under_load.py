"""An open-loop load test beside which something is done to the server, and what is judged of its requests."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.__main__ import command
from loadtest.environment import REPOSITORY
from loadtest.open_loop.report import make_report
from loadtest.open_loop.request_log import REQUESTS_FILE, Request, read_requests
from loadtest.open_loop.run import Happening, read_run
from loadtest.server import SWITCHYARD
from loadtest.verdicts import Verdict

_END_S = 180.0


class Happened:
    """What was done to the server, and when; the report marks it."""

    def __init__(self) -> None:
        self._at: list[tuple[float, str]] = []

    def __call__(self, label: str) -> None:
        """It is done now."""
        self._at.append((time.time(), label))

    def since(self, began_unix_s: float) -> list[Happening]:
        """By the seconds of a run."""
        return [Happening(unix_s - began_unix_s, label) for unix_s, label in self._at]


def ingest_docs(url: str) -> None:
    """Fill the default collection with this project's documentation."""
    ingest = [str(SWITCHYARD), "ingest", str(REPOSITORY / "docs"), "--url", url, "--json"]
    subprocess.run(ingest, check=True, capture_output=True)


def under_load(
    url: str, out: Path, act: Callable[[Happened], None], *, seconds: float, rate: float, flags: Sequence[str]
) -> tuple[list[Request], list[Happening], float]:
    """Send requests, do something meanwhile, and write the report of it into `out`.

    Args:
        act: called when the load begins, and to return before it ends.
        seconds, rate: how long, and how many requests/s.
        flags: more of the load test.
    Returns: the requests, what happened, and when the run began by the wall clock.
    """
    happened = Happened()
    load = command(url, ["--rate", f"{rate:g}", "-t", f"{seconds:g}s", "--out", str(out), *flags])
    client = subprocess.Popen(load, cwd=REPOSITORY)
    try:
        act(happened)
        client.wait(timeout=seconds + _END_S)
    finally:
        if client.poll() is None:
            client.kill()
            client.wait()
    began = read_run(out).started_unix
    happenings = happened.since(began)
    make_report(out, happenings)
    return read_requests(out / REQUESTS_FILE), happenings, began


def answers_verdict(requests: Sequence[Request], *, may_refuse: bool = True) -> Verdict:
    """Whether each was answered, or the client was told by the server what is unavailable (`may_refuse`)."""
    refused = [each for each in requests if each.ending != "complete"]
    unclear = [each for each in refused if each.ending != "rejected" and not _names_what_is_away(each)]
    words = f"{len(requests) - len(refused)} of {len(requests)} answered, {len(refused)} refused"
    words += f", {len(unclear)} unclear"
    if unclear:
        words += f" (the first: {unclear[0].kind} {unclear[0].ending}, {unclear[0].error or 'no error'})"
    wrong = unclear if may_refuse else refused
    return Verdict("answers", bool(requests) and not wrong, float(len(wrong)), "requests", words)


def _names_what_is_away(request: Request) -> bool:
    return request.ending == "failed" and request.status is not None and "unavailable" in (request.error or "")
