"""The retriever that owns the store, as a deployment: the only one, or the one that writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from engine.config import EngineConfig, Profile
from engine.retrieval.service import Retriever
from engine.retrieval.store.address import chosen_store
from engine.retrieval.store.data_folder import await_folder
from engine.serving.loopback import bind_replica_to_loopback
from engine.serving.options import HANDOVER_S, device
from engine.serving.reader import ReaderDeployment, load_encoder, load_models
from engine.values import DocumentWrite, Judgement, WriteResult


class RetrieverDeployment(ReaderDeployment):
    """Owns the store. The only retriever, or where others follow its log, the one that writes."""

    _retriever: Retriever

    def __init__(self, config: EngineConfig, profile: Profile) -> None:
        bind_replica_to_loopback()
        encoder, reranker = load_models(config.retriever, profile)
        await_folder(config.data, HANDOVER_S)
        store = chosen_store(config.store)
        retriever = Retriever(
            *(config.data, encoder, config.retriever, reranker),
            store=store,
            device=device(profile),
            load_encoder=partial(load_encoder, config.retriever, profile),
        )
        self._start(retriever)

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

    async def judge(self, collection: str, items: Sequence[Judgement], tenant: str) -> Sequence[str]:
        """Keep judgements; durable when it returns."""
        return await asyncio.to_thread(self._retriever.judge, collection, items, tenant=tenant)

    async def judgements(self, collection: str, tenant: str) -> dict[str, Any]:
        """How many judgements there are and what was fitted to them."""
        return await asyncio.to_thread(self._retriever.judgements, collection, tenant=tenant)

    async def forget_judgements(self, collection: str, tenant: str) -> int:
        """Remove judgements."""
        return await asyncio.to_thread(self._retriever.forget_judgements, collection, tenant=tenant)

    async def generations(self, collection: str) -> list[dict[str, Any]]:
        """Those of a collection that are kept."""
        return await asyncio.to_thread(self._retriever.generations.list, collection)

    async def build_generation(self, collection: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Begin another generation; its job."""
        return await asyncio.to_thread(self._retriever.build_generation, collection, **asked)

    async def use_generation(self, collection: str, number: int) -> dict[str, Any]:
        """Begin to put a kept generation in place; its job."""
        return await asyncio.to_thread(self._retriever.use_generation, collection, number)

    async def drop_generation(self, collection: str, number: int) -> dict[str, Any]:
        """Remove a generation that is not in place."""
        return await asyncio.to_thread(self._retriever.generations.drop, collection, number)

    async def keep_feedback(self, response: str, content: dict[str, Any], tenant: str) -> str:
        """Keep what a user said of an answer; durable when it returns."""
        return await asyncio.to_thread(self._retriever.keep_feedback, response, content, tenant=tenant)

    async def feedback(self, after: int, limit: int, tenant: str) -> list[tuple[int, dict[str, Any]]]:
        """A page of what users said."""
        return await asyncio.to_thread(self._retriever.feedback, after=after, limit=limit, tenant=tenant)
