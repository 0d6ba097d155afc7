"""The searchable side of a collection: vector rows and filters by tenant, lexical index, in step with the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import (
    BehindStore,
    ComponentUnavailable,
    DataFolderError,
    InvalidRequest,
    RequestError,
    StoreUnavailable,
    SwitchyardError,
)
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.encoding.turns import Turns
from engine.retrieval.index.background import BackgroundMeter
from engine.retrieval.index.clues import CLUE_RANKS, Traces, clues, traces, words_of
from engine.retrieval.index.filters import Filter, parse_filter
from engine.retrieval.index.frozen import FrozenRows
from engine.retrieval.index.fusion import FUSED_DEPTH, Hits, Ranking, hits_of, hybrid
from engine.retrieval.index.lexical import LexicalChunk, LexicalIndex
from engine.retrieval.index.metadata_index import MetadataIndex
from engine.retrieval.index.rows import Rows
from engine.retrieval.store.database import CommitUnknown
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.passages import StoredPassage
from engine.retrieval.store.store import Store
from engine.retrieval.store.write import Change, IndexedChunk, Transaction
from engine.values import Evidence, Passage, Query, ScoreBackground

_log = logging.getLogger(__name__)
_NOTHING = hits_of([])


@dataclass(slots=True)
class _Shelf:
    """What one tenant has in the collection."""

    rows: Rows
    metadata: MetadataIndex = field(default_factory=MetadataIndex)
    meter: BackgroundMeter = field(default_factory=BackgroundMeter)


@dataclass(frozen=True, slots=True)
class _Found:
    """One query's ranking by its mode, its best similarities, and the traces that its clues are made of."""

    ranking: Ranking
    similarities: tuple[float, ...]
    traces: Traces | None


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
        self._shelves: dict[str, _Shelf] = {}
        self.folder = folder
        self._lexical = LexicalIndex(folder, threads=threads)
        self._is_lexical_behind = False
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
            shelf = self._shelf(tenant)
            shelf.rows.append(keys, vectors, _slots(shelf.metadata, documents.tolist()))
        if self._lexical.open() != self.version or self._lexical.num_chunks != self.num_chunks:
            self._rebuild_lexical(lambda: reader.texts(self._name, self.generation))
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

        def texts() -> Iterator[LexicalChunk]:
            for piece in chunks:
                for tenant in {tenant for tenant, _, _ in piece}:
                    shelf, mine = self._shelf(tenant), [each for each in piece if each[0] == tenant]
                    keys = np.array([chunk.key for _, chunk, _ in mine], np.int64)
                    slots = _slots(shelf.metadata, [chunk.document for _, chunk, _ in mine])
                    shelf.rows.append(keys, np.stack([vector for _, _, vector in mine]), slots)
                yield from (_lexical(tenant, chunk) for tenant, chunk, _ in piece)

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
        self._write_lexical(changes, version)

        def settled(is_stored: bool) -> None:
            with self._turns.take():
                if is_stored:
                    self._show(changes, stacked, version, self._texts)
                    then()
                else:
                    self._is_lexical_behind = True
                    self._show_lexical(self._texts)

        try:
            with self._turns.take():
                for tenant, change in changes.items():
                    self._shelf(tenant).rows.reserve(len(change.added))
                try:
                    transaction.commit()
                except CommitUnknown:
                    raise
                except BaseException:
                    self._is_lexical_behind = True
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
        texts: Callable[[], Iterable[tuple[str, IndexedChunk]]],
    ) -> None:
        """Make searchable what another process has committed up to `version`, as one step.

        Args:
            changes: what became of each tenant's documents.
            vectors: [E] of every added chunk by its `text_hash`.
            texts: every chunk at `version` with its tenant, for a lexical index that must be built anew.
        """
        stacked = self._stacked(changes, vectors)
        self._write_lexical(changes, version)
        with self._turns.take():
            try:
                for tenant, change in changes.items():
                    self._shelf(tenant).rows.reserve(len(change.added))
            except BaseException:
                self._is_lexical_behind = True
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
        texts: Callable[[], Iterable[tuple[str, IndexedChunk]]],
    ) -> None:
        """Let searches see what is committed, with the `vectors` [n, E] of each tenant's added chunks."""
        for tenant, change in changes.items():
            _put(self._shelf(tenant), change, vectors[tenant])
        self.version = version
        self._show_lexical(texts)
        for tenant in changes:
            shelf = self._shelf(tenant)
            shelf.meter.refresh(shelf.rows, self._questions)

    def _write_lexical(self, changes: Mapping[str, Change], version: int) -> None:
        if self._is_lexical_behind:
            return
        try:
            removed = [key for change in changes.values() for key in change.removed]
            added = [_lexical(tenant, chunk) for tenant, change in changes.items() for chunk in change.added]
            self._lexical.commit(removed, added, version)
        except DataFolderError as error:
            self._leave_out_lexical(error)

    def _show_lexical(self, texts: Callable[[], Iterable[tuple[str, IndexedChunk]]]) -> None:
        """Let searches see the words of the version that the store has committed."""
        try:
            if self._is_lexical_behind:
                self._rebuild_lexical(texts)
                self._is_lexical_behind = False
            else:
                self._lexical.show()
                # tantivy may lose a deletion (once in thousands of writes under load), and find a chunk that is gone.
                if self._lexical.num_chunks != self.num_chunks:
                    found, wanted = self._lexical.num_chunks, self.num_chunks
                    _log.warning("lexical index of %s: %d chunks, not %d; it is rebuilt", self._name, found, wanted)
                    self._rebuild_lexical(texts)
        except (DataFolderError, StoreUnavailable) as error:
            self._leave_out_lexical(error)

    def _leave_out_lexical(self, error: SwitchyardError) -> None:
        # The store decides whether the write succeeds, not a cache of it.
        if not self._is_lexical_behind:
            _log.error("collection %s is searched by meaning alone until a write succeeds: %s", self._name, error)
        self._is_lexical_behind = True

    def _rebuild_lexical(self, texts: Callable[[], Iterable[tuple[str, IndexedChunk]]]) -> None:
        self._lexical.rebuild((_lexical(tenant, chunk) for tenant, chunk in texts()), self.version)

    def _texts(self) -> Iterable[tuple[str, IndexedChunk]]:
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
            found: dict[int, _Found] = {}
            for key, members in groups.items():
                if shelf is not None:
                    asked = [queries[i] for i in members]
                    mine = vectors[[row_of[i] for i in members if i in row_of]]
                    found.update(zip(members, self._ranked(shelf, asked, mine, key), strict=True))
            passages = self._store.passages({key for one in found.values() for key, _ in one.ranking})
            near = {key for one in found.values() if one.traces is not None for key in one.traces.nearest}
            stored = self._vectors_of(near)
        background = None if shelf is None else shelf.meter.background
        for members in groups.values():
            for i in members:
                one = found.get(i)
                if one is not None and any(key not in passages for key, _ in one.ranking):
                    answers[i] = self._store.missing_passage(queries[i].collection)
                    continue
                evidence = _evidence(one, passages, background, version)
                if queries[i].wants_clues:
                    made = clues(vectors[row_of[i]], None if one is None else one.traces, stored)
                    evidence = replace(evidence, clues=replace(made, encoder=self.encoder))
                answers[i] = _too_new(queries[i], version) or evidence
        return [answer for answer in answers if answer is not None]

    def _vectors_of(self, keys: set[int]) -> dict[int, Vectors]:
        """The vectors [E] that clues are made of; without them, a clue is not known."""
        try:
            return self._store.chunk_vectors(keys, self.encoder) if keys else {}
        except StoreUnavailable:
            return {}

    def _readable(self, query: Query) -> Filter | None:
        """The query's filter. Raises: RequestError when it cannot be read, or the mode not be served."""
        if query.mode == "lexical" and self._is_lexical_behind:
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

    def _ranked(self, shelf: _Shelf, queries: Sequence[Query], vectors: Vectors, wanted: Filter | None) -> list[_Found]:
        """Both legs for queries of one tenant with one filter."""
        allowed = None if wanted is None else shelf.metadata.mask(wanted)
        depth = max(max(_num_similarities(query), FUSED_DEPTH if query.mode == "hybrid" else 0) for query in queries)
        keys, scores = shelf.rows.search(vectors, depth, allowed)
        hits = map(Hits, keys, scores.astype(np.float64))
        dense = [next(hits) if query.is_embedded else _NOTHING for query in queries]
        by_words = [i for i, query in enumerate(queries) if query.mode != "dense" and not self._is_lexical_behind]
        lexical: dict[int, Hits] = {}
        if by_words:
            texts = [queries[i].text for i in by_words]
            tenant = queries[0].tenant if len(self._shelves) > 1 else None
            ranked = self._lexical.search(texts, depth, tenant=tenant, **_documents(shelf.metadata, allowed))
            lexical = dict(zip(by_words, map(hits_of, ranked), strict=True))
        alpha = self._fitted.get(queries[0].tenant, self._alpha)
        num_texts, counts = self._counts(shelf, queries, allowed)
        return [
            _Found(
                _by_mode(query, dense[i], lexical.get(i, _NOTHING), alpha).pairs(query.k),
                tuple(dense[i].scores[: _num_similarities(query)].tolist()),
                traces(query, dense[i], lexical.get(i, _NOTHING), num_texts, counts) if query.wants_clues else None,
            )
            for i, query in enumerate(queries)
        ]

    def _counts(
        self, shelf: _Shelf, queries: Sequence[Query], allowed: NDArray[np.bool_] | None
    ) -> tuple[int, dict[str, int]]:
        """How many chunks queries of one tenant and filter may find, and how many have each word they ask about."""
        words = words_of(queries)
        if not words or self._is_lexical_behind:
            return 0, {}
        # Neither another tenant's words nor those of documents outside the filter may show in a count.
        tenant = queries[0].tenant if len(self._shelves) > 1 or allowed is not None else None
        total, counts = self._lexical.count(words, tenant=tenant, **_documents(shelf.metadata, allowed))
        num_texts = len(shelf.rows) if total is None else total
        return num_texts, {word: min(count, num_texts) for word, count in counts.items()}

    def _shelf(self, tenant: str) -> _Shelf:
        if tenant not in self._shelves:
            self._shelves[tenant] = _Shelf(self._new_rows())
        return self._shelves[tenant]


def _num_similarities(query: Query) -> int:
    return max(query.k, CLUE_RANKS) if query.wants_clues else query.k


def _by_mode(query: Query, dense: Hits, lexical: Hits, alpha: float | None) -> Hits:
    """The ranking that the query's mode asks for; a hybrid one by scores with weight `alpha`, or by ranks (None)."""
    if query.mode == "dense":
        return dense
    if query.mode == "lexical":
        return lexical
    return hybrid(dense, lexical, alpha)


def _evidence(
    found: _Found | None, passages: Mapping[int, StoredPassage], background: ScoreBackground | None, version: int
) -> Evidence:
    if found is None:
        return Evidence((), background, version)
    ranked = tuple(_passage(passages[key], score) for key, score in found.ranking)
    return Evidence(ranked, background, version, similarities=found.similarities)


def _passage(found: StoredPassage, score: float) -> Passage:
    return Passage(
        chunk=found.chunk,
        document=found.document,
        title=found.title or "",
        heading=found.heading,
        text=found.text,
        start=found.start,
        end=found.end,
        score=score,
    )


def _documents(metadata: MetadataIndex, allowed: NDArray[np.bool_] | None) -> dict[str, NDArray[np.int64]]:
    """What the lexical leg may find, or what it may not: the shorter list."""
    if allowed is None:
        return {}
    if 2 * int(allowed.sum()) <= len(metadata):
        return {"documents": metadata.documents(allowed)}
    return {"excluded": metadata.documents(~allowed)}


def _put(shelf: _Shelf, change: Change, vectors: Vectors) -> None:
    """Bring a shelf's rows and filters in step with a change; `vectors` [n, E] are those of its added chunks."""
    shelf.rows.remove(change.removed)
    for document in change.removed_documents:
        shelf.metadata.remove(document)
    for document, fields in change.documents.items():
        shelf.metadata.put(document, fields)
    keys = np.array([chunk.key for chunk in change.added], np.int64)
    shelf.rows.append(keys, vectors, _slots(shelf.metadata, [chunk.document for chunk in change.added]))


def _slots(metadata: MetadataIndex, documents: Sequence[int]) -> NDArray[np.int32]:
    return np.array([metadata.slot_of(document) for document in documents], np.int32)


def _lexical(tenant: str, chunk: IndexedChunk) -> LexicalChunk:
    return LexicalChunk(chunk.key, chunk.document, tenant, chunk.title, chunk.heading, chunk.text)


def _too_new(query: Query, version: int) -> InvalidRequest | None:
    if query.min_version <= version:
        return None
    return InvalidRequest(
        f"min_version={query.min_version} is ahead of collection {query.collection!r}, which is at version {version}. "
        "Use the version that a write answered.",
        param="min_version",
    )
