"""The Retriever deployment: one component, its queries batched across requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.config import EngineConfig, Profile
from engine.errors import RequestError
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.encoding.reranker import Reranker
from engine.retrieval.service import Retriever
from engine.retrieval.store.address import chosen_store
from engine.serving.batching import Batches
from engine.serving.loopback import bind_replica_to_loopback
from engine.serving.options import device
from engine.values import DocumentWrite, Evidence, IndexInfo, Judgement, Query, WriteResult

_MAX_QUERIES = 512  # of one search
_SEARCH_THREADS = 3  # a batch of queries, one of texts, and the status
_Answer = TypeVar("_Answer")


class RetrieverDeployment:
    """Owns the store, the encoder and the vector rows. Blocking work runs in threads, so health checks answer."""

    def __init__(self, config: EngineConfig, profile: Profile) -> None:
        bind_replica_to_loopback()
        settings = config.retriever
        model = resolve_model(settings.model, kind="encoder")
        batch_tokens = settings.forward_tokens(device(profile))
        encoder = Encoder(model.path, threads=settings.threads, device=device(profile), batch_tokens=batch_tokens)
        reranker = None
        if settings.reranker is not None:
            path = resolve_model(settings.reranker, kind="encoder").path
            reranker = Reranker(path, device=device(profile), batch_tokens=batch_tokens)
        store = chosen_store(config.store)
        self._retriever = Retriever(config.data, encoder, settings, reranker, store=store, device=device(profile))
        # Writes that wait for the database must not hold the threads of searches and of readiness.
        self._searching = ThreadPoolExecutor(_SEARCH_THREADS, "searching")
        self._queries: Batches[Query, Evidence | RequestError] = Batches(self._evidence, max_size=_MAX_QUERIES)
        self._texts: Batches[str, NDArray[np.float32]] = Batches(self._embed, max_size=_MAX_QUERIES)

    async def evidence(self, query: Query) -> Evidence:
        """Passages for one query."""
        found = await self._queries.submit(query)
        if isinstance(found, RequestError):
            raise found
        return found

    async def _evidence(self, queries: list[Query]) -> Sequence[Evidence | RequestError]:
        return await self._in_search_thread(self._retriever.evidence, queries)

    async def embed(self, text: str) -> NDArray[np.float32]:
        """The embedding [E] of a question, without a search."""
        return await self._texts.submit(text)

    async def _embed(self, texts: list[str]) -> Sequence[NDArray[np.float32]]:
        return list(await self._in_search_thread(self._retriever.embed, texts))

    async def _in_search_thread(self, call: Callable[..., _Answer], *arguments: Any) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._searching, call, *arguments)

    async def index_info(self) -> IndexInfo:
        """What makes similarities comparable."""
        return self._retriever.index_info()

    async def write(self, collection: str, items: Sequence[DocumentWrite], tenant: str) -> list[WriteResult]:
        """Apply a batch of writes; durable and searchable when it returns."""
        return await asyncio.to_thread(self._retriever.write, collection, items, tenant=tenant)

    async def enqueue(
        self, collection: str, items: Sequence[DocumentWrite], tenant: str, job: str | None
    ) -> list[WriteResult]:
        """Keep a batch of writes to be applied later; durable when it returns."""
        return await asyncio.to_thread(self._retriever.enqueue, collection, items, tenant=tenant, job=job)

    async def job(self, job_id: str, tenant: str) -> dict[str, Any]:
        """How far one job is."""
        return await asyncio.to_thread(self._retriever.job, job_id, tenant=tenant)

    async def jobs(self, limit: int, tenant: str) -> list[dict[str, Any]]:
        """The newest jobs."""
        return await asyncio.to_thread(self._retriever.jobs, limit=limit, tenant=tenant)

    async def cancel_job(self, job_id: str, tenant: str) -> dict[str, Any]:
        """Take out what still waits of a job."""
        return await asyncio.to_thread(self._retriever.cancel_job, job_id, tenant=tenant)

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

    async def judge(self, collection: str, items: Sequence[Judgement], tenant: str) -> Sequence[str]:
        """Keep judgements; durable when it returns."""
        return await asyncio.to_thread(self._retriever.judge, collection, items, tenant=tenant)

    async def judgements(self, collection: str, tenant: str) -> dict[str, Any]:
        """How many judgements there are and what was fitted to them."""
        return await asyncio.to_thread(self._retriever.judgements, collection, tenant=tenant)

    async def forget_judgements(self, collection: str, tenant: str) -> int:
        """Remove judgements."""
        return await asyncio.to_thread(self._retriever.forget_judgements, collection, tenant=tenant)

    async def keep_feedback(self, response: str, content: dict[str, Any], tenant: str) -> str:
        """Keep what a user said of an answer; durable when it returns."""
        return await asyncio.to_thread(self._retriever.keep_feedback, response, content, tenant=tenant)

    async def feedback(self, after: int, limit: int, tenant: str) -> list[tuple[int, dict[str, Any]]]:
        """A page of what users said."""
        return await asyncio.to_thread(self._retriever.feedback, after=after, limit=limit, tenant=tenant)

    async def collections(self, tenant: str) -> list[dict[str, Any]]:
        """Every collection."""
        return await asyncio.to_thread(self._retriever.collections, tenant=tenant)

    async def status(self) -> dict[str, Any]:
        """What `/readyz` shows."""
        return await self._in_search_thread(self._retriever.status)

    def __del__(self) -> None:
        if hasattr(self, "_retriever"):
            self._retriever.close()
