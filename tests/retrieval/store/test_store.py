"""The store: what a committed write leaves behind, and what a failed one does not."""

from __future__ import annotations

import subprocess
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event, func, inspect, select, text

from engine.errors import DataFolderError, StorageFull
from engine.retrieval.encoding.protocol import EncoderIdentity
from engine.retrieval.store import tables
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import Store
from engine.retrieval.store.write import Change, NewChunk, NewDocument

ENCODER = EncoderIdentity("e", "digest", 4, "mean", True, 64)


def new_document(document_id: str, *texts: str, body: str = "") -> NewDocument:
    whole = "".join(texts)
    starts = np.cumsum([0, *map(len, texts)]).tolist()
    chunks = tuple(
        NewChunk(f"{document_id}#{i}", starts[i], starts[i + 1], "", f"hash of {texts[i]}") for i in range(len(texts))
    )
    content = body or whole
    return NewDocument(document_id, "s", "T", "text/plain", content, content, {"k": [1]}, whole, chunks)


def apply(store: Store, *puts: NewDocument, deletes: tuple[str, ...] = (), commit: bool = True, **where: str) -> Change:
    hashes = {chunk.text_hash for put in puts for chunk in put.chunks}
    vectors = {text_hash: np.full(4, len(text_hash), np.float32) for text_hash in hashes}
    with store.transaction() as transaction:
        change = transaction.apply(
            where.get("collection", "c"),
            where.get("tenant", ""),
            puts=puts,
            deletes=deletes,
            vectors=vectors,
            encoder=ENCODER,
            chunking={"chunk_tokens": 1},
        )
        if commit:
            transaction.commit()
    return change


def count(store: Store, table) -> int:
    with store._engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


@pytest.fixture
def store(tmp_path, store_at):
    store = Store(tmp_path, url=store_at(tmp_path))
    yield store
    store.close()


def test_write_that_is_not_committed_leaves_nothing(store):
    apply(store, new_document("a", "one"), commit=False)
    assert {count(store, table) for table in tables.metadata.sorted_tables if table.name != "meta"} == {0}


def test_passage_is_the_slice_of_its_documents_text(store):
    change = apply(store, new_document("a", "Größe 😀 ", "日本語 zwei"))
    assert [store.passages.read([chunk.key])[chunk.key].text for chunk in change.added] == ["Größe 😀 ", "日本語 zwei"]


def test_update_replaces_chunks_and_keeps_shared_embeddings(store):
    first = apply(store, new_document("a", "one", "two"), new_document("b", "two", "three"))
    second = apply(store, new_document("a", "two", "four"))
    assert second.removed == [chunk.key for chunk in first.added[:2]]
    assert second.statuses == {"a": "updated"}
    assert (first.version, second.version) == (1, 2)
    assert set(store.embeddings("digest", [f"hash of {word}" for word in "one two three four".split()])) == {
        f"hash of {word}" for word in "two three four".split()
    }
    assert count(store, tables.chunks) == 4


def test_delete_removes_everything_but_the_log(store):
    apply(store, new_document("a", "one"), new_document("b", "one"))
    change = apply(store, deletes=("a", "nowhere"))
    assert change.statuses == {"a": "deleted", "nowhere": "absent"}
    assert count(store, tables.embeddings) == 1
    apply(store, deletes=("b",))
    sizes = [count(store, table) for table in (tables.documents, tables.chunks, tables.embeddings)]
    assert sizes == [0, 0, 0]
    with store._engine.connect() as connection:
        log = connection.execute(select(tables.operations.c["version", "op", "document"])).all()
    assert [tuple(row) for row in log] == [(1, "put", "a"), (1, "put", "b"), (2, "delete", "a"), (3, "delete", "b")]


def test_write_that_changes_nothing_makes_no_version(store):
    assert apply(store, deletes=("a",)).version == 0
    assert store.collections() == []
    apply(store, new_document("a", "one"))
    assert apply(store, new_document("a", "one"), deletes=("b",)).version == 1
    assert store.collections()[0].version == 1


def test_row_numbers_are_never_given_out_twice(store):
    first = apply(store, new_document("a", "one"))
    apply(store, deletes=("a",))
    assert apply(store, new_document("a", "one")).added[0].key > first.added[0].key


def test_collections_and_tenants_do_not_see_each_other(store):
    apply(store, new_document("a", "one"))
    apply(store, new_document("a", "two"), tenant="t")
    apply(store, new_document("a", "three"), collection="d")
    assert store.document("c", "", "a")["text"] == "one"
    assert store.document("c", "t", "a")["text"] == "two"
    assert store.document("d", "", "a")["text"] == "three"
    assert store.document("d", "t", "a") is None
    assert [row["documents"] for row in store.sizes("t")] == [1, 0]
    ids = {state.name: state.id for state in store.collections()}
    with store.reading() as connection:
        tenants = [tenant for tenant, *_ in LogReader(connection).vectors(ids["c"], 1, "digest")]
    assert tenants in (["", "t"], ["t", ""])


def test_pages_of_documents_follow_each_other_by_id(store):
    apply(store, *(new_document(f"d{i:02}", f"text {i}") for i in range(25)))
    pages, after = [], None
    while page := store.documents("c", "", source=None, after=after, limit=10):
        pages.append([row["id"] for row in page])
        after = page[-1]["id"]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert list(chain.from_iterable(pages)) == [f"d{i:02}" for i in range(25)]
    assert store.documents("c", "", source="other", after=None, limit=10) == []


def test_more_ids_than_one_statement_takes_are_looked_up(store):
    apply(store, *(new_document(f"d{i}", f"text {i}") for i in range(1200)))
    assert len(store.content_hashes("c", "", [f"d{i}" for i in range(2000)])) == 1200


def test_missing_embedding_is_reported_as_damage(store):
    apply(store, new_document("a", "one"))
    with (
        store.reading() as connection,
        pytest.raises(DataFolderError, match="chunks without an embedding; restore it from a backup"),
    ):
        list(LogReader(connection).vectors(store.collections()[0].id, 1, "another digest"))


def test_full_disk_keeps_nothing_of_the_write_and_later_writes_succeed(tmp_path):
    store = Store(tmp_path)
    limit = [60]
    event.listen(
        store._engine, "begin", lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {limit[0]}")
    )
    apply(store, new_document("a", "one"))
    with pytest.raises(StorageFull, match=r"no space left for .*; nothing of this write was stored"):
        apply(store, *(new_document(f"big{i}", "x" * 100_000) for i in range(5)))
    assert store.collections()[0].version == 1
    assert [row["id"] for row in store.documents("c", "", source=None, after=None, limit=10)] == ["a"]
    limit[0] = 100_000
    assert apply(store, new_document("big", "x" * 500_000)).version == 2
    store.close()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a file system of 1 MiB cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.chaos
def test_real_disk_that_is_full_keeps_nothing_of_the_write_and_the_store_opens_again(small_disk: Path):
    store = Store(small_disk)
    apply(store, new_document("a", "one"))
    for attempt in range(3):
        with pytest.raises(StorageFull):
            apply(store, *(new_document(f"big{attempt} {i}", "x" * 100_000) for i in range(12)))
    assert [row["id"] for row in store.documents("c", "", source=None, after=None, limit=10)] == ["a"]
    store.close()
    store = Store(small_disk)
    assert store.collections()[0].version == 1
    with store._engine.connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    assert apply(store, deletes=("a",)).version == 2
    store.close()


@pytest.mark.chaos
def test_disk_that_became_read_only_is_refused_and_holds_what_it_held(small_disk: Path):
    store = Store(small_disk)
    apply(store, new_document("a", "one"))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DataFolderError, match=r"cannot be written \(Read-only file system\)"):
        Store(small_disk)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    store = Store(small_disk)
    assert store.document("c", "", "a")["text"] == "one"
    store.close()


def test_reading_sees_one_moment_whatever_is_written_meanwhile(store):
    apply(store, new_document("a", "one"))
    with store.reading() as connection:
        ids = select(tables.documents.c.id)
        assert connection.execute(ids).scalars().all() == ["a"]
        apply(store, new_document("b", "two"))
        assert connection.execute(ids).scalars().all() == ["a"]
    assert count(store, tables.documents) == 2


def test_error_inside_writing_rolls_all_of_it_back(store):
    apply(store, new_document("a", "one"))
    with pytest.raises(KeyError), store.writing() as connection:
        connection.execute(tables.chunks.delete())
        connection.execute(text("CREATE TABLE stray (x INTEGER)"))
        raise KeyError
    assert count(store, tables.chunks) == 1
    with store.writing() as connection:
        connection.execute(tables.chunks.delete())
    assert count(store, tables.chunks) == 0
    with store.reading() as connection:
        assert "stray" not in inspect(connection).get_table_names()
