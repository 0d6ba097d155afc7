"""The store: every read of the knowledge base's database, and its opening and closing. Writes: store_write.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, insert, inspect, select

from engine.errors import DataFolderError
from engine.retrieval import tables
from engine.retrieval.data_folder import FolderLock, connect, storage_errors
from engine.retrieval.encoding import Vectors
from engine.retrieval.store_write import Transaction, in_batches

_FILE = "knowledge.sqlite3"
_VECTOR = np.dtype("<f4")
_ROWS_PER_READ = 4096


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection with how its current generation was made."""

    id: int
    name: str
    version: int
    encoder: dict[str, Any]
    chunking: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A chunk with its text; `key` is its number in the vector rows."""

    key: int
    chunk: str
    document: str
    title: str | None
    heading: str
    text: str
    start: int
    end: int


class Store:
    """Documents, chunks and embeddings in one database. Thread-safe for reads; one write at a time."""

    def __init__(self, data: Path, *, url: str | None = None) -> None:
        """Open `data` (created where needed) and lock it until `close`.

        Args:
            data: folder of the lock and, unless `url` names a database elsewhere, of the SQLite file.
            url: SQLAlchemy URL of a database.
        Raises: DataFolderError when the folder is locked, not writable, damaged or of another schema version.
        """
        self._lock = FolderLock(data)
        self._where = str(data)
        self._engine = connect(url or f"sqlite:///{data / _FILE}")
        try:
            with storage_errors(self._where), self._engine.begin() as connection:
                _prepare_schema(connection, self._where)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database and give up the folder; may be called twice."""
        self._engine.dispose()
        self._lock.release()

    def transaction(self) -> Transaction:
        """One write; use as a context manager. What is not committed inside is rolled back."""
        return Transaction(self._engine, self._where)

    def collections(self) -> list[CollectionState]:
        """Every collection, by name."""
        c, g = tables.collections, tables.generations
        query = (
            select(c.c.id, c.c.name, c.c.version, g.c.encoder, g.c.chunking)
            .join(g, (g.c.collection == c.c.id) & (g.c.generation == c.c.generation))
            .order_by(c.c.name)
        )
        return [CollectionState(*row) for row in self._rows(query)]

    def vectors(self, collection: int, encoder: str) -> Iterator[tuple[str, NDArray[np.int64], Vectors]]:
        """Every chunk of a collection's current generation in pieces: tenant, keys [n], vectors [n, E] float32.

        Raises: DataFolderError when a chunk has no embedding by `encoder`, which no write can leave behind.
        """
        k, d, e, c = tables.chunks, tables.documents, tables.embeddings, tables.collections
        query = (
            select(k.c.pk, d.c.tenant, e.c.vector)
            .join(d, d.c.pk == k.c.document_pk)
            .join(c, (c.c.id == d.c.collection) & (c.c.generation == k.c.generation))
            .outerjoin(e, (e.c.text_hash == k.c.text_hash) & (e.c.encoder == encoder))
            .where(d.c.collection == collection)
            .order_by(k.c.pk)
        )
        with storage_errors(self._where), self._engine.connect() as connection:
            for rows in connection.execution_options(yield_per=_ROWS_PER_READ).execute(query).partitions():
                if any(row.vector is None for row in rows):
                    raise DataFolderError(f"{self._where}: chunks without an embedding; restore it from a backup.")
                for tenant in {row.tenant for row in rows}:
                    mine = [row for row in rows if row.tenant == tenant]
                    vectors = np.frombuffer(b"".join(row.vector for row in mine), _VECTOR).reshape(len(mine), -1)
                    yield tenant, np.array([row.pk for row in mine], np.int64), vectors.astype(np.float32)

    def content_hashes(self, collection: str, tenant: str, ids: Iterable[str]) -> dict[str, tuple[str, int]]:
        """content_hash and number of chunks of those documents that exist."""
        d, c = tables.documents, tables.collections
        query = select(d.c.id, d.c.content_hash, d.c.num_chunks).join(c, c.c.id == d.c.collection)
        query = query.where(c.c.name == collection, d.c.tenant == tenant)
        rows = (row for batch in in_batches(ids) for row in self._rows(query.where(d.c.id.in_(batch))))
        return {row.id: (row.content_hash, row.num_chunks) for row in rows}

    def embeddings(self, encoder: str, text_hashes: Iterable[str]) -> dict[str, Vectors]:
        """The vectors [E] of those texts that `encoder` has embedded before."""
        e = tables.embeddings
        query = select(e.c.text_hash, e.c.vector).where(e.c.encoder == encoder)
        rows = (row for batch in in_batches(text_hashes) for row in self._rows(query.where(e.c.text_hash.in_(batch))))
        return {row.text_hash: np.frombuffer(row.vector, _VECTOR).astype(np.float32) for row in rows}

    def passages(self, keys: Iterable[int]) -> dict[int, StoredPassage]:
        """The chunks behind keys of the vector rows."""
        k, d = tables.chunks, tables.documents
        # The database cuts the slice: a passage costs its own length, not that of a long document.
        text = func.substr(d.c.text, k.c.start + 1, k.c.end - k.c.start)
        columns = (k.c.pk, k.c.id, d.c.id, d.c.title, k.c.heading, text, k.c.start, k.c.end)
        query = select(*columns).join(d, d.c.pk == k.c.document_pk)
        rows = (row for batch in in_batches(keys) for row in self._rows(query.where(k.c.pk.in_(batch))))
        return {row[0]: StoredPassage(*row) for row in rows}

    def document(self, collection: str, tenant: str, document: str) -> dict[str, Any] | None:
        """One document with its text, None when there is none."""
        d = tables.documents
        rows = self._rows(_summaries(collection, tenant, d.c.text, d.c.metadata).where(d.c.id == document))
        return dict(rows[0]._mapping) if rows else None

    def documents(
        self, collection: str, tenant: str, *, source: str | None, after: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """At most `limit` summaries in the order of the ids, from behind the id `after`."""
        d = tables.documents
        query = _summaries(collection, tenant).order_by(d.c.id).limit(limit)
        query = query.where(d.c.source == source) if source is not None else query
        query = query.where(d.c.id > after) if after is not None else query
        return [dict(row._mapping) for row in self._rows(query)]

    def sizes(self, tenant: str) -> list[dict[str, Any]]:
        """Name, version, documents, chunks and sources of every collection, as the tenant sees it."""
        c, d = tables.collections, tables.documents
        query = (
            select(c.c.name, c.c.version, d.c.source, func.count(d.c.pk), func.coalesce(func.sum(d.c.num_chunks), 0))
            .outerjoin(d, (d.c.collection == c.c.id) & (d.c.tenant == tenant))
            .group_by(c.c.name, c.c.version, d.c.source)
            .order_by(c.c.name, d.c.source)
        )
        sizes: dict[str, dict[str, Any]] = {}
        for name, version, source, num_documents, num_chunks in self._rows(query):
            empty = {"name": name, "version": version, "documents": 0, "chunks": 0, "sources": []}
            size = sizes.setdefault(name, empty)
            size["documents"] += num_documents
            size["chunks"] += int(num_chunks)
            size["sources"] += [source] if source is not None else []
        return list(sizes.values())

    def _rows(self, query: Any) -> Sequence[Any]:
        with storage_errors(self._where), self._engine.connect() as connection:
            return connection.execute(query).all()


def _summaries(collection: str, tenant: str, *more: Any) -> Any:
    d, c = tables.documents, tables.collections
    columns = (d.c.id, d.c.source, d.c.title, d.c.body_hash.label("content_hash"), d.c.num_chunks.label("chunks"))
    query = select(*columns, d.c.version, *more).join(c, c.c.id == d.c.collection)
    return query.where(c.c.name == collection, d.c.tenant == tenant)


def _prepare_schema(connection: Connection, where: str) -> None:
    if inspect(connection).has_table(tables.meta.name):
        found = connection.execute(select(tables.meta.c.schema_version)).scalars().all()
        if found and found != [tables.SCHEMA_VERSION]:
            raise DataFolderError(
                f"{where}: the knowledge base has schema version {found[0]}, this program reads "
                f"{tables.SCHEMA_VERSION}. Use the program that wrote it, or name another folder with --data."
            )
        if found:
            return
    # SQLite does not roll back the creation of tables with the rest, so a crash in between is met again here.
    tables.metadata.create_all(connection)
    connection.execute(insert(tables.meta).values(schema_version=tables.SCHEMA_VERSION))
