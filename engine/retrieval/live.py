"""The searchable side of a collection: vector rows per tenant, changed together with the store's commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from engine.errors import InvalidRequest
from engine.retrieval.background import BackgroundMeter
from engine.retrieval.encoding import Vectors
from engine.retrieval.rows import VectorRows
from engine.retrieval.store import Store
from engine.retrieval.store_write import Change, Transaction
from engine.retrieval.turns import Turns
from engine.values import Evidence, Passage, Query


class LiveCollection:
    """Searches see all of a write or nothing of it. Thread-safe."""

    def __init__(self, store: Store, questions: Vectors, *, threads: int, version: int = 0) -> None:
        self._store = store
        self._questions = questions
        self._threads = threads
        self._turns = Turns()
        self._rows: dict[str, VectorRows] = {}
        self._meters: dict[str, BackgroundMeter] = {}
        self.version = version

    @property
    def num_chunks(self) -> int:
        """Rows of all tenants."""
        return sum(len(rows) for rows in list(self._rows.values()))

    def load(self, collection: int, encoder: str) -> None:
        """Read every vector of the collection from the store."""
        for tenant, keys, vectors in self._store.vectors(collection, encoder):
            self._rows_of(tenant).append(keys, vectors)
        for tenant in self._rows:
            self._refresh_background(tenant)

    def commit(self, transaction: Transaction, change: Change, tenant: str, vectors: Vectors) -> None:
        """Commit the write and make it searchable; `vectors` [n, E] belong to the keys `change.added`."""
        with self._turns.take():
            rows = self._rows_of(tenant)
            rows.reserve(len(change.added))
            transaction.commit()
            rows.remove(change.removed)
            rows.append(np.array(change.added, np.int64), vectors)
            self.version = change.version
            self._refresh_background(tenant)

    def search(self, queries: Sequence[Query], vectors: Vectors) -> list[Evidence | InvalidRequest]:
        """One search for queries [Q] of the same tenant with `vectors` [Q, E]; without timings."""
        with self._turns.take():
            tenant = queries[0].tenant
            rows = self._rows.get(tenant)
            if rows is None:
                ranked: list[list[tuple[int, float]]] = [[] for _ in queries]
            else:
                keys, scores = rows.search(vectors, max(query.k for query in queries))
                ranked = [
                    list(zip(keys[i].tolist(), scores[i].tolist(), strict=True))[: query.k]
                    for i, query in enumerate(queries)
                ]
            passages = self._passages({key for hits in ranked for key, _ in hits})
            background = self._meters[tenant].background if tenant in self._meters else None
            version = self.version
        return [
            _too_new(query, version)
            or Evidence(tuple(_scored(passages[key], score) for key, score in hits), background, version)
            for query, hits in zip(queries, ranked, strict=True)
        ]

    def _passages(self, keys: Iterable[int]) -> dict[int, Passage]:
        return {
            key: Passage(
                chunk=found.chunk,
                document=found.document,
                title=found.title or "",
                heading=found.heading,
                text=found.text,
                start=found.start,
                end=found.end,
                score=0.0,
            )
            for key, found in self._store.passages(keys).items()
        }

    def _rows_of(self, tenant: str) -> VectorRows:
        if tenant not in self._rows:
            self._rows[tenant] = VectorRows(self._questions.shape[1], threads=self._threads)
            self._meters[tenant] = BackgroundMeter()
        return self._rows[tenant]

    def _refresh_background(self, tenant: str) -> None:
        self._meters[tenant].refresh(self._rows[tenant], self._questions)


def _too_new(query: Query, version: int) -> InvalidRequest | None:
    if query.min_version <= version:
        return None
    return InvalidRequest(
        f"min_version={query.min_version} is ahead of collection {query.collection!r}, which is at version {version}. "
        "Use the version that a write answered.",
        param="min_version",
    )


def _scored(passage: Passage, score: float) -> Passage:
    return replace(passage, score=score)
