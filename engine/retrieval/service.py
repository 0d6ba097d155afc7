"""The retriever: documents in, evidence out. A plain class, thread-safe, that a deployment wraps."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
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
    UnsupportedField,
)
from engine.retrieval.background import background_questions
from engine.retrieval.chunking import Chunker
from engine.retrieval.encoding import EncoderLike, Vectors
from engine.retrieval.live import LiveCollection
from engine.retrieval.preparing import check_collection_name
from engine.retrieval.rows import check_vectors
from engine.retrieval.store import CollectionState, Store
from engine.retrieval.writing import WritePlan
from engine.values import DocumentWrite, Evidence, Query, WriteResult

_MAX_TENANT_CHARS = 64


class Retriever:
    """Owns the data folder, the encoder's use and the vector rows of every collection."""

    def __init__(self, data: Path, encoder: EncoderLike, settings: RetrieverSettings) -> None:
        """Open the knowledge base in `data` and load its vectors.

        Raises: DataFolderError when the folder cannot be used or was made by another encoder or chunking;
            ConfigError when the settings do not fit the encoder.
        """
        self._encoder = encoder
        self._threads = settings.threads
        self._chunking = {
            "chunk_tokens": settings.chunk_tokens,
            "chunk_overlap_tokens": settings.chunk_overlap_tokens,
        }
        self._chunker = Chunker(
            encoder.tokenizer,
            chunk_tokens=settings.chunk_tokens,
            overlap_tokens=settings.chunk_overlap_tokens,
            max_tokens=encoder.max_tokens,
        )
        self._questions = encoder.encode(background_questions(), is_query=True)
        self._write_lock = threading.Lock()
        self._is_closed = False
        self._live: dict[str, LiveCollection] = {}
        self._store = Store(data)
        try:
            for state in self._store.collections():
                self._check_generation(state, data)
                live = self._new_live(state.version)
                live.load(state.id, encoder.identity.digest)
                self._live[state.name] = live
        except BaseException:
            self._store.close()
            raise

    def evidence(self, queries: Sequence[Query]) -> list[Evidence | RequestError]:
        """Answer a batch: each distinct text is embedded once, each collection searched once.

        Returns: per query, in order, its evidence or the error that concerns it alone.
        """
        self._check_open()
        answers: list[Evidence | RequestError | None] = [self._problem(query) for query in queries]
        valid = [i for i, problem in enumerate(answers) if problem is None]
        started = time.perf_counter()
        texts = list(dict.fromkeys(queries[i].text for i in valid))
        vectors = self._encoder.encode(texts, is_query=True) if texts else None
        embed_ms = 1e3 * (time.perf_counter() - started)
        row_of = {text: row for row, text in enumerate(texts)}
        groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for i in valid:
            groups[queries[i].collection, queries[i].tenant].append(i)
        for (name, _), members in groups.items():
            assert vectors is not None
            asked = [queries[i] for i in members]
            started = time.perf_counter()
            found = self._live[name].search(asked, vectors[[row_of[query.text] for query in asked]])
            timings_ms = {"embed": embed_ms, "search": 1e3 * (time.perf_counter() - started)}
            for i, one in zip(members, found, strict=True):
                answers[i] = replace(one, timings_ms=timings_ms) if isinstance(one, Evidence) else one
        return [answer for answer in answers if answer is not None]

    def write(self, collection: str, items: Sequence[DocumentWrite], *, tenant: str = "") -> list[WriteResult]:
        """Apply a batch as one version: durable and searchable when this returns.

        An item that fails is reported and never stops the rest. The first document creates the collection.
        Returns: a result per item, in order.
        Raises: InvalidRequest for the name of the collection or tenant; StorageFull, with nothing of the batch kept.
        """
        self._check_open()
        check_collection_name(collection)
        _check_tenant(tenant)
        plan = WritePlan(items)
        plan.prepare(self._chunker, self._store.content_hashes(collection, tenant, plan.ids()))
        vectors = self._vectors_of(plan)
        with self._write_lock, self._store.transaction() as transaction:
            self._check_open()
            change = transaction.apply(
                collection,
                tenant,
                puts=[prepared.document for prepared in plan.puts],
                deletes=plan.deletes,
                vectors=vectors,
                encoder=self._encoder.identity,
                chunking=self._chunking,
            )
            live = self._live.get(collection) or self._new_live(0)
            if change.version > live.version:
                added = [vectors[text_hash] for text_hash in change.added_hashes]
                stacked = np.stack(added) if added else np.empty((0, self._encoder.dim), np.float32)
                live.commit(transaction, change, tenant, stacked)
                self._live[collection] = live
        return plan.results(change)

    def get_document(self, collection: str, document_id: str, *, tenant: str = "") -> dict[str, Any]:
        """id, source, title, text, metadata, content_hash (SHA-256 of the body as sent), chunks, version."""
        self._check_known(collection)
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
        self._check_known(collection)
        return self._store.documents(collection, tenant, source=source, after=after, limit=limit)

    def collections(self, *, tenant: str = "") -> list[dict[str, Any]]:
        """name, documents, chunks, version and sources of each collection."""
        self._check_open()
        return self._store.sizes(tenant)

    def collection(self, name: str, *, tenant: str = "") -> dict[str, Any]:
        """One row of `collections`. Raises: UnknownCollection."""
        self._check_known(name)
        return next(row for row in self._store.sizes(tenant) if row["name"] == name)

    def status(self) -> dict[str, Any]:
        """ready, number of collections and chunks, and the encoder's identity."""
        live = list(self._live.values())
        return {
            "ready": not self._is_closed,
            "collections": len(live),
            "chunks": sum(one.num_chunks for one in live),
            "encoder": asdict(self._encoder.identity),
        }

    def close(self) -> None:
        """Finish the running write, close the store and give up the folder; may be called twice."""
        with self._write_lock:
            self._is_closed = True
            self._store.close()

    def _vectors_of(self, plan: WritePlan) -> dict[str, Vectors]:
        """The vector of each text that the plan needs; texts seen before are not embedded again."""
        texts = plan.texts()
        vectors = self._store.embeddings(self._encoder.identity.digest, texts)
        missing = [text_hash for text_hash in texts if text_hash not in vectors]
        plan.count_embedded(missing)
        if missing:
            embedded = self._encoder.encode([texts[text_hash] for text_hash in missing])
            check_vectors(embedded, self._encoder.dim)
            vectors.update(zip(missing, embedded, strict=True))
        return vectors

    def _problem(self, query: Query) -> RequestError | None:
        if query.collection not in self._live:
            return UnknownCollection(query.collection, self._live)
        if query.filter is not None:
            return UnsupportedField("filter is not implemented yet; leave it out.", param="filter")
        if query.k < 1:
            return InvalidRequest(f"k={query.k} is too small; ask for 1 passage or more.", param="k")
        try:
            query.text.encode()
        except UnicodeEncodeError as error:
            return InvalidRequest(
                f"the query holds half a surrogate pair at character {error.start}; send valid Unicode.", param="query"
            )
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

    def _new_live(self, version: int) -> LiveCollection:
        return LiveCollection(self._store, self._questions, threads=self._threads, version=version)

    def _check_known(self, collection: str) -> None:
        self._check_open()
        if collection not in self._live:
            raise UnknownCollection(collection, self._live)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ComponentUnavailable("retriever", "it is shutting down")


def _check_tenant(tenant: str) -> None:
    if len(tenant) > _MAX_TENANT_CHARS or not tenant.isprintable():
        raise InvalidRequest(
            f"tenant {tenant[:80]!a} is not valid; allowed: up to {_MAX_TENANT_CHARS} printable characters.",
            param="tenant",
        )
