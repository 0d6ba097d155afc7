"""Documents that have no chunks of a generation yet, and the chunks that they get.

A document without any text has none in any generation, so it is never among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, exists, func, insert, select

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.store import tables
from engine.retrieval.store.generations import Generation
from engine.retrieval.store.write import NewChunk, add_embeddings, in_batches


@dataclass(frozen=True, slots=True)
class Uncut:
    """What cutting a document needs: `headings` are start and heading of its chunks in the current generation."""

    pk: int
    version: int
    id: str
    title: str | None
    content_type: str
    text: str
    outline: list[Any] | None
    headings: tuple[tuple[int, str], ...]


def read_uncut(
    connection: Connection, generation: Generation, *, after: int, limit: int, max_chars: int
) -> list[Uncut]:
    """The first `limit` documents behind number `after`, fewer where their texts exceed `max_chars`; one at least."""
    d = tables.documents
    sizes = select(d.c.pk, func.length(d.c.text)).where(*_is_uncut(generation), d.c.pk > after)
    chosen: list[int] = []
    room = max_chars
    for pk, num_chars in connection.execute(sizes.order_by(d.c.pk).limit(limit)):
        if chosen and num_chars > room:
            break
        chosen.append(pk)
        room -= num_chars
    return read_uncut_among(connection, generation, chosen)


def read_uncut_among(connection: Connection, generation: Generation, among: Iterable[int]) -> list[Uncut]:
    """Those of the documents of these numbers that have no chunks of the generation."""
    d = tables.documents
    columns = (d.c.pk, d.c.version, d.c.id, d.c.title, d.c.content_type, d.c.text, d.c.outline)
    query = select(*columns).where(*_is_uncut(generation)).order_by(d.c.pk)
    rows = list(_rows(connection, query, d.c.pk, among))
    headings = _headings(connection, [row.pk for row in rows if row.outline is None])
    return [
        Uncut(
            *(row.pk, row.version, row.id, row.title),
            content_type=row.content_type,
            text=row.text,
            outline=row.outline,
            headings=tuple(headings.get(row.pk, ())),
        )
        for row in rows
    ]


def uncut_numbers(connection: Connection, generation: Generation, among: Iterable[int] | None = None) -> list[int]:
    """Numbers of the documents that have no chunks of it: of all, or of those among these."""
    d = tables.documents
    query = select(d.c.pk).where(*_is_uncut(generation)).order_by(d.c.pk)
    if among is None:
        return list(connection.execute(query).scalars())
    return [row.pk for row in _rows(connection, query, d.c.pk, among)]


def add_chunks(
    connection: Connection,
    generation: Generation,
    cut: Sequence[tuple[Uncut, Sequence[NewChunk]]],
    vectors: Mapping[str, Vectors],
) -> int:
    """Keep the chunks of those documents that are still as they were read; how many documents that are."""
    d, k = tables.documents, tables.chunks
    present: dict[int, int] = {}
    for batch in in_batches(document.pk for document, _ in cut):
        query = select(d.c.pk, d.c.version).where(*_is_uncut(generation), d.c.pk.in_(batch))
        present |= {row.pk: row.version for row in connection.execute(query)}
    same = [(document, chunks) for document, chunks in cut if present.get(document.pk) == document.version]
    rows = [
        {"document_pk": document.pk, "generation": generation.number, "ordinal": ordinal, **asdict(chunk)}
        for document, chunks in same
        for ordinal, chunk in enumerate(chunks)
    ]
    if rows:
        connection.execute(insert(k), rows)
    hashes = {chunk.text_hash for _, chunks in same for chunk in chunks}
    add_embeddings(connection, hashes, vectors, generation.encoder["digest"])
    return len(same)


def _is_uncut(generation: Generation) -> tuple[Any, ...]:
    d, k = tables.documents, tables.chunks
    has_chunks = exists().where(k.c.document_pk == d.c.pk, k.c.generation == generation.number)
    return d.c.collection == generation.collection, d.c.num_chunks > 0, ~has_chunks


def _headings(connection: Connection, pks: Iterable[int]) -> dict[int, list[tuple[int, str]]]:
    k, d, c = tables.chunks, tables.documents, tables.collections
    query = (
        select(k.c.document_pk, k.c.start, k.c.heading)
        .join(d, d.c.pk == k.c.document_pk)
        .join(c, (c.c.id == d.c.collection) & (c.c.generation == k.c.generation))
        .order_by(k.c.document_pk, k.c.ordinal)
    )
    found: dict[int, list[tuple[int, str]]] = {}
    for pk, start, heading in _rows(connection, query, k.c.document_pk, pks):
        found.setdefault(pk, []).append((start, heading))
    return found


def _rows(connection: Connection, query: Any, key: Any, among: Iterable[int]) -> Iterator[Any]:
    for batch in in_batches(among):
        yield from connection.execute(query.where(key.in_(batch)))
