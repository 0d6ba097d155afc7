"""The searchable side of a collection: vector rows and filters by tenant, lexical index, in step with the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import (
    BehindStore,
    ComponentUnavailable,
    InvalidRequest,
    RequestError,
    StoreUnavailable,
)
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.encoding.turns import Turns
from engine.retrieval.index.clues import clues
from engine.retrieval.index.filters import Filter, parse_filter
from engine.retrieval.index.frozen import FrozenRows
from engine.retrieval.index.lexical_leg import LexicalLeg, Texts
from engine.retrieval.index.ranking import Found, evidence_of, ranked
from engine.retrieval.index.rows import Rows
from engine.retrieval.index.shelf import Shelf
from engine.retrieval.store.database import CommitUnknown
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import Store
from engine.retrieval.store.write import Change, IndexedChunk, Transaction
from engine.values import Evidence, Query


class LiveCollection:
    """Searches see all of a write or nothing of it, in both legs. Thread-safe.

    Where the lexical index cannot follow (a full disk), that leg is left out until it has been built anew.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        folder: Path,
        questions: Vectors,
        *,
        new_rows: Callable[[], Rows],
        encoder: str = "",
        generation: int = 1,
        chunking: Mapping[str, Any] | None = None,
        alpha: float | None = None,
        version: int = 0,
        threads: int = 1,
    ) -> None:
        """`folder` holds the lexical index, which `threads` search; `questions` [N, E] measure the score background;
        `new_rows` makes empty rows for a tenant; `alpha` is the weight of meaning in hybrid searches, None fuses ranks;
        `encoder` is the digest under which the store has the vectors of the chunks of `generation`, which are cut as
        `chunking` says.
        """
        self.encoder = encoder
        self.chunking = dict(chunking or {})
        self.generation = generation
        self._alpha = alpha
        self._fitted: dict[str, float] = {}
        self._name = name
        self._store = store
        self._questions = questions
        self._new_rows = new_rows
        self._turns = Turns()
        self._shelves: dict[str, Shelf] = {}
        self.folder = folder
        self._lexical = LexicalLeg(name, folder, threads=threads)
        self._is_closed = False
        self.version = version

    @property
    def num_chunks(self) -> int:
        """Chunks of all tenants."""
        return sum(len(shelf.rows) for shelf in list(self._shelves.values()))

    def frozen(self) -> list[dict[str, Any]]:
        """Each frozen shard of every tenant; see Shard.facts."""
        kept = [shelf.rows for shelf in list(self._shelves.values())]
        return [shard.facts() for rows in kept if isinstance(rows, FrozenRows) for shard in rows.shards]

    def has(self, tenant: str) -> bool:
        """Whether a tenant has documents here."""
        shelf = self._shelves.get(tenant)
        return shelf is not None and len(shelf.metadata) > 0

    def use_alpha(self, tenant: str, alpha: float | None) -> None:
        """From now on, hybrid searches of `tenant` weigh meaning by `alpha`; None: as those of the other tenants."""
        with self._turns.take():
            self._fitted.pop(tenant, None)
            if alpha is not None:
                self._fitted[tenant] = alpha

    def load(self, collection: int, reader: LogReader) -> None:
        """Bring every index to the version that the reader sees; texts are read where the lexical one is not there."""
        for tenant, document, fields in reader.documents(collection):
            self._shelf(tenant).metadata.put(document, fields)
        for tenant, keys, documents, vectors in reader.vectors(collection, self.generation, self.encoder):
            self._shelf(tenant).append(keys, vectors, documents.tolist())
        if not self._lexical.open(self.version, self.num_chunks):
            self._lexical.rebuild(reader.texts(self._name, self.generation), self.version)
        for shelf in self._shelves.values():
            shelf.meter.refresh(shelf.rows, self._questions)

    def create(self) -> None:
        """Begin empty, whatever files an earlier collection of this name has left."""
        self._lexical.rebuild((), self.version)

    def fill(
        self,
        documents: Iterable[tuple[str, int, dict[str, Any]]],
        chunks: Iterable[Sequence[tuple[str, IndexedChunk, Vectors]]],
    ) -> None:
        """Begin with what another process has stored, read once; searches come later.

        Args:
            documents: each one's tenant, number and the fields that filters see.
            chunks: pieces of tenant, chunk and vector [E].
        Raises: DataFolderError when the lexical index cannot be written.
        """
        for tenant, document, fields in documents:
            self._shelf(tenant).metadata.put(document, fields)

        def texts() -> Texts:
            for piece in chunks:
                for tenant in {tenant for tenant, _, _ in piece}:
                    mine = [each for each in piece if each[0] == tenant]
                    keys = np.array([chunk.key for _, chunk, _ in mine], np.int64)
                    vectors = np.stack([vector for _, _, vector in mine])
                    self._shelf(tenant).append(keys, vectors, [chunk.document for _, chunk, _ in mine])
                yield from ((tenant, chunk) for tenant, chunk, _ in piece)

        self._lexical.rebuild(texts(), self.version)
        for shelf in self._shelves.values():
            shelf.meter.refresh(shelf.rows, self._questions)

    def commit(
        self,
        transaction: Transaction,
        changes: Mapping[str, Change],
        vectors: Mapping[str, Vectors],
        version: int,
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Commit a write and make it searchable.

        Args:
            changes: what becomes of each tenant's documents.
            vectors: [E] of every added chunk by its `text_hash`.
            version: the collection's from then on.
            then: called once searches see it: at once or, where the database goes away meanwhile, when it is back.
        """
        stacked = self._stacked(changes, vectors)
        # The slow part of the lexical index comes first, while searches go on. Killed in between, it is ahead of the
        # store, which the next start sees.
        self._lexical.write(changes, version)

        def settled(is_stored: bool) -> None:
            with self._turns.take():
                if is_stored:
                    self._show(changes, stacked, version, self._texts)
                    then()
                else:
                    self._lexical.is_behind = True
                    self._lexical.show(self.version, self.num_chunks, self._texts)

        try:
            with self._turns.take():
                for tenant, change in changes.items():
                    self._shelf(tenant).rows.reserve(len(change.added))
                try:
                    transaction.commit()
                except CommitUnknown:
                    raise
                except BaseException:
                    self._lexical.is_behind = True
                    raise
                self._show(changes, stacked, version, self._texts)
                then()
        except CommitUnknown:
            # Searches go on with what they saw before.
            transaction.settle(settled)

    def apply(
        self,
        changes: Mapping[str, Change],
        vectors: Mapping[str, Vectors],
        version: int,
        texts: Callable[[], Texts],
    ) -> None:
        """Make searchable what another process has committed up to `version`, as one step.

        Args:
            changes: what became of each tenant's documents.
            vectors: [E] of every added chunk by its `text_hash`.
            texts: every chunk at `version` with its tenant, for a lexical index that must be built anew.
        """
        stacked = self._stacked(changes, vectors)
        self._lexical.write(changes, version)
        with self._turns.take():
            try:
                for tenant, change in changes.items():
                    self._shelf(tenant).rows.reserve(len(change.added))
            except BaseException:
                self._lexical.is_behind = True
                raise
            self._show(changes, stacked, version, texts)

    def _stacked(self, changes: Mapping[str, Change], vectors: Mapping[str, Vectors]) -> dict[str, Vectors]:
        """The vectors [n, E] of each tenant's added chunks."""
        stacked = {}
        for tenant, change in changes.items():
            stacked[tenant] = np.empty((len(change.added), self._questions.shape[1]), np.float32)
            for row, chunk in enumerate(change.added):
                stacked[tenant][row] = vectors[chunk.text_hash]
        return stacked

    def _show(
        self,
        changes: Mapping[str, Change],
        vectors: Mapping[str, Vectors],
        version: int,
        texts: Callable[[], Texts],
    ) -> None:
        """Let searches see what is committed, with the `vectors` [n, E] of each tenant's added chunks."""
        for tenant, change in changes.items():
            self._shelf(tenant).put(change, vectors[tenant])
        self.version = version
        self._lexical.show(version, self.num_chunks, texts)
        for tenant in changes:
            shelf = self._shelf(tenant)
            shelf.meter.refresh(shelf.rows, self._questions)

    def _texts(self) -> Texts:
        with self._store.reading() as connection:
            yield from LogReader(connection).texts(self._name, self.generation)

    def search(self, queries: Sequence[Query], vectors: Vectors) -> list[Evidence | RequestError]:
        """Answer queries [Q] of one tenant with `vectors` [n, E], those of the n queries that are embedded; no timings.

        Queries with the same filter are searched together. A filter that cannot be read fails its own query alone, and
        so does a passage that another process has removed from the store meanwhile (BehindStore). Once this is closed,
        every query does: something else stands in its place.
        """
        answers: list[Evidence | RequestError | None] = [None] * len(queries)
        groups: dict[Filter | None, list[int]] = {}
        row_of = {i: row for row, i in enumerate(i for i, query in enumerate(queries) if query.is_embedded)}
        for position, query in enumerate(queries):
            try:
                groups.setdefault(self._readable(query), []).append(position)
            except RequestError as error:
                answers[position] = error
        with self._turns.take():
            if self._is_closed:
                return [BehindStore(query.collection) for query in queries]
            version = self.version
            shelf = self._shelves.get(queries[0].tenant)
            found: dict[int, Found] = {}
            alpha = self._fitted.get(queries[0].tenant, self._alpha)
            for wanted, members in groups.items():
                if shelf is not None:
                    asked = [queries[i] for i in members]
                    mine = vectors[[row_of[i] for i in members if i in row_of]]
                    rankings = ranked(
                        *(shelf, self._lexical, asked, mine, wanted), alpha=alpha, is_alone=len(self._shelves) == 1
                    )
                    found.update(zip(members, rankings, strict=True))
            passages = self._store.passages.read({key for one in found.values() for key, _ in one.ranking})
            near = {key for one in found.values() if one.traces is not None for key in one.traces.nearest}
            stored = self._vectors_of(near)
        background = None if shelf is None else shelf.meter.background
        for members in groups.values():
            for i in members:
                one = found.get(i)
                if one is not None and any(key not in passages for key, _ in one.ranking):
                    answers[i] = self._store.passages.missing(queries[i].collection)
                    continue
                evidence = evidence_of(one, passages, background, version)
                if queries[i].wants_clues:
                    made = clues(vectors[row_of[i]], None if one is None else one.traces, stored)
                    evidence = replace(evidence, clues=replace(made, encoder=self.encoder))
                answers[i] = _too_new(queries[i], version) or evidence
        return [answer for answer in answers if answer is not None]

    def _vectors_of(self, keys: set[int]) -> dict[int, Vectors]:
        """The vectors [E] that clues are made of; without them, a clue is not known."""
        try:
            return self._store.passages.vectors(keys, self.encoder) if keys else {}
        except StoreUnavailable:
            return {}

    def _readable(self, query: Query) -> Filter | None:
        """The query's filter. Raises: RequestError when it cannot be read, or the mode not be served."""
        if query.mode == "lexical" and self._lexical.is_behind:
            raise ComponentUnavailable("retriever", "its lexical index could not be written; search with mode=dense")
        return None if query.filter is None else parse_filter(query.filter)

    def retire(self) -> None:
        """Let the searches that have begun end, and no other begin."""
        with self._turns.take():
            self._is_closed = True

    def close(self) -> None:
        """Give up the files of the lexical index, once the searches that have begun have ended."""
        with self._turns.take():
            self._is_closed = True
            self._lexical.close()

    def _shelf(self, tenant: str) -> Shelf:
        if tenant not in self._shelves:
            self._shelves[tenant] = Shelf(self._new_rows())
        return self._shelves[tenant]


def _too_new(query: Query, version: int) -> InvalidRequest | None:
    if query.min_version <= version:
        return None
    return InvalidRequest(
        f"min_version={query.min_version} is ahead of collection {query.collection!r}, which is at version {version}. "
        "Use the version that a write answered.",
        param="min_version",
    )
