"""A writer that is killed at any moment leaves whole writes behind, and all that it had acknowledged."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_tasks import Step, open_retriever, step_of, wait_until_drained
from sqlalchemy import select, text
from stub_encoder import StubEncoder

from engine.errors import DataFolderError, UnknownCollection
from engine.retrieval.preparing import PreparedDocument, prepare_document
from engine.retrieval.service import Retriever
from engine.retrieval.snapshots.reader import SnapshotReader
from engine.retrieval.store import tables
from engine.retrieval.store.inbox import Inbox
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite, Query

QUESTION = "sentence of site"


class Expected:
    """What a folder must hold after a number of steps: a dictionary and nothing else."""

    def __init__(self, seed: str, chunker: Any) -> None:
        self._seed = seed
        self._chunker = chunker
        self._encoder = StubEncoder()
        self._vectors: dict[str, np.ndarray] = {}
        self._prepared: dict[tuple[str, bytes], PreparedDocument] = {}
        self.num_steps = 0
        self.versions: dict[str, int] = {}
        self.documents: dict[tuple[str, str, str], PreparedDocument] = {}
        self.snapshots: dict[int, set[tuple[str, str, str]]] = {}
        self.snapshot_version: int | None = None

    def next_step(self) -> Step:
        return step_of(self._seed, self.num_steps)

    def take_step(self) -> int:
        """The version that the next step must answer, once it is taken."""
        step = self.next_step()
        self.num_steps += 1
        before = dict(self.documents)
        for item in step.items:
            key = (step.collection, step.tenant, item.id)
            if item.delete:
                self.documents.pop(key, None)
            else:
                self.documents[key] = self._prepare(item)
        version = self.versions.get(step.collection, 0) + (before != self.documents)
        if version:
            self.versions[step.collection] = version
        if step.is_snapshot:
            self.snapshot_version = version or None
        self.snapshots[self.versions.get("docs", 0)] = self.hashes("docs")
        return version

    def hashes(self, collection: str) -> set[tuple[str, str, str]]:
        """(tenant, id, SHA-256 of the body) of what the collection holds."""
        rows = [(key, prepared.document.body_hash) for key, prepared in self.documents.items()]
        return {(tenant, id, body_hash) for (name, tenant, id), body_hash in rows if name == collection}

    def chunks(self, collection: str, tenant: str) -> dict[str, tuple[str, str, np.ndarray]]:
        """Document, text and vector of each chunk that a search may find."""
        return {
            chunk.id: (id, prepared.document.text[chunk.start : chunk.end], self.vector(prepared, chunk.text_hash))
            for (name, owner, id), prepared in self.documents.items()
            if (name, owner) == (collection, tenant)
            for chunk in prepared.document.chunks
        }

    def vector(self, prepared: PreparedDocument, text_hash: str) -> np.ndarray:
        if text_hash not in self._vectors:
            (self._vectors[text_hash],) = self._encoder.encode([prepared.texts[text_hash]])
        return self._vectors[text_hash]

    def _prepare(self, item) -> PreparedDocument:
        key = (item.id, item.body)
        if key not in self._prepared:
            self._prepared[key] = prepare_document(item, self._chunker)
        return self._prepared[key]


@pytest.mark.parametrize(
    "num_cycles", [5, pytest.param(200, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])], ids="{} kills".format
)
def test_killed_writer_leaves_every_acknowledged_write_and_no_half_one(tmp_path, forks, num_cycles):
    data, snapshot, rng = tmp_path / "data", tmp_path / "docs.snapshot", random.Random(7)
    retriever = open_retriever(data)
    expected = Expected("7", retriever._writer._new_recipe.chunker)
    retriever.close()
    for cycle in range(num_cycles):
        child = forks.start("write_steps", data=str(data), seed="7", first=expected.num_steps, snapshot=str(snapshot))
        # Before the folder is open, between two writes, or inside one: whatever these come to.
        said = [child.says() for _ in range((3, 0, 10, 1, 5)[cycle % 5])]
        time.sleep(rng.uniform(0.0, 0.03))
        child.kill()
        for words in filter(None, [*said, *child.rest()]):
            assert words[0] == "wrote", words
            assert (int(words[1]), int(words[2])) == (expected.num_steps, expected.take_step())
        check_whole(data, snapshot, expected)
    assert expected.num_steps > 3 * num_cycles and expected.snapshot_version is not None


def check_whole(data: Path, snapshot: Path, expected: Expected) -> None:
    """The folder is at the last acknowledged step or at the one after it, in all of its parts."""
    retriever = open_retriever(data)
    try:
        snapshot_versions = {expected.snapshot_version}
        if stored_hashes(retriever, expected) != all_hashes(expected):
            expected.take_step()
        elif expected.next_step().is_snapshot:
            # The step that was not acknowledged may have been this one; it is taken again.
            snapshot_versions.add(expected.versions.get("docs"))
        assert stored_hashes(retriever, expected) == all_hashes(expected)
        assert {row["name"]: row["version"] for row in retriever.collections()} == expected.versions
        for collection in expected.versions:
            for tenant in ("", "acme"):
                check_search(retriever, collection, tenant, expected)
        check_tables(retriever, expected)
        check_snapshot(snapshot, snapshot_versions, expected)
    finally:
        retriever.close()


@pytest.mark.parametrize(
    "num_cycles", [6, pytest.param(200, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])], ids="{} kills".format
)
def test_killed_server_applies_every_accepted_write_once_and_in_order_after_the_restart(tmp_path, forks, num_cycles):
    data, rng = tmp_path / "data", random.Random(11)
    retriever = open_retriever(data)
    expected = Expected("11", retriever._writer._new_recipe.chunker)
    retriever.close()
    num_waiting = 0
    for cycle in range(num_cycles):
        child = forks.start("write_both", data=str(data), seed="11", first=expected.num_steps)
        said = [child.says() for _ in range((4, 0, 30, 1, 12)[cycle % 5])]
        time.sleep(rng.uniform(0.0, 0.05))
        child.kill()
        for words in filter(None, [*said, *child.rest()]):
            assert words == ["took", str(expected.num_steps)]
            expected.take_step()
        num_waiting += len(waiting_ids(data))
        # Every other restart is one in which the worker is killed as well; the step under way is taken again.
        if cycle % 2:
            check_drained(data, expected)
    assert expected.num_steps > 3 * num_cycles and num_waiting > 0


def check_drained(data: Path, expected: Expected) -> None:
    """Once nothing waits, the folder is at the last acknowledged step or at the one after it, in all of its parts."""
    retriever = open_retriever(data)
    try:
        wait_until_drained(retriever)
        jobs = [job for tenant in ("", "acme") for job in retriever.jobs(limit=1000, tenant=tenant)]
        assert {(job["state"], job["failed"], job["done"] - job["total"]) for job in jobs} <= {("done", 0, 0)}
        if stored_hashes(retriever, expected) != all_hashes(expected):
            expected.take_step()
        assert stored_hashes(retriever, expected) == all_hashes(expected)
        expected.versions = {row["name"]: row["version"] for row in retriever.collections()}
        for collection in expected.versions:
            for tenant in ("", "acme"):
                check_search(retriever, collection, tenant, expected)
        check_tables(retriever, expected)
    finally:
        retriever.close()


def waiting_ids(data: Path) -> set[str]:
    with contextlib.closing(Store(data)) as store, store.reading() as connection:
        return set(connection.execute(select(tables.inbox.c.document)).scalars())


@pytest.mark.parametrize("step", [23, pytest.param(2, marks=pytest.mark.chaos)], ids="every {}th line".format)
def test_worker_killed_at_any_line_leaves_each_write_either_waiting_or_applied_once(tmp_path, forks, step):
    before, data = tmp_path / "before", tmp_path / "data"
    retriever = open_retriever(before)
    retriever.write("docs", [DocumentWrite("site/0", b"Sentence of old."), DocumentWrite("site/9", b"Sentence kept.")])
    retriever.close()
    with contextlib.closing(Store(before)) as store:
        items = [DocumentWrite(f"site/{i}", b"Sentence of site %d." % i) for i in range(3)]
        job = Inbox(store, 10).put("docs", "", [*items, DocumentWrite("bad", b"\xff")])
    shutil.copytree(before, data)
    states = set()
    for _ in forks.kills("drain", ["backlog.py", "inbox.py", "writer.py", "write.py"], step=step, data=str(data)):
        waiting = waiting_ids(data)
        with contextlib.closing(Store(data)) as store, store.reading() as connection:
            log = connection.execute(select(tables.operations.c["document", "version"])).all()
            counted = connection.execute(select(tables.jobs).where(tables.jobs.c.id == job)).one()
        applied = {row.document for row in log if row.version > 1}
        assert waiting | applied | {"bad"} == {"site/0", "site/1", "site/2", "bad"} and not waiting & applied
        assert counted.done + counted.failed + len(waiting) == 4
        assert len(log) == 2 + len(applied)
        states.add(counted.state)
        shutil.rmtree(data)
        shutil.copytree(before, data)
    assert states == {"queued", "running", "done"}
    retriever = open_retriever(data)
    found = {row["id"] for row in retriever.list_documents("docs", source=None, after=None, limit=9)}
    assert (found, retriever.job(job)["failed"]) == ({"site/0", "site/1", "site/2", "site/9"}, 1)
    retriever.close()


def all_hashes(expected: Expected) -> dict[str, set[tuple[str, str, str]]]:
    return {collection: expected.hashes(collection) for collection in ("docs", "more")}


def stored_hashes(retriever: Retriever, expected: Expected) -> dict[str, set[tuple[str, str, str]]]:
    known = {row["name"] for row in retriever.collections()}
    return {
        collection: {
            (tenant, row["id"], row["content_hash"])
            for tenant in ("", "acme")
            if collection in known
            for row in retriever.list_documents(collection, source=None, after=None, limit=1000, tenant=tenant)
        }
        for collection in ("docs", "more")
    }


def check_search(retriever: Retriever, collection: str, tenant: str, expected: Expected) -> None:
    """A search for everything finds each chunk once, as it was written, with the score of its own vector.

    The lexical leg is at the same version and holds no chunk that is not there.
    """
    chunks = expected.chunks(collection, tenant)
    dense, lexical = (Query(QUESTION, collection, 10_000, tenant=tenant, mode=mode) for mode in ("dense", "lexical"))
    found, by_words = retriever.evidence([dense, lexical])
    if tenant and not chunks:
        assert isinstance(found, UnknownCollection)
        return
    assert found.version == by_words.version == expected.versions[collection]
    words = set(QUESTION.lower().split())
    with_words = {chunk for chunk, (_, text, _) in chunks.items() if words & set(re.findall(r"\w+", text.lower()))}
    assert with_words <= {passage.chunk for passage in by_words.passages} <= set(chunks)
    assert sorted(passage.chunk for passage in found.passages) == sorted(chunks)
    (question,) = StubEncoder().encode([QUESTION])
    for passage in found.passages:
        document, passage_text, vector = chunks[passage.chunk]
        assert (passage.document, passage.text) == (document, passage_text)
        assert passage.score == pytest.approx(float(vector @ question), abs=1e-5)


def check_tables(retriever: Retriever, expected: Expected) -> None:
    """Rows, vectors, log and versions say the same, and SQLite finds nothing wrong with its file."""
    num_chunks = sum(len(prepared.document.chunks) for prepared in expected.documents.values())
    assert retriever.status()["chunks"] == num_chunks
    with retriever._store.reading() as connection:
        assert len(connection.execute(select(tables.chunks.c.pk)).all()) == num_chunks
        stored = dict(connection.execute(select(tables.embeddings.c["text_hash", "vector"])).all())
        log = connection.execute(
            select(tables.operations.c["version", "op", "tenant", "document"], tables.collections.c.name)
            .join(tables.collections)
            .order_by(tables.operations.c.pk)
        ).all()
        assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
    needed = {
        text_hash: expected.vector(prepared, text_hash).astype("<f4").tobytes()
        for prepared in expected.documents.values()
        for text_hash in prepared.texts
    }
    assert stored == needed
    replayed: dict[tuple[str, str, str], str] = {}
    for row in log:
        replayed[row.name, row.tenant, row.document] = row.op
    assert {key for key, op in replayed.items() if op == "put"} == set(expected.documents)
    assert {
        name: max(row.version for row in log if row.name == name) for name in expected.versions
    } == expected.versions


def check_snapshot(snapshot: Path, versions: set[int | None], expected: Expected) -> None:
    """The file is a snapshot that was acknowledged, or the one under way, and holds what there was at its version."""
    if not snapshot.exists():
        assert None in versions
        return
    with SnapshotReader(snapshot) as reader:
        list(reader.verify())
        assert reader.manifest.version in versions
        held = {(document.tenant, document.id, document.body_hash) for document in reader.documents()}
    assert held == expected.snapshots[reader.manifest.version]
    expected.snapshot_version = reader.manifest.version


def test_file_that_may_not_grow_keeps_whole_writes_only(tmp_path, forks):
    data = tmp_path / "data"
    child = forks.start("write_much", data=str(data), max_file_bytes=1_000_000)
    *wrote, last = child.rest()
    assert last[0] == "refused" and last[1] in ("StorageFull", "DataFolderError")
    assert len(wrote) > 2
    retriever = open_retriever(data)
    rows = retriever.list_documents("docs", source=None, after=None, limit=1000)
    assert {row["id"] for row in rows} == {f"much/{number}" for number in range(len(wrote))}
    assert retriever.status()["chunks"] == sum(row["chunks"] for row in rows)
    retriever.close()


def test_damaged_database_is_refused_by_name_and_left_alone(tmp_path, forks):
    data = tmp_path / "data"
    assert forks.start("write_much", data=str(data), max_file_bytes=1_000_000).rest()
    retriever = open_retriever(data)
    retriever.close()
    file = data / "knowledge.sqlite3"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4096] + b"\xff" * 8192 + whole[4096 + 8192 :]):
        file.write_bytes(damaged)
        with pytest.raises(DataFolderError, match=r"is damaged .*Check the folder, or name another with --data"):
            open_retriever(data)
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(damaged).digest()
    file.write_bytes(whole)
    open_retriever(data).close()
