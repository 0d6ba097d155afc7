"""What state machines do to retrievers: writes and searches over few names and words, so that they meet."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from sqlalchemy import delete, select
from stub_encoder import StubEncoder

from engine.retrieval.store import tables
from engine.retrieval.store.store import Store
from engine.values import DocumentWrite

COLLECTIONS, TENANTS = ("docs", "more"), ("", "acme")
IDS = ("site/a", "site/b", "site/c", "blog/a", "blog/b", "loose")
WORDS = "volume region snapshot server disk network token price Madrid Tokyo backup key".split()

ids = st.sampled_from(IDS)
wheres = st.tuples(st.sampled_from(COLLECTIONS), st.sampled_from(TENANTS))
# Up to four chunks; few words, so that documents share texts and scores tie.
bodies = st.lists(st.sampled_from(WORDS), max_size=80).map(lambda words: " ".join(words).encode())
puts = st.builds(DocumentWrite, ids, bodies, st.sampled_from(("text/markdown", "text/plain")))
deletes = ids.map(lambda id: DocumentWrite(id, delete=True))
batches = st.lists(puts | deletes, min_size=1, max_size=6, unique_by=lambda item: item.id)
filters = st.sampled_from((None, {"$source": "site"}, {"$id": {"$nin": ["site/a", "loose"]}}))
questions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


class QuickEncoder(StubEncoder):
    """The stub encoder with a memory, since every restart embeds the same questions."""

    def _direction(self, word: str) -> np.ndarray:
        return direction(word)


@functools.cache
def direction(word: str) -> np.ndarray:
    return StubEncoder()._direction(word)


def drop_collection(data: Path, name: str, url: str | None = None) -> None:
    """Remove a collection with all its rows from a store that nobody owns at the moment."""
    c, d, k = tables.collections, tables.documents, tables.chunks
    store = Store(data, url=url)
    with store.writing() as connection:
        number = connection.execute(select(c.c.id).where(c.c.name == name)).scalar_one()
        mine = select(d.c.pk).where(d.c.collection == number)
        connection.execute(delete(k).where(k.c.document_pk.in_(mine)))
        for table in (d, tables.operations, tables.generations, tables.fits, tables.judgements):
            connection.execute(delete(table).where(table.c.collection == number))
        connection.execute(delete(c).where(c.c.id == number))
    store.close()
