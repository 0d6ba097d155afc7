"""A collection to a snapshot file and back: each from one moment, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, exists, func, select

from engine.errors import DataFolderError, SnapshotError, UnknownCollection
from engine.retrieval.encoding.protocol import EncoderIdentity
from engine.retrieval.preparing import check_collection_name
from engine.retrieval.snapshots.format import DOCUMENTS, TEXTS, VECTORS, Manifest
from engine.retrieval.snapshots.reader import SnapshotReader
from engine.retrieval.snapshots.restoring import Restore
from engine.retrieval.snapshots.writer import SnapshotWriter
from engine.retrieval.store import tables
from engine.retrieval.store.inbox import count_waiting, discard
from engine.retrieval.store.store import Store, read_collections

# Told what is being done, how many documents are done, and how many there are.
Progress = Callable[[str, int, int], None]

_DOCUMENTS_PER_PAGE = 200
_ROWS_PER_READ = 4096
_DOCUMENT_FIELDS = (
    *("tenant", "id", "source", "title", "content_type", "body_hash", "content_hash"),
    *("metadata", "updated_at", "text", "outline"),
)
_CHUNK_FIELDS = ("id", "start", "end", "heading", "text_hash")


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore_snapshot` put into the store."""

    collection: str
    version: int
    documents: int
    chunks: int


def write_snapshot(store: Store, collection: str, target: Path, *, progress: Progress | None = None) -> Manifest:
    """Write the collection as it is now to `target`, in place of the snapshot that may be there.

    It holds what is applied; what waits in the inbox is not in it.
    The store may be written to meanwhile. Killed at any point, this leaves the old snapshot or the new one.
    Raises: UnknownCollection; SnapshotError for a target that cannot be written; StorageFull.
    """
    with store.reading() as connection:
        states = {state.name: state for state in read_collections(connection)}
        if collection not in states:
            raise UnknownCollection(collection, states)
        state = states[collection]
        digest = state.encoder["digest"]
        tally = _Tally(_count_documents(connection, state.id), progress)
        texts: list[str] = []
        with SnapshotWriter(target) as writer:
            writer.add(DOCUMENTS, tally.lines(_documents(connection, state.id)))
            writer.add(TEXTS, _text_lines(connection, state.id, digest, texts))
            if tally.texts != set(texts):
                raise DataFolderError(f"collection {collection!r} has chunks without an embedding; restore it.")
            writer.add(VECTORS, (row.vector for row in _embeddings(connection, state.id, digest)))
            return writer.seal(
                collection=collection,
                version=state.version,
                documents=tally.documents,
                chunks=tally.chunks,
                texts=len(texts),
                encoder=EncoderIdentity(**state.encoder),
                chunking=state.chunking,
                model=state.model,
            )


def verify_snapshot(source: Path, *, progress: Progress | None = None) -> Manifest:
    """Read all of a snapshot. Raises: SnapshotError for whatever is wrong with it."""
    with SnapshotReader(source) as snapshot:
        _verify(snapshot, progress)
        return snapshot.manifest


def restore_snapshot(
    store: Store,
    source: Path,
    *,
    as_name: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Put a snapshot's collection into the store as one new version, once all of the snapshot is verified.

    The version is above the snapshot's and above that of the collection it replaces, so that no reader who names the
    version of an earlier write is turned away. A retriever that has the store open does not see the change.

    Args:
        as_name: name of the collection; default: the snapshot's.
        replace: whether a collection of that name may be replaced, and writes to it that wait be dropped.
    Raises: SnapshotError for a snapshot that is damaged or does not fit, InvalidRequest for a malformed name,
        StorageFull; nothing was changed then.
    """
    with SnapshotReader(source) as snapshot:
        manifest = snapshot.manifest
        name = manifest.collection if as_name is None else as_name
        check_collection_name(name)
        _verify(snapshot, progress)
        with store.writing() as connection:
            states = {state.name: state for state in read_collections(connection)}
            old = states.pop(name, None)
            if old is not None and not replace:
                raise SnapshotError(
                    f"collection {name!r} exists already, at version {old.version}. "
                    "Restore under another name with --as NAME, or put the snapshot in its place with --replace."
                )
            num_waiting = count_waiting(connection, name)
            if num_waiting and not replace:
                raise SnapshotError(
                    f"{num_waiting} writes to collection {name!r} still wait to be applied. Start the server and let "
                    "their jobs end, restore under another name with --as NAME, or drop them with --replace."
                )
            # They are older than the restore, and would be applied on top of it.
            discard(connection, name)
            restore = Restore(connection, manifest, name, old)
            for texts, vectors in snapshot.vectors():
                restore.add_vectors(texts, vectors)
            documents, done = snapshot.documents(), 0
            while page := list(islice(documents, _DOCUMENTS_PER_PAGE)):
                restore.add_documents(page)
                done += len(page)
                _tell(progress, "restore", done, manifest.documents)
            restore.finish()
        return Restored(name, restore.version, manifest.documents, manifest.chunks)


def _verify(snapshot: SnapshotReader, progress: Progress | None) -> None:
    for done in snapshot.verify():
        _tell(progress, "verify", done, snapshot.manifest.documents)


class _Tally:
    """Counts what passes through on its way into the file."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self.documents = 0
        self.chunks = 0
        self.texts: set[str] = set()

    def lines(self, documents: Iterator[dict[str, Any]]) -> Iterator[bytes]:
        for document in documents:
            yield json.dumps(document, ensure_ascii=False).encode() + b"\n"
            self.documents += 1
            self.chunks += len(document["chunks"])
            self.texts |= {chunk["text_hash"] for chunk in document["chunks"]}
            _tell(self._progress, "save", self.documents, self._total)


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None and (done % _DOCUMENTS_PER_PAGE == 0 or done == total):
        progress(what, done, total)


def _count_documents(connection: Connection, collection: int) -> int:
    d = tables.documents
    return connection.execute(select(func.count(d.c.pk)).where(d.c.collection == collection)).scalar_one()


def _documents(connection: Connection, collection: int) -> Iterator[dict[str, Any]]:
    """Every document of the collection with its present chunks, page by page."""
    d, k, c = tables.documents, tables.chunks, tables.collections
    generation = select(c.c.generation).where(c.c.id == collection).scalar_subquery()
    pages = select(d.c.pk, *(d.c[name] for name in _DOCUMENT_FIELDS)).where(d.c.collection == collection)
    pages = pages.order_by(d.c.pk).limit(_DOCUMENTS_PER_PAGE)
    last = -1
    while page := connection.execute(pages.where(d.c.pk > last)).all():
        query = select(k.c.document_pk, *(k.c[name] for name in _CHUNK_FIELDS)).where(
            k.c.document_pk.in_([row.pk for row in page]), k.c.generation == generation
        )
        rows = connection.execute(query.order_by(k.c.document_pk, k.c.ordinal)).all()
        chunks = {
            pk: [dict(zip(_CHUNK_FIELDS, row[1:], strict=True)) for row in group]
            for pk, group in groupby(rows, lambda row: row.document_pk)
        }
        for row in page:
            yield dict(zip(_DOCUMENT_FIELDS, row[1:], strict=True)) | {"chunks": chunks.get(row.pk, [])}
        last = page[-1].pk


def _embeddings(connection: Connection, collection: int, encoder: str) -> Iterator[Any]:
    """text_hash and vector of every text that a present chunk of the collection needs, in the order of the hashes."""
    d, k, c, e = tables.documents, tables.chunks, tables.collections, tables.embeddings
    is_needed = exists().where(
        k.c.text_hash == e.c.text_hash,
        d.c.pk == k.c.document_pk,
        d.c.collection == collection,
        c.c.id == d.c.collection,
        c.c.generation == k.c.generation,
    )
    query = select(e.c.text_hash, e.c.vector).where(e.c.encoder == encoder, is_needed).order_by(e.c.text_hash)
    return iter(connection.execute(query, execution_options={"yield_per": _ROWS_PER_READ}))


def _text_lines(connection: Connection, collection: int, encoder: str, texts: list[str]) -> Iterator[bytes]:
    for row in _embeddings(connection, collection, encoder):
        texts.append(row.text_hash)
        yield json.dumps(row.text_hash).encode() + b"\n"
