"""What every retriever does without writing: embed, search, and show documents and collections."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import RetrieverSettings
from engine.errors import (
    ComponentUnavailable,
    DataFolderError,
    InvalidRequest,
    RequestError,
    UnknownCollection,
    UnknownDocument,
)
from engine.retrieval.encoding.protocol import EncoderLike, RerankerLike, Vectors
from engine.retrieval.index.background import background_questions
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.freezing import Freezer
from engine.retrieval.index.frozen import FrozenRows
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.index.rows import Rows, VectorRows
from engine.retrieval.index.sharded_rows import ShardedRows
from engine.retrieval.store.store import CollectionState, Store
from engine.values import Evidence, IndexInfo, Passage, Query


class Reader(ABC):
    """Searches the collections of a store. A subclass opens the store and keeps the collections in step with it."""

    _store: Store

    def __init__(
        self,
        encoder: EncoderLike,
        settings: RetrieverSettings,
        reranker: RerankerLike | None = None,
        *,
        device: str = "cpu",
        freezing: Executor | None = None,
    ) -> None:
        """Hold vector rows on `device` (torch's name); `freezing` builds the frozen shards, default: a thread."""
        self._encoder = encoder
        self._reranker = reranker
        self._rerank_depth = settings.rerank_depth
        self._threads = settings.threads
        self._device = device
        self._alpha = None if settings.fusion == "ranks" else settings.dense_weight
        self._freeze_at = settings.frozen_rows
        self._shards = settings.shards
        self._pool = ThreadPoolExecutor(settings.shards, "search-shard") if settings.shards > 1 else None
        self._freezer = Freezer(recall=settings.frozen_recall, threads=settings.threads, executor=freezing)
        self._chunking = {
            "chunk_tokens": settings.chunk_tokens,
            "chunk_overlap_tokens": settings.chunk_overlap_tokens,
        }
        self._questions = encoder.encode(background_questions(), is_query=True)
        self._is_closed = False
        self._live: dict[str, LiveCollection] = {}

    @abstractmethod
    def close(self) -> None:
        """Give up the store and every index; may be called twice."""

    def evidence(self, queries: Sequence[Query]) -> list[Evidence | RequestError]:
        """Answer a batch: each distinct text is embedded once, each collection searched once.

        Returns: per query, in order, its evidence or the error that concerns it alone.
        """
        self._check_open()
        answers: list[Evidence | RequestError | None] = [self._problem(query) for query in queries]
        valid = [i for i, problem in enumerate(answers) if problem is None]
        started = time.perf_counter()
        # A search by words alone needs no vector, and waits for none.
        texts = list(dict.fromkeys(queries[i].text for i in valid if queries[i].is_embedded))
        vectors = self._encoder.encode(texts, is_query=True) if texts else np.empty((0, self._encoder.dim), np.float32)
        embed_ms = 1e3 * (time.perf_counter() - started)
        row_of = {text: row for row, text in enumerate(texts)}
        groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for i in valid:
            groups[queries[i].collection, queries[i].tenant].append(i)
        for (name, _), members in groups.items():
            asked = [self._deepened(queries[i]) for i in members]
            started = time.perf_counter()
            rows = [row_of[query.text] for query in asked if query.is_embedded]
            found = self._live[name].search(asked, vectors[rows])
            timings_ms = {"embed": embed_ms, "search": 1e3 * (time.perf_counter() - started)}
            for i, one in zip(members, found, strict=True):
                if isinstance(one, Evidence):
                    one = self._reranked(queries[i], replace(one, timings_ms=timings_ms))
                answers[i] = one
        return [answer for answer in answers if answer is not None]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """[N, E] float32 unit rows: the texts as questions are embedded. Raises: InvalidRequest."""
        self._check_open()
        for text in texts:
            _check_unicode(text)
        if not texts:
            return np.empty((0, self._encoder.dim), np.float32)
        return self._encoder.encode(texts, is_query=True)

    def index_info(self) -> IndexInfo:
        """The encoder and the chunking of every collection here."""
        chunking = hashlib.sha256(json.dumps(self._chunking, sort_keys=True).encode()).hexdigest()
        return IndexInfo(self._encoder.identity.digest, chunking)

    def get_document(self, collection: str, document_id: str, *, tenant: str = "") -> dict[str, Any]:
        """id, source, title, text, metadata, content_hash (SHA-256 of the body as sent), chunks, version."""
        self._check_known(collection, tenant)
        found = self._store.document(collection, tenant, document_id)
        if found is None:
            raise UnknownDocument(collection, document_id)
        return found

    def list_documents(
        self, collection: str, *, source: str | None, after: str | None, limit: int, tenant: str = ""
    ) -> list[dict[str, Any]]:
        """A page of at most `limit` summaries (as get_document, without text and metadata), ordered by id.

        Args:
            source: only documents of this source; None for all.
            after: the last id of the page before; None for the first page.
        """
        self._check_known(collection, tenant)
        return self._store.documents(collection, tenant, source=source, after=after, limit=limit)

    def collections(self, *, tenant: str = "") -> list[dict[str, Any]]:
        """name, documents, chunks, version and sources of each collection."""
        self._check_open()
        visible = self._visible(tenant)
        return [row for row in self._store.sizes(tenant) if row["name"] in visible]

    def collection(self, name: str, *, tenant: str = "") -> dict[str, Any]:
        """One row of `collections`. Raises: UnknownCollection."""
        self._check_known(name, tenant)
        return next(row for row in self._store.sizes(tenant) if row["name"] == name)

    def status(self) -> dict[str, Any]:
        """ready, number of collections, of their versions and chunks, the frozen shards that hold some of them, the
        encoder's identity.
        """
        live = list(self._live.values())
        return {
            "ready": not self._is_closed,
            "collections": len(live),
            "versions": sum(one.version for one in live),
            "chunks": sum(one.num_chunks for one in live),
            "frozen": [shard for one in live for shard in one.frozen()],
            "encoder": asdict(self._encoder.identity),
        }

    def _deepened(self, query: Query) -> Query:
        """The query as it is searched: as deep as the reranker reads."""
        return query if self._reranker is None else replace(query, k=max(query.k, self._rerank_depth))

    def _reranked(self, query: Query, found: Evidence) -> Evidence:
        """The best of what the search found by the reranker's judgement; scores become its own, from 0 to 1."""
        if self._reranker is None or not found.passages:
            return found
        started = time.perf_counter()
        logits = self._reranker.scores(query.text, [_read_text(passage) for passage in found.passages])
        scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
        ranked = sorted(zip(found.passages, scores.tolist(), strict=True), key=lambda pair: -pair[1])[: query.k]
        timings_ms = {**found.timings_ms, "rerank": 1e3 * (time.perf_counter() - started)}
        passages = tuple(replace(passage, score=score) for passage, score in ranked)
        similarities = found.similarities if query.wants_clues else found.similarities[: query.k]
        return replace(found, passages=passages, timings_ms=timings_ms, similarities=similarities)

    def _problem(self, query: Query) -> RequestError | None:
        if query.collection not in self._visible(query.tenant):
            return UnknownCollection(query.collection, self._visible(query.tenant))
        if query.k < 1:
            return InvalidRequest(f"k={query.k} is too small; ask for 1 passage or more.", param="k")
        try:
            _check_unicode(query.text)
        except InvalidRequest as error:
            return error
        return None

    def _check_generation(self, state: CollectionState, data: Path) -> None:
        ours = self._encoder.identity
        if state.encoder["digest"] != ours.digest:
            raise DataFolderError(
                f"{data}: collection {state.name!r} was embedded by {state.encoder['name']} "
                f"(digest {state.encoder['digest'][:12]}), retriever.model is {ours.name} (digest {ours.digest[:12]}). "
                "Set retriever.model back, or name an empty folder with --data and ingest again."
            )
        if state.chunking != self._chunking:
            raise DataFolderError(
                f"{data}: collection {state.name!r} was cut with {state.chunking}, the configuration says "
                f"{self._chunking}. Set retriever.chunk_tokens and retriever.chunk_overlap_tokens back, "
                "or name an empty folder with --data and ingest again."
            )

    def _new_live(self, name: str, folder: Path, version: int) -> LiveCollection:
        """An empty collection whose lexical index is in `folder`."""
        return LiveCollection(
            *(name, self._store, folder, self._questions),
            new_rows=self._new_rows,
            encoder=self._encoder.identity.digest,
            alpha=self._alpha,
            version=version,
            threads=self._threads,
        )

    def _new_rows(self) -> Rows:
        if self._pool is not None:
            return ShardedRows(self._encoder.dim, [self._flat_rows(shard) for shard in range(self._shards)], self._pool)
        if self._device == "cpu" and self._freeze_at:
            new_flat = partial(CpuRows, self._encoder.dim, threads=self._threads)
            return FrozenRows(new_flat, self._freezer, freeze_at=self._freeze_at)
        return self._flat_rows(0)

    def _flat_rows(self, shard: int) -> VectorRows:
        """Empty rows that are searched exactly, on the device of this shard."""
        if self._device == "cpu":
            return CpuRows(self._encoder.dim, threads=self._threads)
        from engine.retrieval.index.gpu_rows import GpuRows  # needs torch, which nothing else here does

        return GpuRows(self._encoder.dim, device=self._device if self._shards == 1 else f"{self._device}:{shard}")

    def _visible(self, tenant: str) -> list[str]:
        """Collections that a tenant may know of: its own; the tenant of keys without one sees every name."""
        return [name for name, live in list(self._live.items()) if not tenant or live.has(tenant)]

    def _check_known(self, collection: str, tenant: str) -> None:
        self._check_open()
        if collection not in self._visible(tenant):
            raise UnknownCollection(collection, self._visible(tenant))

    def _check_open(self) -> None:
        if self._is_closed:
            raise ComponentUnavailable("retriever", "it is shutting down")


def _read_text(passage: Passage) -> str:
    """What the reranker reads: as the encoder, the heading first."""
    head = passage.heading or passage.title
    return f"{head}\n{passage.text}" if head else passage.text


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the query holds half a surrogate pair at character {error.start}; send valid Unicode.", param="query"
        ) from None
