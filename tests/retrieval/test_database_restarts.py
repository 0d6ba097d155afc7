"""PostgreSQL crashes and comes back under concurrent writes and searches: nothing is lost, nothing counted twice."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import select
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import StoreUnavailable
from engine.retrieval.service import Retriever
from engine.retrieval.store import database, tables
from engine.values import DocumentWrite, Evidence, Query

_NUM_WRITERS = 3
_NUM_CRASHES = 4
_WAIT_S = 60.0


class Load:
    """Writers and a searcher who go on until they are told to stop."""

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(_NUM_WRITERS + 2)
        self.acknowledged: dict[str, int] = {}
        self.refused: list[StoreUnavailable] = []
        self.jobs: list[str] = []
        self.num_searches = 0
        self._tasks: list[Future[None]] = [self._pool.submit(self._write, i) for i in range(_NUM_WRITERS)]
        self._tasks += [self._pool.submit(self._enqueue), self._pool.submit(self._search)]

    def wait(self, what: Callable[[], int], more: int) -> None:
        """Until `what` has grown by `more`; a task that failed fails the test."""
        target = what() + more
        with self._changed:
            arrived = self._changed.wait_for(lambda: what() >= target or self._failed(), _WAIT_S)
        assert arrived and not self._failed(), [task.exception() for task in self._failed()] or "nothing moves"

    def stop(self) -> None:
        self._stop.set()
        self._pool.shutdown()
        for task in self._tasks:
            task.result()

    def _failed(self) -> list[Future[None]]:
        return [task for task in self._tasks if task.done()]

    def _write(self, writer: int) -> None:
        number = 0
        while not self._stop.is_set():
            id = f"w{writer}/{number}"
            items = [DocumentWrite(id, f"volume {id} of the region".encode())]
            if number > 3:
                items.append(DocumentWrite(f"w{writer}/{number - 3}", delete=True))
            try:
                (first, *_) = self._retriever.write("docs", items)
            except StoreUnavailable as error:
                # As a client does on 503, the same write is sent again.
                self.refused.append(error)
                continue
            assert first.error is None
            with self._changed:
                self.acknowledged[id] = first.version
                self._changed.notify_all()
            number += 1

    def _enqueue(self) -> None:
        number = 0
        while not self._stop.is_set():
            with contextlib.suppress(StoreUnavailable):
                (result,) = self._retriever.enqueue("docs", [DocumentWrite(f"later/{number}", b"volume for later")])
                assert result.job is not None
                self.jobs.append(result.job)
                number += 1
            self._stop.wait(0.05)

    def _search(self) -> None:
        while not self._stop.is_set():
            for mode in ("hybrid", "dense", "lexical"):
                (found,) = self._retriever.evidence([Query("volume of the region", "docs", 5, mode=mode)])
                assert isinstance(found, Evidence), found
                assert len(found.passages) >= 1
            with self._changed:
                self.num_searches += 1
                self._changed.notify_all()


@pytest.mark.chaos
def test_nothing_is_lost_and_searches_go_on_while_postgres_crashes_under_load(crashing, tmp_path, monkeypatch):
    # Short, so that some writes are refused as well.
    monkeypatch.setattr(database, "WRITE_WAIT_S", 1.0)
    retriever = Retriever(tmp_path / "data", StubEncoder(), SETTINGS, store=crashing.url)
    retriever.write("docs", [DocumentWrite("first", b"volume of the region")])
    load = Load(retriever)
    try:
        for crash in range(_NUM_CRASHES):
            load.wait(lambda: len(load.acknowledged), 20)
            crashing.crash()
            load.wait(lambda: load.num_searches, 3)
            if crash % 2:
                load.wait(lambda: len(load.refused), 0)
            crashing.start()
        load.wait(lambda: len(load.acknowledged), 20)
    finally:
        load.stop()
        retriever.close()

    retriever = Retriever(tmp_path / "data", StubEncoder(), SETTINGS, store=crashing.url)
    with contextlib.closing(retriever):
        with retriever._store.reading() as connection:
            o = tables.operations
            log = connection.execute(select(o.c.version, o.c.op, o.c.document).order_by(o.c.pk)).all()
        versions = [version for version, *_ in log]
        assert sorted(set(versions)) == list(range(1, max(versions) + 1)), "versions have a gap"
        puts = Counter(document for _, op, document in log if op == "put")
        assert set(puts.values()) == {1}, "a write was applied twice"
        assert load.acknowledged.keys() <= puts.keys(), "an acknowledged write is lost"
        by_document = {document: version for version, op, document in log if op == "put"}
        # A write refused with its outcome unknown answers `unchanged` when it is sent again, at a later version.
        assert all(by_document[id] <= version for id, version in load.acknowledged.items())
        for job in load.jobs:
            assert retriever.job(job)["state"] in ("queued", "running", "done")
        present = {row["id"] for row in retriever.list_documents("docs", source=None, after=None, limit=10_000)}
        deleted = {document for _, op, document in log if op == "delete"}
        assert present >= puts.keys() - deleted and not present & deleted
        for mode in ("dense", "lexical"):
            (found,) = retriever.evidence([Query("volume of the region for later", "docs", 10_000, mode=mode)])
            assert {passage.document for passage in found.passages} == present
