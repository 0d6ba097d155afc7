"""Passages behind the keys of the vector rows, and the vectors of their chunks: what a search needs of the store."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, func, select

from engine.errors import BehindStore, RequestError, StoreUnavailable
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.store import tables
from engine.retrieval.store.database import Database, rows_of
from engine.retrieval.store.passages import PassageMemory, StoredPassage
from engine.retrieval.store.write import in_batches

_log = logging.getLogger(__name__)
_VECTOR = np.dtype("<f4")
_ROWS_PER_READ = 4096


class PassageReader:
    """Reads them, from memory where the database may be away. Thread-safe."""

    def __init__(self, database: Database, memory_bytes: int, *, is_owner: bool) -> None:
        """
        Args:
            memory_bytes: of texts that are held where the database may be away.
            is_owner: no other process removes passages.
        """
        self._database = database
        self._is_owner = is_owner
        self.memory = PassageMemory(memory_bytes if database.is_remote else 0)
        self._moment = threading.local()

    @contextlib.contextmanager
    def moment(self) -> Iterator[Connection]:
        """As `Store.reading`; what this thread reads here inside the block is of that moment too."""
        with self._database.reading() as connection:
            self._moment.connection = connection
            try:
                yield connection
            finally:
                del self._moment.connection

    def hold(self, collection: int | None = None, generation: int | None = None) -> None:
        """Read texts of passages into memory, the newest first, as far as there is room.

        Those of every collection's generation, or of the one that is named.
        """
        if not self._database.is_remote:
            return
        k, d, c = tables.chunks, tables.documents, tables.collections
        with self._database.reading() as connection:
            query = _passages().join(c, c.c.id == d.c.collection).order_by(k.c.pk.desc())
            if collection is None:
                query = query.where(c.c.generation == k.c.generation)
            else:
                query = query.where(c.c.id == collection, k.c.generation == generation)
            for rows in connection.execution_options(yield_per=_ROWS_PER_READ).execute(query).partitions():
                self.memory.put(StoredPassage(*row) for row in rows)
                if not self.memory.has_room:
                    _log.warning(
                        "%d passages are held in memory, no more have room in retriever.passage_memory_bytes; while %s "
                        "is away, searches that find others fail",
                        *(len(self.memory), self._database.where),
                    )
                    return

    def read(self, keys: Iterable[int]) -> dict[int, StoredPassage]:
        """The chunks behind keys of the vector rows; those only that are in memory where the database is away."""
        wanted = set(keys)
        found = self.memory.get(wanted) if self._database.is_remote else {}
        try:
            for batch in in_batches(wanted - found.keys()):
                read = [StoredPassage(*row) for row in self._rows(_PASSAGES, keys=batch)]
                self.memory.put(read)
                found |= {passage.key: passage for passage in read}
        except StoreUnavailable as error:
            _log.warning("passages that are not in memory cannot be read: %s", error)
        return found

    def vectors(self, keys: Iterable[int], encoder: str) -> dict[int, Vectors]:
        """The vectors [E] of the chunks behind keys, by `encoder`. Raises: StoreUnavailable."""
        hashes = {row.pk: row.text_hash for batch in in_batches(keys) for row in self._rows(_HASHES, keys=batch)}
        found = (
            row
            for batch in in_batches(set(hashes.values()))
            for row in self._rows(_VECTORS, hashes=batch, encoder=encoder)
        )
        vectors = {row.text_hash: np.frombuffer(row.vector, _VECTOR).astype(np.float32) for row in found}
        return {key: vectors[text_hash] for key, text_hash in hashes.items() if text_hash in vectors}

    def missing(self, collection: str) -> RequestError:
        """What it means that a chunk which a search found has no passage here."""
        if not self._is_owner and not self._database.is_away:
            return BehindStore(collection)  # its document was replaced since
        return StoreUnavailable(self._database.where, "the text of a passage cannot be read")

    def _rows(self, query: Any, **values: Any) -> Sequence[Any]:
        if hasattr(self._moment, "connection"):
            return self._moment.connection.execute(query, values).all()  # type: ignore[no-any-return]
        return rows_of(self._database, query, **values)


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
