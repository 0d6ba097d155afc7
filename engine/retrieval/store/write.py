"""One write to the store: all of a batch or nothing, data first, version last."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, delete, exists, insert, select, update

from engine.errors import StoreUnavailable
from engine.retrieval.encoding.protocol import EncoderIdentity, Vectors
from engine.retrieval.index.filters import document_fields
from engine.retrieval.store import tables
from engine.retrieval.store.database import Database, Patience, Settled
from engine.retrieval.store.passages import PassageMemory, StoredPassage

_IDS_PER_QUERY = 500
_T = TypeVar("_T")
Status = Literal["created", "updated", "unchanged", "deleted", "absent"]


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to store; `id` is its public id, `text_hash` names the text that was embedded for it."""

    id: str
    start: int
    end: int
    heading: str
    text_hash: str


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document to store in place of what its id held before; `outline` as parsing/outline.py makes it."""

    id: str
    source: str
    title: str | None
    content_type: str
    body_hash: str
    content_hash: str
    metadata: dict[str, Any]
    text: str
    chunks: tuple[NewChunk, ...]
    outline: list[tuple[int, list[str]]] | None = None


@dataclass(frozen=True, slots=True)
class IndexedChunk:
    """A chunk as the indexes take it: `key` is its number in the vector rows, `document` its document's."""

    key: int
    document: int
    text_hash: str
    title: str
    heading: str
    text: str


@dataclass(slots=True)
class Change:
    """What a write did, for the indexes to follow: keys of chunks gone and chunks new, documents gone and written.

    `created_at` is the collection's, which tells it from an earlier one of the same name. `documents` maps a document's
    number to the fields that filters see; one that was replaced is in it, and not among those removed.
    """

    version: int
    created_at: float = 0.0
    statuses: dict[str, Status] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    added: list[IndexedChunk] = field(default_factory=list)
    removed_documents: list[int] = field(default_factory=list)
    documents: dict[int, dict[str, Any]] = field(default_factory=dict)


class Transaction:
    """One database transaction, which `Store.transaction` begins and ends."""

    def __init__(self, connection: Connection, database: Database, memory: PassageMemory) -> None:
        self.connection = connection
        self._database = database
        self._memory = memory
        self._added: list[StoredPassage] = []
        self._removed: list[int] = []

    def commit(self) -> None:
        """Make the write durable.

        Raises: StorageFull when there was no room, StoreUnavailable; then nothing of it is kept. CommitUnknown where
            the answer was lost: call `settle`.
        """
        self._database.commit(self.connection)
        self._memory.put(self._added)
        self._memory.remove(self._removed)

    def settle(self, settled: Settled) -> None:
        """Wait until it is known what became of a lost commit, and tell `settled`, now or before the next write.

        Raises: StoreUnavailable where nothing was stored, or where it does not become known in time.
        """
        self.connection.close()

        def tell(is_stored: bool) -> None:
            self._memory.put(self._added if is_stored else ())
            settled(is_stored)
            self._memory.remove(self._removed if is_stored else ())

        is_stored = self._database.settle(Patience().give_up_at, tell)
        tell(is_stored)
        if not is_stored:
            raise nothing_stored(self._database)

    def apply(
        self,
        collection: str,
        tenant: str,
        *,
        puts: Sequence[NewDocument],
        deletes: Sequence[str],
        vectors: Mapping[str, Vectors],
        encoder: EncoderIdentity,
        chunking: Mapping[str, Any],
        model: str | None = None,
    ) -> Change:
        """Store `puts` and remove `deletes` as one new version; a write that changes nothing makes none.

        Args:
            puts, deletes: with distinct ids.
            vectors: text hash to [E] float32, at least for every chunk of `puts`.
            encoder: that of the collection's generation.
            chunking, model: recorded, with the encoder, for a collection that this write creates.
        """
        with self._database.errors():
            row = self._collection(collection, encoder, chunking, model, create=bool(puts))
            if row is None:
                return Change(0, statuses=dict.fromkeys(deletes, "absent"))
            write = _Write(self.connection, *row, tenant)
            for document in puts:
                write.put(document)
            for document_id in deletes:
                write.delete(document_id)
            write.finish(vectors, encoder.digest)
            self._added, self._removed = write.passages, write.dropped
            return write.change

    def generation(self, collection: str) -> int | None:
        """The number of the collection's generation, None where there is no such collection."""
        c = tables.collections
        with self._database.errors():
            return self.connection.execute(select(c.c.generation).where(c.c.name == collection)).scalar()

    def _collection(
        self, name: str, encoder: EncoderIdentity, chunking: Mapping[str, Any], model: str | None, *, create: bool
    ) -> tuple[int, int, int, float] | None:
        """(id, generation, version, created_at) of the collection, made where needed."""
        c = tables.collections
        columns = (c.c.id, c.c.generation, c.c.version, c.c.created_at)
        row = self.connection.execute(select(*columns).where(c.c.name == name)).first()
        if row is not None:
            return row.id, row.generation, row.version, row.created_at
        if not create:
            return None
        created_at = time.time()
        values = {"name": name, "version": 0, "generation": 1, "created_at": created_at}
        (collection,) = self.connection.execute(insert(c).values(values)).inserted_primary_key or (0,)
        made = {"encoder": asdict(encoder), "chunking": dict(chunking), "model": model, "digest": encoder.digest}
        generation = {"collection": collection, "generation": 1, "created_at": created_at, "is_dropped": False}
        self.connection.execute(insert(tables.generations).values(**generation, **made))
        return collection, 1, 0, created_at


class _Write:
    """The rows of one write to one collection, at the version after its present one."""

    def __init__(
        self,
        connection: Connection,
        collection: int,
        generation: int,
        version: int,
        created_at: float,
        tenant: str,
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._generation = generation
        self._old_version = version
        self._tenant = tenant
        self._now = time.time()
        self._operations: list[dict[str, Any]] = []
        self._dropped_hashes: set[str] = set()
        self.change = Change(version + 1, created_at)
        self.passages: list[StoredPassage] = []
        self.dropped: list[int] = []  # of all generations

    def put(self, document: NewDocument) -> None:
        d = tables.documents
        known = self._known(document.id)
        if known is not None and known.content_hash == document.content_hash:
            self.change.statuses[document.id] = "unchanged"
            return
        values = {
            "source": document.source,
            "title": document.title,
            "content_type": document.content_type,
            "body_hash": document.body_hash,
            "content_hash": document.content_hash,
            "metadata": document.metadata,
            "text": document.text,
            "outline": document.outline,
            "num_chunks": len(document.chunks),
            "version": self.change.version,
            "updated_at": self._now,
        }
        if known is None:
            key = {"collection": self._collection, "tenant": self._tenant, "id": document.id}
            (pk,) = self._connection.execute(insert(d).values(**key, **values)).inserted_primary_key or (0,)
        else:
            pk = known.pk
            self._drop_chunks(pk)
            self._connection.execute(update(d).where(d.c.pk == pk).values(values))
        self._add_chunks(pk, document)
        self.change.documents[pk] = document_fields(
            document.metadata,
            id=document.id,
            source=document.source,
            title=document.title,
            content_type=document.content_type,
        )
        self._log("put", pk, document.id, "created" if known is None else "updated")

    def delete(self, document_id: str) -> None:
        known = self._known(document_id)
        if known is None:
            self.change.statuses[document_id] = "absent"
            return
        self._drop_chunks(known.pk)
        self._connection.execute(delete(tables.documents).where(tables.documents.c.pk == known.pk))
        self.change.removed_documents.append(known.pk)
        self._log("delete", known.pk, document_id, "deleted")

    def finish(self, vectors: Mapping[str, Vectors], encoder: str) -> None:
        """Embeddings, log, and last of all the version."""
        if not self._operations:
            self.change.version = self._old_version
            return
        add_embeddings(self._connection, {chunk.text_hash for chunk in self.change.added}, vectors, encoder)
        drop_unused_embeddings(self._connection, self._dropped_hashes)
        self._connection.execute(insert(tables.operations), self._operations)
        c = tables.collections
        self._connection.execute(update(c).where(c.c.id == self._collection).values(version=self.change.version))

    def _known(self, document_id: str) -> Any:
        d = tables.documents
        mine = (d.c.collection == self._collection, d.c.tenant == self._tenant, d.c.id == document_id)
        return self._connection.execute(select(d.c.pk, d.c.content_hash).where(*mine)).first()

    def _add_chunks(self, document_pk: int, document: NewDocument) -> None:
        if not document.chunks:
            return
        rows = [
            {"document_pk": document_pk, "generation": self._generation, "ordinal": ordinal, **asdict(chunk)}
            for ordinal, chunk in enumerate(document.chunks)
        ]
        inserted = insert(tables.chunks).returning(tables.chunks.c.pk, sort_by_parameter_order=True)
        keys = self._connection.execute(inserted, rows).scalars().all()
        for key, chunk in zip(keys, document.chunks, strict=True):
            text = document.text[chunk.start : chunk.end]
            added = IndexedChunk(key, document_pk, chunk.text_hash, document.title or "", chunk.heading, text)
            self.change.added.append(added)
            place = (chunk.start, chunk.end)
            passage = StoredPassage(key, chunk.id, document.id, document.title, chunk.heading, text, *place)
            self.passages.append(passage)

    def _drop_chunks(self, document_pk: int) -> None:
        k = tables.chunks
        query = select(k.c.pk, k.c.text_hash, k.c.generation).where(k.c.document_pk == document_pk)
        for row in self._connection.execute(query):
            self.dropped.append(row.pk)
            if row.generation == self._generation:
                self.change.removed.append(row.pk)
            self._dropped_hashes.add(row.text_hash)
        self._connection.execute(delete(k).where(k.c.document_pk == document_pk))

    def _log(self, op: str, document_pk: int, document: str, status: Status) -> None:
        self.change.statuses[document] = status
        self._operations.append(
            {
                "collection": self._collection,
                "version": self.change.version,
                "op": op,
                "document_pk": document_pk,
                "tenant": self._tenant,
                "document": document,
                "at": self._now,
            }
        )


def add_embeddings(connection: Connection, hashes: Iterable[str], vectors: Mapping[str, Vectors], encoder: str) -> None:
    """Keep the vectors [E] of texts that `encoder` has none of yet, inside the caller's transaction."""
    e = tables.embeddings
    for batch in in_batches(sorted(hashes)):
        query = select(e.c.text_hash).where(e.c.encoder == encoder, e.c.text_hash.in_(batch))
        present = set(connection.execute(query).scalars())
        rows = [
            {"encoder": encoder, "text_hash": text_hash, "vector": vectors[text_hash].astype("<f4").tobytes()}
            for text_hash in batch
            if text_hash not in present
        ]
        if rows:
            connection.execute(insert(e), rows)


def drop_unused_embeddings(connection: Connection, hashes: Iterable[str] | None) -> None:
    """Remove those vectors of some texts, or of all (None), that no chunk of their encoder's generations needs."""
    e, k, d, g = tables.embeddings, tables.chunks, tables.documents, tables.generations
    is_used = exists().where(
        k.c.text_hash == e.c.text_hash,
        d.c.pk == k.c.document_pk,
        g.c.collection == d.c.collection,
        g.c.generation == k.c.generation,
        g.c.digest == e.c.encoder,
    )
    for batch in in_batches(sorted(hashes)) if hashes is not None else (None,):
        among = () if batch is None else (e.c.text_hash.in_(batch),)
        connection.execute(delete(e).where(*among, ~is_used))


def nothing_stored(database: Database) -> StoreUnavailable:
    """What a write is told whose commit was lost and had no effect."""
    return StoreUnavailable(database.where, "it went away during a write, of which nothing was stored")


def in_batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Lists that are short enough for one IN clause."""
    remaining = list(items)
    for first in range(0, len(remaining), _IDS_PER_QUERY):
        yield remaining[first : first + _IDS_PER_QUERY]
