"""Searches and writes go on while generations are built, put in place and taken back; each sees whole writes only."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_encoder import SETTINGS, StubEncoder

from engine.retrieval.following import Follower
from engine.retrieval.reading import Reader
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite, Evidence, Query

NUM_PAGES = 8
FIRST = SETTINGS.model_copy(update={"model": "first"})


def pages(saying: int) -> list[DocumentWrite]:
    """All of them say the same, so that a search which finds two sayings has seen half a write."""
    text = f"every page says saying{saying} today. " * 6
    return [DocumentWrite(f"site/{number}", f"# Page\n\n{text}".encode()) for number in range(NUM_PAGES)]


class Load:
    """Threads that search and write until they are stopped; what went wrong is kept."""

    def __init__(self, retriever: Retriever, follower: Follower) -> None:
        self.retriever = retriever
        self.problems: list[str] = []
        self.num_searches = {"retriever": 0, "follower": 0}
        self.versions = {"retriever": 0, "follower": 0}
        self.num_writes = 0
        self._stop = threading.Event()
        tasks: list[Callable[[], None]] = [
            self._write,
            lambda: self._search("retriever", retriever),
            lambda: self._search("follower", follower),
        ]
        self._threads = [threading.Thread(target=self._kept, args=(task,)) for task in tasks]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _kept(self, task: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set() and not self.problems:
                task()
        except Exception as error:
            self.problems.append(repr(error))

    def _write(self) -> None:
        self.num_writes += 1
        results = self.retriever.write("docs", pages(self.num_writes))
        assert {result.status for result in results} == {"updated"}
        # What was acknowledged is there.
        query = Query("every page", "docs", 999, min_version=results[0].version)
        for _ in range(5):
            self._check("retriever", self.retriever.evidence([query])[0])

    def _search(self, name: str, reader: Reader) -> None:
        before = self.versions[name]
        for mode in ("hybrid", "dense", "lexical"):
            found = reader.evidence([Query("every page says today", "docs", 999, mode=mode)])[0]
            self._check(name, found)
            assert isinstance(found, Evidence) and found.version >= before, f"{name} went back"
            self.versions[name] = found.version
            self.num_searches[name] += 1

    def _check(self, name: str, found: object) -> None:
        assert isinstance(found, Evidence), f"{name}: {found!r}"
        sayings = {one for passage in found.passages for one in re.findall(r"saying\d+", passage.text)}
        documents = {passage.document for passage in found.passages}
        assert (len(sayings), len(documents)) == (1, NUM_PAGES), f"{name}: half a write at {found.version}: {sayings}"


@pytest.fixture
def load(open_retriever, tmp_path: Path, store_at):
    retriever = open_retriever(StubEncoder("first"), FIRST, load_encoder=StubEncoder)
    retriever.write("docs", pages(0))
    data = tmp_path / "data"
    follower = Follower(data, StubEncoder("first"), FIRST, store=store_at(data), load_encoder=StubEncoder)
    follower.start()
    load = Load(retriever, follower)
    yield load
    load.stop()
    follower.close()


def wait_for(retriever: Retriever, job: str) -> dict:
    pause = threading.Event()
    while (found := retriever.job(job))["finished_at"] is None:
        pause.wait(0.01)
    return found


@pytest.mark.timeout(240)
def test_no_search_and_no_write_fails_or_sees_half_of_one_while_generations_change(load):
    retriever = load.retriever
    orders = [
        lambda: retriever.generations.build("docs", model="second", switch="always"),
        lambda: retriever.generations.build("docs", model="third", chunk_tokens=16, switch="always"),
        lambda: retriever.generations.use("docs", 1),
    ]
    in_place = []
    for order in orders:
        done = wait_for(retriever, order())
        assert (done["state"], load.problems) == ("done", [])
        searches = dict(load.num_searches)
        pause = threading.Event()  # until both have searched what is there now
        while not load.problems and any(load.num_searches[name] < number + 3 for name, number in searches.items()):
            pause.wait(0.005)
        in_place.append(retriever._live["docs"].generation)
    retriever.generations.drop("docs", 3)
    load.stop()
    assert load.problems == [] and in_place == [2, 3, 1]
    assert load.num_writes > 5 and min(load.num_searches.values()) > 5
