"""The store: its opening and closing, its turns, and the reads of answers. Writes: write.py; indexes: log_reader.py."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, func, select

from engine.errors import BehindStore, RequestError, StoreUnavailable
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.encoding.turns import Turns
from engine.retrieval.store import tables
from engine.retrieval.store.data_folder import FolderLock, SqliteDatabase
from engine.retrieval.store.database import CommitUnknown, Database, Patience
from engine.retrieval.store.migrations import check_schema
from engine.retrieval.store.passages import PassageMemory, StoredPassage
from engine.retrieval.store.write import Transaction, in_batches, nothing_stored

_log = logging.getLogger(__name__)
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
        self._moment = threading.local()
        try:
            self._database = _open_database(data, url, is_owner)
            self._engine = self._database.engine
            self._memory = PassageMemory(passage_memory_bytes if self._database.is_remote else 0)
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

    def missing_passage(self, collection: str) -> RequestError:
        """What it means that a chunk which a search found has no passage here."""
        if self._lock is None and not self._database.is_away:
            return BehindStore(collection)  # its document was replaced since
        return StoreUnavailable(self.where, "the text of a passage cannot be read")

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
            yield Transaction(connection, self._database, self._memory)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection whose reads all see the same moment, whatever is written meanwhile."""
        with self._database.reading() as connection:
            yield connection

    @contextlib.contextmanager
    def moment(self) -> Iterator[Connection]:
        """As `reading`; passages and their vectors that this thread reads inside the block are of that moment too."""
        with self._database.reading() as connection:
            self._moment.connection = connection
            try:
                yield connection
            finally:
                del self._moment.connection

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

    def hold_passages(self, collection: int | None = None, generation: int | None = None) -> None:
        """Read texts of passages into memory, the newest first, as far as there is room.

        Those of every collection's generation, or of the one that is named.
        """
        if not self._database.is_remote:
            return
        k, d, c = tables.chunks, tables.documents, tables.collections
        with self.reading() as connection:
            query = _passages().join(c, c.c.id == d.c.collection).order_by(k.c.pk.desc())
            if collection is None:
                query = query.where(c.c.generation == k.c.generation)
            else:
                query = query.where(c.c.id == collection, k.c.generation == generation)
            for rows in connection.execution_options(yield_per=_ROWS_PER_READ).execute(query).partitions():
                self._memory.put(StoredPassage(*row) for row in rows)
                if not self._memory.has_room:
                    _log.warning(
                        "%d passages are held in memory, no more have room in retriever.passage_memory_bytes; while %s "
                        "is away, searches that find others fail",
                        *(len(self._memory), self.where),
                    )
                    return

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
        rows = (row for batch in in_batches(text_hashes) for row in self._rows(query.where(e.c.text_hash.in_(batch))))
        return {row.text_hash: np.frombuffer(row.vector, _VECTOR).astype(np.float32) for row in rows}

    def passages(self, keys: Iterable[int]) -> dict[int, StoredPassage]:
        """The chunks behind keys of the vector rows; those only that are in memory where the database is away."""
        wanted = set(keys)
        found = self._memory.get(wanted) if self._database.is_remote else {}
        try:
            for batch in in_batches(wanted - found.keys()):
                read = [StoredPassage(*row) for row in self._rows(_PASSAGES, keys=batch)]
                self._memory.put(read)
                found |= {passage.key: passage for passage in read}
        except StoreUnavailable as error:
            _log.warning("passages that are not in memory cannot be read: %s", error)
        return found

    def chunk_vectors(self, keys: Iterable[int], encoder: str) -> dict[int, Vectors]:
        """The vectors [E] of the chunks behind keys, by `encoder`. Raises: StoreUnavailable."""
        hashes = {row.pk: row.text_hash for batch in in_batches(keys) for row in self._rows(_HASHES, keys=batch)}
        found = (
            row
            for batch in in_batches(set(hashes.values()))
            for row in self._rows(_VECTORS, hashes=batch, encoder=encoder)
        )
        vectors = {row.text_hash: np.frombuffer(row.vector, _VECTOR).astype(np.float32) for row in found}
        return {key: vectors[text_hash] for key, text_hash in hashes.items() if text_hash in vectors}

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

    def _rows(self, query: Any, **values: Any) -> Sequence[Any]:
        if hasattr(self._moment, "connection"):
            return self._moment.connection.execute(query, values).all()  # type: ignore[no-any-return]
        for tries_left in (1, 0):
            try:
                with self._database.connect() as connection:
                    return connection.execute(query, values).all()
            except StoreUnavailable:
                if not tries_left:
                    raise
        raise AssertionError


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


def _passages() -> Any:
    k, d = tables.chunks, tables.documents
    # The database cuts the slice: a passage costs its own length, not that of a long document.
    text = func.substr(d.c.text, k.c.start + 1, k.c.end - k.c.start)
    columns = (k.c.pk, k.c.id, d.c.id, d.c.title, k.c.heading, text, k.c.start, k.c.end)
    return select(*columns).join(d, d.c.pk == k.c.document_pk)


# Every search asks it, and to put it together takes as long as to answer it.
_PASSAGES = _passages().where(tables.chunks.c.pk.in_(bindparam("keys", expanding=True)))


# Two queries: of one that joins them, SQLite reads every embedding once there are many keys.
_HASHES = select(tables.chunks.c.pk, tables.chunks.c.text_hash).where(
    tables.chunks.c.pk.in_(bindparam("keys", expanding=True))
)
_VECTORS = select(tables.embeddings.c.text_hash, tables.embeddings.c.vector).where(
    tables.embeddings.c.encoder == bindparam("encoder"),
    tables.embeddings.c.text_hash.in_(bindparam("hashes", expanding=True)),
)


def _summaries(collection: str, tenant: str, *more: Any) -> Any:
    d, c = tables.documents, tables.collections
    columns = (d.c.id, d.c.source, d.c.title, d.c.body_hash.label("content_hash"), d.c.num_chunks.label("chunks"))
    query = select(*columns, d.c.version, *more).join(c, c.c.id == d.c.collection)
    return query.where(c.c.name == collection, d.c.tenant == tenant)
