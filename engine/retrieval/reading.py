"""What every retriever does without writing: embed, search, and show documents and collections."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import RetrieverSettings
from engine.errors import (
    BehindStore,
    ComponentUnavailable,
    InvalidRequest,
    RequestError,
    UnknownCollection,
    UnknownDocument,
)
from engine.retrieval.encoding.encoders import Encoders, LoadEncoder
from engine.retrieval.encoding.protocol import EncoderLike, RerankerLike, Vectors
from engine.retrieval.index.cpu_rows import CpuRows
from engine.retrieval.index.freezing import Freezer
from engine.retrieval.index.frozen import FrozenRows
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.index.rows import Rows, VectorRows
from engine.retrieval.index.sharded_rows import ShardedRows
from engine.retrieval.recipe import chunking_of
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
        load_encoder: LoadEncoder | None = None,
    ) -> None:
        """
        Args:
            encoder: that of new collections, which `settings.model` names.
            device: holds the vector rows (torch's name).
            freezing: builds the frozen shards; default: a thread.
            load_encoder: loads the encoder of another model, for collections that were made by one.
        """
        self._encoder = encoder
        self._encoders = Encoders(encoder, settings.model, load_encoder)
        self._reranker = reranker
        self._rerank_depth = settings.rerank_depth
        self._threads = settings.threads
        self._device = device
        self._alpha = None if settings.fusion == "ranks" else settings.dense_weight
        self._freeze_at = settings.frozen_rows
        self._shards = settings.shards
        self._pool = ThreadPoolExecutor(settings.shards, "search-shard") if settings.shards > 1 else None
        self._freezer = Freezer(recall=settings.frozen_recall, threads=settings.threads, executor=freezing)
        self._chunking = chunking_of(settings)
        self._is_closed = False
        self._live: dict[str, LiveCollection] = {}

    @abstractmethod
    def close(self) -> None:
        """Give up the store and every index; may be called twice."""

    def evidence(self, queries: Sequence[Query]) -> list[Evidence | RequestError]:
        """Answer a batch: each distinct text is embedded once by each encoder, each collection searched once.

        Returns: per query, in order, its evidence or the error that concerns it alone.
        """
        self._check_open()
        answers: list[Evidence | RequestError | None] = [self._problem(query) for query in queries]
        valid = [i for i, problem in enumerate(answers) if problem is None]
        while valid:
            lives = {queries[i].collection: self._live.get(queries[i].collection) for i in valid}
            for i, answer in zip(valid, self._searched([queries[i] for i in valid], lives), strict=True):
                answers[i] = answer
            # A generation that was replaced before its search began: that begins anew, with what stands in its place.
            valid = [
                i
                for i in valid
                if isinstance(answers[i], BehindStore)
                and self._live.get(queries[i].collection) is not lives[queries[i].collection]
            ]
        return [answer for answer in answers if answer is not None]

    def _searched(
        self, queries: Sequence[Query], lives: Mapping[str, LiveCollection | None]
    ) -> list[Evidence | RequestError]:
        """Answer queries with nothing wrong about them, each by what `lives` has under its collection's name."""
        started = time.perf_counter()
        # A search by words alone needs no vector, and waits for none.
        embedded = [(self._digest(lives[query.collection]), query.text) for query in queries if query.is_embedded]
        vectors = self._embedded(embedded)
        embed_ms = 1e3 * (time.perf_counter() - started)
        groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for i, query in enumerate(queries):
            groups[query.collection, query.tenant].append(i)
        answers: dict[int, Evidence | RequestError] = {}
        for (name, _), members in groups.items():
            live = lives[name]
            if live is None:
                answers |= dict.fromkeys(members, UnknownCollection(name, self._live))
                continue
            asked = [self._deepened(queries[i]) for i in members]
            started = time.perf_counter()
            mine = [vectors[live.encoder, query.text] for query in asked if query.is_embedded]
            dim = self._held(live.encoder).dim
            found = live.search(asked, np.stack(mine) if mine else np.empty((0, dim), np.float32))
            timings_ms = {"embed": embed_ms, "search": 1e3 * (time.perf_counter() - started)}
            for i, one in zip(members, found, strict=True):
                if isinstance(one, Evidence):
                    one = self._reranked(queries[i], replace(one, timings_ms=timings_ms))
                answers[i] = one
        return [answers[i] for i in range(len(queries))]

    def _embedded(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Vectors]:
        """The vector [E] of each text of a question, by the digest of an encoder."""
        vectors: dict[tuple[str, str], Vectors] = {}
        for digest in dict.fromkeys(digest for digest, _ in wanted):
            encoder = self._held(digest)
            texts = list(dict.fromkeys(text for asked, text in wanted if asked == digest))
            rows = encoder.encode(texts, is_query=True)
            vectors |= {(digest, text): row for text, row in zip(texts, rows, strict=True)}
        return vectors

    def _digest(self, live: LiveCollection | None) -> str:
        return self._encoder.identity.digest if live is None else live.encoder

    def _held(self, digest: str) -> EncoderLike:
        """The encoder of a collection that is here: it was loaded before."""
        encoder = self._encoders.held(digest)
        assert encoder is not None
        return encoder

    def embed(self, texts: Sequence[str], collection: str | None = None) -> Vectors:
        """[N, E] float32 unit rows: the texts as questions to `collection` are embedded; None: to a new one.

        Raises: InvalidRequest.
        """
        self._check_open()
        for text in texts:
            _check_unicode(text)
        encoder = self._held(self._digest(self._live.get(collection or "")))
        return encoder.encode(texts, is_query=True) if texts else np.empty((0, encoder.dim), np.float32)

    def index_info(self) -> IndexInfo:
        """The encoder and the chunking of new collections, and of those here that differ."""
        ours = (self._encoder.identity.digest, self._chunking)
        made = {name: (live.encoder, live.chunking) for name, live in list(self._live.items())}
        others = {name: IndexInfo(*_digests(*one)) for name, one in made.items() if one != ours}
        return IndexInfo(*_digests(*ours), others)

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

        `other_generations` are made otherwise than the settings say, each with what builds the one that they ask for.
        """
        live = list(self._live.values())
        return {
            "ready": not self._is_closed,
            "collections": len(live),
            "versions": sum(one.version for one in live),
            "chunks": sum(one.num_chunks for one in live),
            "frozen": [shard for one in live for shard in one.frozen()],
            "encoder": asdict(self._encoder.identity),
            "other_generations": self._other_generations(),
        }

    def _other_generations(self) -> list[dict[str, Any]]:
        ours = (self._encoder.identity.digest, self._chunking)
        return [
            {
                "collection": name,
                "generation": live.generation,
                "encoder": self._held(live.encoder).identity.name,
                "digest": live.encoder,
                **live.chunking,
                "build": f"switchyard generations build {name}",
            }
            for name, live in sorted(self._live.items())
            if (live.encoder, live.chunking) != ours
        ]

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

    def _new_live(self, state: CollectionState, encoder: EncoderLike, folder: Path) -> LiveCollection:
        """An empty collection by this encoder, whose lexical index is in `folder`."""
        return LiveCollection(
            *(state.name, self._store, folder, self._encoders.questions(encoder)),
            new_rows=partial(self._new_rows, encoder.dim),
            encoder=encoder.identity.digest,
            generation=state.generation,
            chunking=state.chunking,
            alpha=self._alpha,
            version=state.version,
            threads=self._threads,
        )

    def _new_rows(self, dim: int) -> Rows:
        if self._pool is not None:
            return ShardedRows(dim, [self._flat_rows(dim, shard) for shard in range(self._shards)], self._pool)
        if self._device == "cpu" and self._freeze_at:
            return FrozenRows(partial(CpuRows, dim, threads=self._threads), self._freezer, freeze_at=self._freeze_at)
        return self._flat_rows(dim, 0)

    def _flat_rows(self, dim: int, shard: int) -> VectorRows:
        """Empty rows that are searched exactly, on the device of this shard."""
        if self._device == "cpu":
            return CpuRows(dim, threads=self._threads)
        from engine.retrieval.index.gpu_rows import GpuRows  # needs torch, which nothing else here does

        return GpuRows(dim, device=self._device if self._shards == 1 else f"{self._device}:{shard}")

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


def _digests(encoder: str, chunking: Mapping[str, Any]) -> tuple[str, str]:
    return encoder, hashlib.sha256(json.dumps(chunking, sort_keys=True).encode()).hexdigest()


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
