"""`switchyard generations` against the HTTP application over a retriever on stub encoders."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from local_backends import LocalBackends
from starlette.testclient import TestClient

from engine.api.app import create_app
from engine.cli.client import Client
from engine.cli.main import main
from engine.config import parse_config
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Judgement

sys.path.append(str(Path(__file__).parents[1] / "retrieval"))
from stub_encoder import SETTINGS, StubEncoder

FIRST = SETTINGS.model_copy(update={"model": "first"})


@pytest.fixture
def retriever(tmp_path: Path, monkeypatch) -> Iterator[Retriever]:
    """One with 40 judged pages, which commands reach over HTTP."""
    retriever = Retriever(tmp_path / "data", StubEncoder("first"), FIRST, load_encoder=StubEncoder)
    pages = [DocumentWrite(f"site/{n}", f"# Page {n}\n\nword{n} and some more words. ".encode() * 4) for n in range(40)]
    retriever.write("docs", pages)
    retriever.judge("docs", [Judgement(f"word{n}", f"site/{n}", 1) for n in range(40)])
    backends: Any = LocalBackends(retriever, None, parse_config({}, "test"))  # type: ignore[arg-type]
    app = create_app(backends, parse_config({}, "test"))

    def connect(client: Client, url: str, *_: Any) -> None:
        client._url = url
        client._http = TestClient(app)

    monkeypatch.setattr(Client, "__init__", connect)
    monkeypatch.setattr("engine.cli.jobs._POLL_S", 0.01)
    yield retriever
    retriever.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["generations", *arguments])


def test_build_shows_the_evaluation_and_what_is_searched_from_now_on(retriever):
    result = run("build", "docs", "--model", "second")
    assert result.exit_code == 0, result.output
    assert "nDCG@10" in result.stdout and "default fusion" in result.stdout and " to +" in result.stdout
    assert "generation 2 of docs is searched from now on: it does not answer the judged queries worse" in result.stdout
    listed = run("list", "docs").stdout.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [["1", "kept", "first"], ["2", "current", "second"]]


def test_build_that_is_not_switched_to_says_how_and_use_puts_it_in_place(retriever):
    result = run("build", "docs", "--chunk-tokens", "16", "--switch", "never", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["job"]["state"], found["generation"]["report"]["is_switched"]) == ("done", False)
    used = run("use", "docs", "2")
    assert used.exit_code == 0 and "generation 2 of docs is searched from now on" in used.stdout
    assert run("drop", "docs", "1").stdout == "generation 1 of docs is dropped\n"
    assert [row["generation"] for row in json.loads(run("list", "docs", "--json").stdout)["generations"]] == [2]


def test_background_prints_the_job_that_counts_it(retriever):
    result = run("build", "docs", "--model", "second", "--background")
    (job,) = retriever.jobs(limit=1)
    assert (result.exit_code, result.stdout) == (
        0,
        f"job {job['id']}; follow it: switchyard jobs {job['id']} --follow\n",
    )


def test_failures_are_one_line_and_exit_code_1(retriever):
    for arguments, why in (
        (("build", "docs", "--chunk-tokens", "500"), "chunk_tokens=500 does not fit into this encoder"),
        (("build", "docs"), "already. Name another model or other sizes"),
        (("use", "docs", "9"), "has no generation 9"),
        (("drop", "docs", "1"), "is the current one. Use another one first"),
        (("list", "nothing"), "collection 'nothing' is unknown"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and why in result.stderr, result.output
        assert len([line for line in result.stderr.splitlines() if line.startswith("switchyard: ")]) == 1
    assert run("build", "docs", "--switch", "soon").exit_code == 2
