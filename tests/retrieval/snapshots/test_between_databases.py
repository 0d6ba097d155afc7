"""Snapshots between SQLite and PostgreSQL: a collection comes out of either as it went into the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from stub_encoder import SETTINGS, StubEncoder

from engine.errors import StorageFull
from engine.retrieval.service import Retriever
from engine.retrieval.snapshots import snapshot as snapshots
from engine.retrieval.snapshots.snapshot import restore_snapshot, write_snapshot
from engine.retrieval.store import tables
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite, Evidence, Query
from loadtest.postgres_server import PostgresServer

DATABASES = ["sqlite", "postgres"]


@pytest.fixture
def url_of(request: pytest.FixtureRequest) -> Callable[[str], str | None]:
    def url(kind: str) -> str | None:
        if kind == "sqlite":
            return None
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.new_schema()

    return url


def fill(data: Path, url: str | None, saying: str, num_documents: int = 300) -> None:
    with contextlib.closing(Retriever(data, StubEncoder(), SETTINGS, store=url)) as retriever:
        text = "# Größe {i}\n\n{saying} saying {i} of the region. "
        items = [
            DocumentWrite(f"site/{i}", text.format(i=i, saying=saying).encode() * 3, metadata={"n": i})
            for i in range(num_documents)
        ]
        retriever.write("docs", items)
        retriever.write("docs", [DocumentWrite("site/0", delete=True), DocumentWrite("empty", b" ")])
        retriever.write("docs", [DocumentWrite("site/1", b"of another tenant")], tenant="acme")


def held(data: Path, url: str | None) -> dict[str, Any]:
    """What clients read of the collection, but for the versions."""
    found: dict[str, Any] = {}
    with contextlib.closing(Retriever(data, StubEncoder(), SETTINGS, store=url)) as retriever:
        for tenant in ("", "acme"):
            page = retriever.list_documents("docs", source=None, after=None, limit=1000, tenant=tenant)
            found[tenant] = [retriever.get_document("docs", row["id"], tenant=tenant) | {"version": 0} for row in page]
            (evidence,) = retriever.evidence([Query("saying 7 of a region", "docs", 20, tenant=tenant, mode="dense")])
            assert isinstance(evidence, Evidence)
            found[f"searched {tenant}"] = [(passage.chunk, passage.text) for passage in evidence.passages]
    return found


@pytest.mark.parametrize("source", DATABASES)
@pytest.mark.parametrize("target", DATABASES)
def test_collection_moves_between_databases_and_replaces_what_was_there(source, target, url_of, tmp_path):
    from_url, to_url = url_of(source), url_of(target)
    fill(tmp_path / "from", from_url, "first")
    fill(tmp_path / "to", to_url, "other", 5)
    with contextlib.closing(Store(tmp_path / "from", url=from_url)) as store:
        manifest = write_snapshot(store, "docs", tmp_path / "file")
    assert manifest.documents == 301
    with contextlib.closing(Store(tmp_path / "to", url=to_url)) as store:
        restored = restore_snapshot(store, tmp_path / "file", replace=True)
        assert restored.version == 4
        with store.reading() as connection:
            o = tables.operations
            log = connection.execute(select(o.c.op, o.c.document_pk).where(o.c.version == 4).order_by(o.c.pk)).all()
            present = set(connection.execute(select(tables.documents.c.pk)).scalars())
            used = set(connection.execute(select(tables.chunks.c.text_hash)).scalars())
            assert set(connection.execute(select(tables.embeddings.c.text_hash)).scalars()) == used
    assert {pk for op, pk in log if op == "put"} == present
    assert held(tmp_path / "to", to_url) == held(tmp_path / "from", from_url)


def test_restore_that_fails_half_way_changes_nothing_on_postgres(url_of, tmp_path, monkeypatch):
    url = url_of("postgres")
    fill(tmp_path / "data", url, "first")
    with contextlib.closing(Store(tmp_path / "data", url=url)) as store:
        write_snapshot(store, "docs", tmp_path / "file")
    before = held(tmp_path / "data", url)

    def fail(*_: object) -> None:
        raise StorageFull("here")

    monkeypatch.setattr(snapshots.Restore, "finish", fail)
    with contextlib.closing(Store(tmp_path / "data", url=url)) as store, pytest.raises(StorageFull):
        restore_snapshot(store, tmp_path / "file", replace=True)
    assert held(tmp_path / "data", url) == before
