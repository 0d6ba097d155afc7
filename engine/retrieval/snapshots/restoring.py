"""The rows of a restored collection, written inside the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, literal, select, update

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.snapshots.format import Manifest, SnapshotDocument
from engine.retrieval.store import tables
from engine.retrieval.store.generations import next_number
from engine.retrieval.store.store import CollectionState
from engine.retrieval.store.write import drop_unused_embeddings


class Restore:
    """One write that removes what a collection held and puts a snapshot's documents there; the version comes last."""

    def __init__(self, connection: Connection, manifest: Manifest, name: str, old: CollectionState | None) -> None:
        """
        Args:
            name: of the collection, which is made unless `old` is the one to replace.
        """
        self._connection = connection
        self._encoder = manifest.encoder.digest
        self._now = time.time()
        self._collection = 0
        self._generation = 1
        self._model = manifest.model
        self._is_replacing = old is not None
        self.version = manifest.version + 1
        described = manifest.model_dump(include={"encoder", "chunking"})
        if old is None:
            self._create(name, described)
        else:
            self.version = max(manifest.version, old.version) + 1
            self._empty(old.id, described)

    def add_vectors(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep the vectors [n, E] of those texts that the store has none of."""
        e = tables.embeddings
        query = select(e.c.text_hash).where(e.c.encoder == self._encoder, e.c.text_hash.in_(texts))
        present = set(self._connection.execute(query).scalars())
        rows = [
            {"encoder": self._encoder, "text_hash": text_hash, "vector": vector.astype("<f4").tobytes()}
            for text_hash, vector in zip(texts, vectors, strict=True)
            if text_hash not in present
        ]
        if rows:
            self._connection.execute(insert(e), rows)

    def add_documents(self, page: Sequence[SnapshotDocument]) -> None:
        """Store documents with their chunks."""
        d = tables.documents
        shared = {"collection": self._collection, "version": self.version}
        rows = [
            {**document.model_dump(exclude={"chunks"}), **shared, "num_chunks": len(document.chunks)}
            for document in page
        ]
        inserted = insert(d).returning(d.c.pk, sort_by_parameter_order=True)
        pks = self._connection.execute(inserted, rows).scalars().all()
        chunks = [
            {"document_pk": pk, "generation": self._generation, "ordinal": ordinal, **chunk.model_dump()}
            for pk, document in zip(pks, page, strict=True)
            for ordinal, chunk in enumerate(document.chunks)
        ]
        if chunks:
            self._connection.execute(insert(tables.chunks), chunks)

    def finish(self) -> None:
        """Drop vectors that nothing uses any more, write the log, and last of all the version."""
        c = tables.collections
        if self._is_replacing:
            drop_unused_embeddings(self._connection, None)
        self._log("put")
        self._connection.execute(update(c).where(c.c.id == self._collection).values(version=self.version))

    def _create(self, name: str, described: dict[str, object]) -> None:
        c = tables.collections
        values = {"name": name, "version": 0, "generation": self._generation, "created_at": self._now}
        (self._collection,) = self._connection.execute(insert(c).values(values)).inserted_primary_key or (0,)
        self._describe(described)

    def _describe(self, described: dict[str, object]) -> None:
        row = {"collection": self._collection, "generation": self._generation, "created_at": self._now}
        made = {**described, "digest": self._encoder, "model": self._model, "is_dropped": False}
        self._connection.execute(insert(tables.generations).values(**row, **made))

    def _empty(self, collection: int, described: dict[str, object]) -> None:
        c, g, d, k = tables.collections, tables.generations, tables.documents, tables.chunks
        self._collection = collection
        # A number of its own: whoever follows the store must not take it for what was there, which is gone.
        self._generation = next_number(self._connection, collection)
        self._log("delete")
        mine = select(d.c.pk).where(d.c.collection == collection)
        self._connection.execute(delete(k).where(k.c.document_pk.in_(mine)))
        self._connection.execute(delete(d).where(d.c.collection == collection))
        values = {"is_dropped": True, "task": None, "report": None}
        self._connection.execute(update(g).where(g.c.collection == collection).values(values))
        self._describe(described)
        in_place = update(c).where(c.c.id == collection)
        self._connection.execute(in_place.values(generation=self._generation))

    def _log(self, op: str) -> None:
        """One operation per document that is there now, so that followers of the log come to the same documents."""
        d, o = tables.documents, tables.operations
        columns = ("collection", "version", "op", "document_pk", "tenant", "document", "at")
        values = (d.c.collection, literal(self.version), literal(op), d.c.pk, d.c.tenant, d.c.id, literal(self._now))
        query = select(*values).where(d.c.collection == self._collection).order_by(d.c.pk)
        self._connection.execute(insert(o).from_select(columns, query))
