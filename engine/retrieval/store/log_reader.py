"""What indexes are made of, all in one moment: what is there, and the log of operations that leads to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from engine.errors import DataFolderError
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.filters import document_fields
from engine.retrieval.store import tables
from engine.retrieval.store.store import CollectionState, read_collections
from engine.retrieval.store.write import Change, IndexedChunk, in_batches

_VECTOR = np.dtype("<f4")
_ROWS_PER_READ = 4096
# The operation that puts another generation in place: it concerns no document.
SWITCH = "switch"


@dataclass(slots=True)
class Step:
    """What leads from one version of a collection to a later one.

    `changes` are by tenant; `vectors` [E] are those of all added chunks by text hash; `keys` are the chunks of each
    document that the step wrote, `gone` the documents that it removed.
    """

    version: int
    changes: dict[str, Change] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    keys: dict[int, list[int]] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)


class LogReader:
    """Reads over one connection, whose transaction sees one moment of the database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def collections(self) -> list[CollectionState]:
        """Every collection, by name."""
        return read_collections(self._connection)

    def version(self, collection: int) -> int:
        """That of one collection."""
        c = tables.collections
        return int(self._connection.execute(select(c.c.version).where(c.c.id == collection)).scalar_one())

    def weights(self) -> dict[str, dict[str, float]]:
        """By collection and tenant the weight of meaning that was fitted for the collection's encoder."""
        f, c, g = tables.fits, tables.collections, tables.generations
        query = select(c.c.name, f.c.tenant, f.c.alpha, f.c.report, g.c.digest).join(c, c.c.id == f.c.collection)
        query = query.join(g, (g.c.collection == c.c.id) & (g.c.generation == c.c.generation))
        weights: dict[str, dict[str, float]] = {}
        for row in self._connection.execute(query.where(f.c.alpha.is_not(None))):
            if row.report.get("encoder") == row.digest:
                weights.setdefault(row.name, {})[row.tenant] = row.alpha
        return weights

    def documents(
        self, collection: int, among: Sequence[int] | None = None, *, after: int = -1, limit: int | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        """Tenant, number and the fields that filters see, of every document or of those `among` that are there.

        Without `among`, in the order of the numbers: at most `limit` of those above `after`.
        """
        d = tables.documents
        columns = (d.c.tenant, d.c.pk, d.c.id, d.c.source, d.c.title, d.c.content_type, d.c.metadata)
        query = select(*columns).where(d.c.collection == collection, d.c.pk > after).order_by(d.c.pk).limit(limit)
        for piece in self._pieces(query, d.c.pk, among):
            for row in piece:
                shown = {"id": row.id, "source": row.source, "title": row.title, "content_type": row.content_type}
                yield row.tenant, row.pk, document_fields(row.metadata, **shown)

    def chunks(
        self,
        state: CollectionState,
        among: Sequence[int] | None = None,
        *,
        after: int = -1,
        limit: int | None = None,
    ) -> Iterator[list[tuple[str, IndexedChunk, Vectors]]]:
        """Pieces of tenant, chunk of the state's generation and vector [E], of every document or of those `among`.

        Without `among`, in the order of the keys: at most `limit` of those above `after`.
        Raises: DataFolderError when a chunk has no embedding by the encoder, which no write can leave behind.
        """
        k, d, e = tables.chunks, tables.documents, tables.embeddings
        query = (
            select(d.c.tenant, e.c.vector, *_chunk())
            .join(d, d.c.pk == k.c.document_pk)
            .outerjoin(e, (e.c.text_hash == k.c.text_hash) & (e.c.encoder == state.encoder["digest"]))
            .where(d.c.collection == state.id, k.c.generation == state.generation, k.c.pk > after)
            .order_by(k.c.pk)
            .limit(limit)
        )
        for piece in self._pieces(query, d.c.pk, among):
            _check_embedded(piece)
            yield [
                (tenant, IndexedChunk(*chunk), np.frombuffer(vector, _VECTOR).astype(np.float32))
                for tenant, vector, *chunk in piece
            ]

    def texts(self, collection: str, generation: int, up_to: int | None = None) -> Iterator[tuple[str, IndexedChunk]]:
        """Every chunk of a collection's generation with its tenant, or those whose key is not above `up_to`."""
        k, d, c = tables.chunks, tables.documents, tables.collections
        query = (
            select(d.c.tenant, *_chunk())
            .join(d, d.c.pk == k.c.document_pk)
            .join(c, c.c.id == d.c.collection)
            .where(c.c.name == collection, k.c.generation == generation)
            .order_by(k.c.pk)
        )
        query = query if up_to is None else query.where(k.c.pk <= up_to)
        return ((tenant, IndexedChunk(*chunk)) for piece in self._pieces(query) for tenant, *chunk in piece)

    def vectors(
        self, collection: int, generation: int, encoder: str
    ) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64], Vectors]]:
        """Every chunk of a collection's generation in pieces, without its text.

        Yields: tenant, keys [n], numbers of their documents [n], vectors [n, E] float32.
        Raises: DataFolderError when a chunk has no embedding by `encoder`, which no write can leave behind.
        """
        k, d, e = tables.chunks, tables.documents, tables.embeddings
        query = (
            select(d.c.tenant, e.c.vector, k.c.pk, k.c.document_pk)
            .join(d, d.c.pk == k.c.document_pk)
            .outerjoin(e, (e.c.text_hash == k.c.text_hash) & (e.c.encoder == encoder))
            .where(d.c.collection == collection, k.c.generation == generation)
            .order_by(k.c.pk)
        )
        for piece in self._pieces(query):
            _check_embedded(piece)
            for tenant in {row.tenant for row in piece}:
                mine = [row for row in piece if row.tenant == tenant]
                vectors = np.frombuffer(b"".join(row.vector for row in mine), _VECTOR).reshape(len(mine), -1)
                keys, documents = np.array([(row.pk, row.document_pk) for row in mine], np.int64).T
                yield tenant, keys, documents, vectors.astype(np.float32)

    def changed(self, collection: int, since: int) -> dict[int, str]:
        """The documents that were written or deleted after version `since`, with their tenants."""
        o = tables.operations
        mine = (o.c.collection == collection, o.c.version > since, o.c.op != SWITCH)
        query = select(o.c.document_pk, o.c.tenant).where(*mine).distinct().order_by(o.c.document_pk)
        return {row.document_pk: row.tenant for row in self._connection.execute(query)}

    def step(self, state: CollectionState, since: int, keys: Mapping[int, Sequence[int]]) -> Step | None:
        """What leads from version `since` to that of `state`; None when the log does not say.

        Args:
            keys: the chunks of each document at `since`.
        """
        o = tables.operations
        mine = (o.c.collection == state.id, o.c.version > since)
        newest = self._connection.execute(select(func.max(o.c.version)).where(*mine)).scalar()
        if newest != state.version:
            return None
        tenant_of = self.changed(state.id, since)
        step = Step(state.version)
        for tenant in tenant_of.values():
            step.changes.setdefault(tenant, Change(state.version, state.created_at))
        among = list(tenant_of)
        for tenant, document, fields in self.documents(state.id, among):
            step.changes[tenant].documents[document] = fields
            step.keys[document] = []
        for piece in self.chunks(state, among):
            for tenant, chunk, vector in piece:
                step.changes[tenant].added.append(chunk)
                step.vectors[chunk.text_hash] = vector
                step.keys[chunk.document].append(chunk.key)
        for document, tenant in tenant_of.items():
            step.changes[tenant].removed += keys.get(document, ())
            # One that came and went since then was never seen here.
            if document in keys and document not in step.keys:
                step.changes[tenant].removed_documents.append(document)
                step.gone.append(document)
        return step

    def _pieces(self, query: Any, key: Any = None, among: Sequence[int] | None = None) -> Iterator[Sequence[Any]]:
        if among is None:
            yield from self._connection.execute(query, execution_options={"yield_per": _ROWS_PER_READ}).partitions()
            return
        for batch in in_batches(among):
            yield self._connection.execute(query.where(key.in_(batch))).all()


def _chunk() -> tuple[Any, ...]:
    """The columns of an IndexedChunk."""
    k, d = tables.chunks, tables.documents
    text = func.substr(d.c.text, k.c.start + 1, k.c.end - k.c.start)
    return k.c.pk, d.c.pk, k.c.text_hash, func.coalesce(d.c.title, ""), k.c.heading, text


def _check_embedded(rows: Sequence[Any]) -> None:
    if any(row.vector is None for row in rows):
        raise DataFolderError("the knowledge base has chunks without an embedding; restore it from a backup.")
