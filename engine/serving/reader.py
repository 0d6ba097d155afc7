"""What the deployments of retrievers share: reads, with queries batched across requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.config import EngineConfig, Profile, RetrieverSettings
from engine.errors import RequestError
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.encoding.reranker import Reranker
from engine.retrieval.following import Follower
from engine.retrieval.reading import Reader
from engine.retrieval.store.address import chosen_store
from engine.serving.adapters import short_replica_name
from engine.serving.batching import Batches
from engine.serving.loopback import bind_replica_to_loopback
from engine.serving.options import device
from engine.values import Evidence, IndexInfo, Query

_MAX_QUERIES = 512  # of one search
_SEARCH_THREADS = 3  # a batch of queries, one of texts, and the status
_Answer = TypeVar("_Answer")
# The writing retriever loads its models and migrates before the store can be followed.
_STORE_PATIENCE_S = 120


def load_encoder(settings: RetrieverSettings, profile: Profile, model: str) -> Encoder:
    """The encoder that `model` names. Raises: ModelSourceError."""
    path = resolve_model(model, kind="encoder").path
    batch_tokens = settings.forward_tokens(device(profile))
    return Encoder(path, threads=settings.threads, device=device(profile), batch_tokens=batch_tokens)


def load_models(settings: RetrieverSettings, profile: Profile) -> tuple[Encoder, Reranker | None]:
    """The encoder, and the reranker where one is set."""
    batch_tokens = settings.forward_tokens(device(profile))
    encoder = load_encoder(settings, profile, settings.model)
    if settings.reranker is None:
        return encoder, None
    path = resolve_model(settings.reranker, kind="encoder").path
    return encoder, Reranker(path, device=device(profile), batch_tokens=batch_tokens)


class ReaderDeployment:
    """Reads from a retriever. Blocking work runs in threads, so health checks answer."""

    _retriever: Reader

    def _start(self, retriever: Reader) -> None:
        self._retriever = retriever
        # Writes that wait for the database must not hold the threads of searches and of readiness.
        self._searching = ThreadPoolExecutor(_SEARCH_THREADS, "searching")
        self._queries: Batches[Query, Evidence | RequestError] = Batches(self._evidence, max_size=_MAX_QUERIES)
        self._texts: Batches[tuple[str, str], NDArray[np.float32]] = Batches(self._embed, max_size=_MAX_QUERIES)

    async def _ready_for(self, query: Query) -> None:
        """Return when the query may be searched."""

    async def evidence(self, query: Query) -> Evidence:
        """Passages for one query."""
        await self._ready_for(query)
        found = await self._queries.submit(query)
        if isinstance(found, RequestError):
            raise found
        return found

    async def _evidence(self, queries: list[Query]) -> Sequence[Evidence | RequestError]:
        return await self._in_search_thread(self._retriever.evidence, queries)

    async def embed(self, text: str, collection: str) -> NDArray[np.float32]:
        """The embedding [E] of a question to a collection, without a search."""
        return await self._texts.submit((text, collection))

    async def _embed(self, asked: list[tuple[str, str]]) -> Sequence[NDArray[np.float32]]:
        found: dict[tuple[str, str], NDArray[np.float32]] = {}
        for collection in {collection for _, collection in asked}:
            texts = [text for text, name in asked if name == collection]
            rows = await self._in_search_thread(self._retriever.embed, texts, collection)
            found |= {(text, collection): row for text, row in zip(texts, rows, strict=True)}
        return [found[each] for each in asked]

    async def _in_search_thread(self, call: Callable[..., _Answer], *arguments: Any) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._searching, call, *arguments)

    async def index_info(self) -> IndexInfo:
        """What makes similarities comparable."""
        return self._retriever.index_info()

    async def document(self, collection: str, document: str, tenant: str) -> dict[str, Any]:
        """One document with its text."""
        return await asyncio.to_thread(self._retriever.get_document, collection, document, tenant=tenant)

    async def documents(
        self, collection: str, source: str | None, after: str | None, limit: int, tenant: str
    ) -> list[dict[str, Any]]:
        """A page of document summaries."""
        return await asyncio.to_thread(
            self._retriever.list_documents, collection, source=source, after=after, limit=limit, tenant=tenant
        )

    async def collections(self, tenant: str) -> list[dict[str, Any]]:
        """Every collection."""
        return await asyncio.to_thread(self._retriever.collections, tenant=tenant)

    async def status(self) -> dict[str, Any]:
        """What `/readyz` shows."""
        return await self._in_search_thread(self._retriever.status)

    def __del__(self) -> None:
        if hasattr(self, "_retriever"):
            self._retriever.close()


class FollowerDeployment(ReaderDeployment):
    """One of several retrievers that search what another process writes."""

    _retriever: Follower

    def __init__(self, config: EngineConfig, profile: Profile) -> None:
        bind_replica_to_loopback()
        settings = config.retriever
        encoder, reranker = load_models(settings, profile)
        # Ray sends it requests once this has returned: by then it has all that the store had.
        follower = Follower(
            *(config.data, encoder, settings, reranker),
            store=chosen_store(config.store),
            device=device(profile),
            load_encoder=partial(load_encoder, settings, profile),
            patience_s=_STORE_PATIENCE_S,
        )
        follower.start()
        self._max_wait_s = settings.max_wait_ms / 1e3
        self._num_searches = 0
        self._start(follower)

    async def _ready_for(self, query: Query) -> None:
        self._num_searches += 1
        await self._retriever.wait_for(query, self._max_wait_s)

    async def status(self) -> dict[str, Any]:
        """What `/readyz` shows, with the name of this replica and how many searches it was sent."""
        return {**await super().status(), "replica": short_replica_name(), "searches": self._num_searches}

    def check_health(self) -> None:
        """Called by Ray Serve. Raises: DataFolderError when the store has not been read for long."""
        self._retriever.check()
