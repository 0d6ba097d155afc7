"""`switchyard jobs` and `ingest --background` against a server that is slow, full or restarting."""

from __future__ import annotations

import json
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from engine.cli import jobs, sending
from engine.cli.client import Client
from engine.cli.main import main

JOB = {
    **{"id": "4f1d", "kind": "ingest", "collection": "docs", "state": "running", "total": 40, "done": 10, "failed": 0},
    **{"errors": [], "created_at": 1.0, "started_at": 2.0, "finished_at": None, "progress": 0.25, "eta_s": 75.0},
    **{"version": None, "waiting_for": None},
}
DONE = JOB | {"state": "done", "done": 40, "finished_at": 3.0, "progress": 1.0, "eta_s": None, "version": 7}
BUSY = {"error": {"message": "the inbox is full", "type": "server_error", "code": "overloaded", "param": None}}


@pytest.fixture
def serve(monkeypatch):
    """Makes commands talk to a server that gives these answers in turn; returns the requests that it got."""

    def start(*answers: Any) -> list[httpx.Request]:
        requests: list[httpx.Request] = []
        left = list(answers)

        def answer(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            status, body = left.pop(0)
            return httpx.Response(status, json=body, headers={"Retry-After": "3"})

        def connect(client: Client, url: str, *_: Any) -> None:
            client._url = url
            client._http = httpx.Client(base_url=url, transport=httpx.MockTransport(answer))

        monkeypatch.setattr(Client, "__init__", connect)
        return requests

    return start


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that commands make, which take no time."""
    made: list[float] = []
    for module in (jobs, sending):
        monkeypatch.setattr(module.time, "sleep", made.append)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_running_job_is_shown_with_its_share_and_the_time_left(serve):
    serve((200, JOB))
    shown = run("jobs", "4f1d")
    assert shown.exit_code == 0
    assert shown.stdout == "job 4f1d: running, 10 of 40 done, 0 failed (25%); collection docs; about 1 min 15 s left\n"


def test_follow_goes_on_while_the_server_restarts_and_says_what_it_waits_for(serve, pauses):
    waiting = JOB | {"waiting_for": "no space left for data"}
    serve((200, JOB), (503, BUSY), (200, waiting), (200, waiting), (200, DONE))
    followed = run("jobs", "4f1d", "--follow")
    assert followed.exit_code == 0 and len(pauses) == 4
    assert followed.stdout == "job 4f1d: done, 40 of 40 done, 0 failed (100%); collection docs, index version 7\n"
    assert followed.stderr.count("waiting: no space left for data") == 1


def test_follow_with_json_prints_one_object_and_nothing_else_on_standard_output(serve, pauses):
    serve((200, JOB), (200, DONE))
    assert json.loads(run("jobs", "4f1d", "--follow", "--json").stdout) == DONE


def test_job_that_somebody_cancelled_ends_with_code_1_and_cancelling_it_does_not(serve):
    cancelled = JOB | {"state": "cancelled", "finished_at": 3.0}
    serve((200, cancelled), (200, cancelled))
    shown = run("jobs", "4f1d")
    assert shown.exit_code == 1
    assert shown.stderr == "switchyard: job 4f1d is cancelled: 10 of 40 documents are stored.\n"
    assert run("jobs", "4f1d", "--cancel").exit_code == 0


def test_more_errors_than_are_kept_are_counted(serve):
    serve((200, DONE | {"done": 37, "failed": 3, "errors": [{"item": "site/[a]", "error": "is [bold]"}]}))
    shown = run("jobs", "4f1d")
    assert "site/[a]" in shown.stdout and "is [bold]" in shown.stdout and "and 2 more" in shown.stdout


def test_empty_list_says_how_a_job_is_made(serve):
    serve((200, {"jobs": []}))
    assert run("jobs").stdout == "no jobs; `switchyard ingest PATH --background` makes one\n"


def outcome(id: str) -> dict[str, Any]:
    return {"id": id, "status": "accepted", "version": 0, "chunks": 0, "embedded": 0, "job": "4f1d"}


def test_ingest_in_the_background_waits_for_a_full_server_and_keeps_to_one_job(serve, pauses, tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "BATCH_ITEMS", 1)
    for name in ("a", "b"):
        (tmp_path / f"{name}.md").write_text(name)
    batch = {"results": [outcome("x")], "version": 0, "job": "4f1d"}
    info = {"name": "default", "version": 0, "sources": []}
    known = {"documents": [], "next": None}
    requests = serve(
        *((200, info), (200, {"jobs": []}), (200, known)), *((202, batch), (503, BUSY), (503, BUSY), (202, batch))
    )
    sent = run("ingest", tmp_path, "--background", "--json")
    assert sent.exit_code == 0, sent.output
    assert (json.loads(sent.stdout)["accepted"], json.loads(sent.stdout)["job"]) == (2, "4f1d")
    assert pauses == [3.0, 3.0]
    assert [str(request.url.params) for request in requests[3:]] == ["wait=durable"] + ["wait=durable&job=4f1d"] * 3


def test_ingest_while_a_job_runs_sends_what_seems_unchanged_and_refuses_to_sync(serve, tmp_path):
    (tmp_path / "a.md").write_text("a")
    info = {"name": "docs", "version": 1, "sources": ["site"]}
    listed = {"jobs": [JOB]}
    sha256_of_a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    known = {"documents": [{"id": "site/a.md", "content_hash": sha256_of_a}], "next": None}
    written = {"results": [outcome("site/a.md") | {"status": "updated", "version": 2}], "version": 2}
    serve((200, info), (200, listed), (200, known), (200, written))
    sent = run("ingest", tmp_path, "--collection", "docs", "--json")
    assert json.loads(sent.stdout)["updated"] == 1, sent.output
    serve((200, info), (200, listed))
    refused = run("ingest", tmp_path, "--collection", "docs", "--sync")
    assert refused.exit_code == 1 and "Let it end first: switchyard jobs 4f1d --follow" in refused.stderr


def test_follow_and_cancel_need_a_job_and_exclude_each_other():
    for arguments in (["--follow"], ["--cancel"], ["4f1d", "--follow", "--cancel"]):
        assert run("jobs", *arguments).exit_code == click.UsageError.exit_code
