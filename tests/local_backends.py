"""The HTTP application over real components in this process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.answered import Answered, AnswerMemory
from engine.api.backends import ModelInfo
from engine.config import EngineConfig
from engine.errors import RequestError
from engine.generation.adapters.inputs import TrainingInputs
from engine.generation.adapters.service import AdapterService
from engine.generation.adapters.status import AdapterStatus, ServedAdapter
from engine.generation.protocol import GenerationEngine
from engine.retrieval.service import Retriever
from engine.routing.needs import Needs
from engine.serving.router_host import RouterHost, Served
from engine.values import (
    ContinuationScore,
    DocumentWrite,
    Evidence,
    GenerationRequest,
    Judgement,
    Query,
    RouteRequest,
    Routing,
    ScoreRequest,
    TokenDelta,
    WriteResult,
)


class LocalBackends:
    """`engine.api.backends.Backends`; `retrieval_error` and `generation_error` make a component fail."""

    def __init__(
        self,
        retriever: Retriever,
        engine: GenerationEngine,
        config: EngineConfig,
        adapters: AdapterService | None = None,
    ) -> None:
        self.retriever = retriever
        self.engine = engine
        self.config = config
        self.host = RouterHost(config, self)
        self.elsewhere = AnswerMemory(1)  # another gateway's
        self.training: dict[str, TrainingInputs] = {}
        self.adapter_service = adapters
        self.retrieval_error: RequestError | None = None
        self.queries: list[Query] = []
        self.scored: list[ScoreRequest] = []
        self.routed: list[RouteRequest] = []

    async def evidence(self, query: Query) -> Evidence:
        self.queries.append(query)
        if self.retrieval_error is not None:
            raise self.retrieval_error
        (found,) = await asyncio.to_thread(self.retriever.evidence, [query])
        if isinstance(found, RequestError):
            raise found
        return found

    async def embed(self, text: str, collection: str) -> NDArray[np.float32]:
        if self.retrieval_error is not None:
            raise self.retrieval_error
        (embedding,) = await asyncio.to_thread(self.retriever.embed, [text], collection)
        return embedding

    async def needs(self, collection: str) -> Needs:
        return await self.host.needs(collection)

    async def decide(self, requests: Sequence[RouteRequest], wants_signals: bool = False) -> Routing:
        self.routed += requests
        return await self.host.decide(requests, wants_signals)

    async def served(self) -> Served:
        return Served((await self.model()).digest, self.retriever.index_info(), tuple(await self.served_adapters()))

    async def training_inputs(self, digest: str) -> TrainingInputs | None:
        return self.training.get(digest)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        deltas = self.engine.submit(request)
        try:
            async for delta in deltas:
                yield delta
        finally:
            await deltas.aclose()

    async def score(self, request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        self.scored.append(request)
        return await self.engine.score(request)

    async def model(self) -> ModelInfo:
        return ModelInfo("tiny", "0" * 64, 512, 0)

    async def served_adapters(self) -> list[ServedAdapter]:
        return [] if self.adapter_service is None else self.adapter_service.served()

    async def adapters(self) -> list[AdapterStatus]:
        return [] if self.adapter_service is None else await asyncio.to_thread(self.adapter_service.statuses)

    async def load_adapter(self, name: str, path: str | None, version: str | None = None) -> AdapterStatus:
        assert self.adapter_service is not None
        return await asyncio.to_thread(self.adapter_service.load, name, path, version)

    async def unload_adapter(self, name: str, delete_files: bool) -> None:
        assert self.adapter_service is not None
        await asyncio.to_thread(self.adapter_service.unload, name, delete_files=delete_files)

    async def write(self, collection: str, items: Sequence[DocumentWrite], tenant: str) -> list[WriteResult]:
        return await asyncio.to_thread(self.retriever.write, collection, items, tenant=tenant)

    async def enqueue(
        self, collection: str, items: Sequence[DocumentWrite], tenant: str, job: str | None
    ) -> list[WriteResult]:
        return await asyncio.to_thread(self.retriever.enqueue, collection, items, tenant=tenant, job=job)

    async def job(self, job_id: str, tenant: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.retriever.job, job_id, tenant=tenant)

    async def jobs(self, limit: int, tenant: str) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.retriever.jobs, limit=limit, tenant=tenant)

    async def cancel_job(self, job_id: str, tenant: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.retriever.cancel_job, job_id, tenant=tenant)

    async def document(self, collection: str, document: str, tenant: str) -> dict[str, Any]:
        return self.retriever.get_document(collection, document, tenant=tenant)

    async def documents(
        self, collection: str, source: str | None, after: str | None, limit: int, tenant: str
    ) -> list[dict[str, Any]]:
        return self.retriever.list_documents(collection, source=source, after=after, limit=limit, tenant=tenant)

    async def judge(self, collection: str, items: Sequence[Judgement], tenant: str) -> list[str]:
        return [*await asyncio.to_thread(self.retriever.judge, collection, items, tenant=tenant)]

    async def judgements(self, collection: str, tenant: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.retriever.judgements, collection, tenant=tenant)

    async def forget_judgements(self, collection: str, tenant: str) -> int:
        return await asyncio.to_thread(self.retriever.forget_judgements, collection, tenant=tenant)

    async def generations(self, collection: str) -> list[dict[str, Any]]:
        return self.retriever.generations.list(collection)

    async def build_generation(self, collection: str, asked: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(self.retriever.build_generation, collection, **asked)

    async def use_generation(self, collection: str, number: int) -> dict[str, Any]:
        return await asyncio.to_thread(self.retriever.use_generation, collection, number)

    async def drop_generation(self, collection: str, number: int) -> dict[str, Any]:
        return self.retriever.generations.drop(collection, number)

    async def recall(self, response: str, tenant: str) -> Answered | None:
        return self.elsewhere.recall(response, tenant)

    async def keep_feedback(self, response: str, content: dict[str, Any], tenant: str) -> str:
        return await asyncio.to_thread(self.retriever.keep_feedback, response, content, tenant=tenant)

    async def feedback(self, after: int, limit: int, tenant: str) -> list[tuple[int, dict[str, Any]]]:
        return self.retriever.feedback(after=after, limit=limit, tenant=tenant)

    async def collections(self, tenant: str) -> list[dict[str, Any]]:
        return self.retriever.collections(tenant=tenant)

    async def status(self) -> dict[str, dict[str, Any]]:
        ready = self.retrieval_error is None
        retriever = {"ready": ready} if ready else {"ready": False, "why": str(self.retrieval_error)}
        generator = {"ready": True, **asdict(self.engine.stats())}
        return {"retriever": retriever, "generator": generator, "router": await self.host.status()}
