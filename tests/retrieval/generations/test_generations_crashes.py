"""Killed while a generation is built or put in place: the next process goes on, and nothing is lost or half there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from crash_tasks import FIRST, open_builder
from sqlalchemy import func, select
from stub_encoder import StubEncoder

from engine.retrieval.service import Retriever
from engine.retrieval.store import tables
from engine.values import DocumentWrite, Evidence, Query

NUM_PAGES = 5
FILES = ["building.py", "cutting.py", "beside.py", "generations.py", "uncut.py", "placing.py"]


@pytest.fixture
def before(tmp_path: Path) -> Path:
    data = tmp_path / "before"
    retriever = Retriever(data, StubEncoder("first"), FIRST)
    body = b"# Page\n\nSentence of site. " + b"Some other words to be cut. " * 6
    retriever.write("docs", [DocumentWrite(f"site/{number}", body) for number in range(NUM_PAGES)])
    retriever.write("docs", [DocumentWrite("empty", b" ")])
    retriever.close()
    return data


def under_way(data: Path) -> tuple[int, bool]:
    """The generation in place, and whether something was under way, before anybody goes on."""
    retriever = Retriever(data, StubEncoder("first"), FIRST, load_encoder=StubEncoder, building=Never())
    try:
        found = retriever.generations.list("docs")
        check_whole(retriever)
        return next(row["generation"] for row in found if row["state"] == "current"), any(row["task"] for row in found)
    finally:
        retriever.close()


class Never:
    """An executor that has no time."""

    def submit(self, task) -> None:
        pass

    def shutdown(self, **_) -> None:
        pass


def check_whole(retriever: Retriever) -> None:
    """Every document is found by meaning and by words, in as many chunks as it has, each once."""
    rows = retriever.list_documents("docs", source=None, after=None, limit=99)
    num_chunks = sum(row["chunks"] for row in rows)
    assert {row["id"] for row in rows} >= {f"site/{number}" for number in range(NUM_PAGES)} | {"empty"}
    assert retriever.status()["chunks"] == num_chunks
    dense, lexical = (
        found
        for found in retriever.evidence([Query("sentence", "docs", 999, mode=mode) for mode in ("dense", "lexical")])
    )
    assert isinstance(dense, Evidence) and isinstance(lexical, Evidence)
    assert len({passage.chunk for passage in dense.passages}) == len(dense.passages) == num_chunks
    assert {passage.document for passage in lexical.passages} == {row["id"] for row in rows} - {"empty"}


@pytest.mark.parametrize(
    "step", [41, pytest.param(2, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])], ids="every {}th line".format
)
def test_killed_at_any_line_the_next_process_ends_what_was_begun(before, tmp_path, forks, step):
    data = shutil.copytree(before, tmp_path / "data")
    seen = set()
    for _ in forks.kills("build_and_go_back", FILES, step=step, data=str(data)):
        seen.add(under_way(data))
        retriever = open_builder(data)
        rows = retriever.generations.list("docs")
        assert not any(row["task"] for row in rows)
        check_whole(retriever)
        jobs = retriever.jobs(limit=9)
        assert {job["state"] for job in jobs} <= {"done"}
        with retriever._store.reading() as connection:
            num_switches = select(func.count()).where(tables.operations.c.op == "switch")
            assert connection.execute(num_switches).scalar_one() == len(jobs)
        retriever.close()
        shutil.rmtree(data)
        shutil.copytree(before, data)
    assert seen >= {(1, False), (1, True), (2, True)}
    assert under_way(data) == (1, False)
