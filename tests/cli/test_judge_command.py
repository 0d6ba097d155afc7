"""`switchyard judge`, against answers of a server, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from engine.cli.client import Client
from engine.cli.main import main

FIT = {
    **{"alpha": 0.35, "is_used": True, "num_fitted": 50, "num_held_out": 50, "default": 0.8, "fitted": 0.85},
    **{"dense": 0.7, "lexical": 0.75, "gain": 0.05, "gain_low": 0.01, "gain_high": 0.09, "fitted_at": 1.0},
}
INFO = {
    **{"judgements": 2, "queries": 2, "unknown_documents": 0, "missing": 98, "is_fitting": False},
    **{"problem": None, "weight": None, "fit": None},
}


@pytest.fixture
def serve(monkeypatch):
    """Makes the command talk to a server that gives these answers in turn; returns the requests that it got."""

    def start(*answers: Any) -> list[httpx.Request]:
        requests: list[httpx.Request] = []
        left = list(answers)

        def answer(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            status, body = left.pop(0)
            return httpx.Response(status, json=body)

        def connect(client: Client, url: str, *_: Any) -> None:
            client._url = url
            client._http = httpx.Client(transport=httpx.MockTransport(answer), base_url=url)

        monkeypatch.setattr(Client, "__init__", connect)
        return requests

    return start


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    qrels, queries = tmp_path / "qrels.txt", tmp_path / "queries.jsonl"
    qrels.write_text("q1 0 a.md 2\nq1 0 b.md -1\nq2 0 c.md 1\nq9 0 c.md 1\n")
    queries.write_text('{"id": "q1", "text": "what is it?"}\n{"_id": "q2", "text": "who?"}\n')
    return qrels, queries


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["judge", *map(str, arguments)])


def sent(*failures: str) -> tuple[int, dict]:
    return 200, INFO | {
        "results": [{"query": "", "document": "", "status": "failed", "error": one} for one in failures]
    }


def test_judge_sends_lines_waits_for_the_fit_and_prints_it(serve, files):
    qrels, queries = files
    requests = serve(
        sent(), (200, INFO | {"is_fitting": True}), (200, INFO | {"fit": FIT, "weight": 0.35, "missing": 0})
    )
    done = run(qrels, "--queries", queries, "--collection", "my docs", "--source", "site")
    assert done.exit_code == 0, done.output
    assert requests[0].method == "PUT" and requests[0].url.raw_path == b"/v1/collections/my%20docs/judgements"
    assert [json.loads(line) for line in requests[0].content.splitlines()] == [
        {"query": "what is it?", "document": "site/a.md", "grade": 2},
        {"query": "what is it?", "document": "site/b.md", "grade": 0},
        {"query": "who?", "document": "site/c.md", "grade": 1},
    ]
    assert "0.850  weight of meaning 0.35, fitted on 50 queries" in done.output
    assert "gain over the default +0.050 (95 %: +0.010 to +0.090): searches use it" in done.output


def test_judge_says_how_many_queries_are_missing_and_which_documents_are_unknown(serve, files):
    serve(sent(), (200, INFO | {"unknown_documents": 2}))
    done = run(files[0], "--queries", files[1])
    assert "98 more judged queries are needed" in done.output and "2 judgements name documents" in done.output


def test_judge_says_when_the_fit_does_worse_or_fails(serve, files):
    serve(sent(), (200, INFO | {"fit": FIT | {"is_used": False, "gain": -0.01}}))
    assert "-0.010 (95 %: +0.010 to +0.090): it does worse" in run(files[0], "--queries", files[1]).output
    serve(sent(), (200, INFO | {"problem": "the disk is gone"}))
    assert "the fit failed: the disk is gone" in run(files[0], "--queries", files[1]).output


def test_refused_lines_end_with_code_1_and_json_holds_them(serve, files):
    serve(sent("line 1: no"), (200, INFO))
    done = run(files[0], "--queries", files[1], "--json")
    assert done.exit_code == 1 and "1 judgements were refused; the first: line 1: no" in done.output
    assert json.loads(done.stdout)["failures"] == ["line 1: no"]


def test_files_whose_ids_disagree_and_bad_lines_are_named(serve, files, tmp_path):
    serve()
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "x", "text": "what?"}\n')
    assert "judges no query of" in run(files[0], "--queries", other).output
    other.write_text('{"id": "x", "text": "what?"}\n{"id": "x", "text": "what?"}\n')
    assert "other.jsonl:2: id 'x' was used by a line before" in run(files[0], "--queries", other).output
    other.write_text("one two\n")
    assert "other.jsonl:1: has 2 fields" in run(other, "--queries", files[1]).output
    assert "cannot be read" in run(tmp_path / "none", "--queries", files[1]).output
