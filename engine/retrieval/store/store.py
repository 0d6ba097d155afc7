"""The store: its opening and closing, its turns, and what is asked of documents.

Writes: write.py. What indexes are made of: log_reader.py. The texts that a search found: passage_reader.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, select

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.encoding.turns import Turns
from engine.retrieval.store import tables
from engine.retrieval.store.data_folder import FolderLock, SqliteDatabase
from engine.retrieval.store.database import CommitUnknown, Database, Patience, rows_of
from engine.retrieval.store.migrations import check_schema
from engine.retrieval.store.passage_reader import PassageReader
from engine.retrieval.store.write import Transaction, in_batches, nothing_stored

_VECTOR = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class CollectionState:
    """A collection with how its current generation was made."""

    id: int
    name: str
    version: int
    encoder: dict[str, Any]
    chunking: dict[str, Any]
    created_at: float
    generation: int
    model: str | None


class Store:
    """Documents, chunks and embeddings in one database. Thread-safe for reads; one write at a time."""

    def __init__(
        self, data: Path, *, url: str | None = None, passage_memory_bytes: int = 1 << 29, is_owner: bool = True
    ) -> None:
        """Open `data` (created where needed) and lock it until `close`; not the owner, only read what is there.

        Args:
            data: folder of the lock and, unless `url` names a database elsewhere, of the SQLite file.
            url: SQLAlchemy URL of a PostgreSQL database.
            passage_memory_bytes: of texts that are held in memory where the database may be away.
        A database of an earlier schema version is migrated, and a copy of its file kept beside it.
        Raises: DataFolderError when the folder is locked, not writable, damaged or of a later schema version;
            StoreUnavailable when the database does not answer; ConfigError for a URL that names none.
        """
        self._lock = FolderLock(data) if is_owner else None
        self._turns = Turns()
        try:
            self._database = _open_database(data, url, is_owner)
            self._engine = self._database.engine
            self.passages = PassageReader(self._database, passage_memory_bytes, is_owner=is_owner)
        except BaseException:
            self._release()
            raise
        try:
            if is_owner:
                self._database.prepare()
            else:
                with self._database.errors():
                    check_schema(self._engine, self.where)
        except BaseException:
            self.close()
            raise

    @property
    def where(self) -> str:
        """Names the database in messages, without its password."""
        return self._database.where

    def close(self) -> None:
        """Close the database and give up the folder; may be called twice."""
        self._database.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @contextlib.contextmanager
    def turn(self, *, is_urgent: bool = True) -> Iterator[None]:
        """Keep everybody else from writing inside the block. Urgent turns go first: somebody waits for an answer."""
        with self._turns.take(is_urgent=is_urgent):
            yield

    @contextlib.contextmanager
    def transaction(self, *, is_urgent: bool = True) -> Iterator[Transaction]:
        """One write, in a turn of its own. What is not committed inside is rolled back.

        Raises: StoreUnavailable where the database stays away for longer than a write waits.
        """
        patience = Patience()
        with self.turn(is_urgent=is_urgent), self._database.writing(patience.give_up_at) as connection:
            yield Transaction(connection, self._database, self.passages.memory)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection whose reads all see the same moment, whatever is written meanwhile."""
        with self._database.reading() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, *, is_urgent: bool = True) -> Iterator[Connection]:
        """A connection in a transaction that the end of the block commits and an error in it rolls back.

        Raises: StoreUnavailable as `transaction`; where it is settled, nothing was stored.
        """
        patience = Patience()
        with self.turn(is_urgent=is_urgent), self._database.writing(patience.give_up_at) as connection:
            yield connection
            try:
                self._database.commit(connection)
            except CommitUnknown:
                connection.close()
                if not self._database.settle(patience.give_up_at):
                    raise nothing_stored(self._database) from None

    def settle(self) -> None:
        """Find out what became of a write of which that is not known. Raises: StoreUnavailable."""
        if not self._database.is_settled:
            with self.turn():
                self._database.settle(0)

    def collections(self) -> list[CollectionState]:
        """Every collection, by name."""
        with self._database.connect() as connection:
            return read_collections(connection)

    def content_hashes(self, collection: str, tenant: str, ids: Iterable[str]) -> dict[str, tuple[str, int]]:
        """content_hash and number of chunks of those documents that exist."""
        with self._database.connect() as connection:
            return read_content_hashes(connection, collection, tenant, ids)

    def embeddings(self, encoder: str, text_hashes: Iterable[str]) -> dict[str, Vectors]:
        """The vectors [E] of those texts that `encoder` has embedded before."""
        e = tables.embeddings
        query = select(e.c.text_hash, e.c.vector).where(e.c.encoder == encoder)
        rows = (
            row
            for batch in in_batches(text_hashes)
            for row in rows_of(self._database, query.where(e.c.text_hash.in_(batch)))
        )
        return {row.text_hash: np.frombuffer(row.vector, _VECTOR).astype(np.float32) for row in rows}

    def document(self, collection: str, tenant: str, document: str) -> dict[str, Any] | None:
        """One document with its text, None when there is none."""
        d = tables.documents
        rows = rows_of(self._database, _summaries(collection, tenant, d.c.text, d.c.metadata).where(d.c.id == document))
        return dict(rows[0]._mapping) if rows else None

    def documents(
        self, collection: str, tenant: str, *, source: str | None, after: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """At most `limit` summaries in the order of the ids, from behind the id `after`."""
        d = tables.documents
        query = _summaries(collection, tenant).order_by(d.c.id).limit(limit)
        query = query.where(d.c.source == source) if source is not None else query
        query = query.where(d.c.id > after) if after is not None else query
        return [dict(row._mapping) for row in rows_of(self._database, query)]

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
        for name, version, source, num_documents, num_chunks in rows_of(self._database, query):
            empty = {"name": name, "version": version, "documents": 0, "chunks": 0, "sources": []}
            size = sizes.setdefault(name, empty)
            size["documents"] += num_documents
            size["chunks"] += int(num_chunks)
            size["sources"] += [source] if source is not None else []
        return list(sizes.values())


def read_collections(connection: Connection) -> list[CollectionState]:
    """Every collection, by name, as the connection's transaction sees them."""
    c, g = tables.collections, tables.generations
    query = (
        select(
            *(c.c.id, c.c.name, c.c.version, g.c.encoder, g.c.chunking, c.c.created_at),
            *(c.c.generation, g.c.model),
        )
        .join(g, (g.c.collection == c.c.id) & (g.c.generation == c.c.generation))
        .order_by(c.c.name)
    )
    return [CollectionState(*row) for row in connection.execute(query)]


def read_content_hashes(
    connection: Connection, collection: str, tenant: str, ids: Iterable[str]
) -> dict[str, tuple[str, int]]:
    """content_hash and number of chunks of those documents that exist, as the connection's transaction sees them."""
    d, c = tables.documents, tables.collections
    query = select(d.c.id, d.c.content_hash, d.c.num_chunks).join(c, c.c.id == d.c.collection)
    query = query.where(c.c.name == collection, d.c.tenant == tenant)
    rows = (row for batch in in_batches(ids) for row in connection.execute(query.where(d.c.id.in_(batch))))
    return {row.id: (row.content_hash, row.num_chunks) for row in rows}


def _open_database(data: Path, url: str | None, is_owner: bool) -> Database:
    if url is None:
        return SqliteDatabase(data, is_owner=is_owner)
    from engine.retrieval.store.postgres import PostgresDatabase  # its driver is an extra

    return PostgresDatabase(url)


def _summaries(collection: str, tenant: str, *more: Any) -> Any:
    d, c = tables.documents, tables.collections
    columns = (d.c.id, d.c.source, d.c.title, d.c.body_hash.label("content_hash"), d.c.num_chunks.label("chunks"))
    query = select(*columns, d.c.version, *more).join(c, c.c.id == d.c.collection)
    return query.where(c.c.name == collection, d.c.tenant == tenant)
