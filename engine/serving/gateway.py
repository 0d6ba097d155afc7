"""The Gateway deployment: the HTTP application over handles to the other deployments. Async, no torch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

from engine.api.answered import Answered, AnswerMemory
from engine.api.app import create_app
from engine.api.backends import ModelInfo
from engine.config import EngineConfig
from engine.errors import SwitchyardError
from engine.generation.adapters.status import AdapterStatus, ServedAdapter
from engine.routing.needs import Needs
from engine.serving.deltas.receiver import Answer, DeltaReceiver
from engine.serving.failures import call, call_any, stream
from engine.serving.loopback import bind_replica_to_loopback, own_host
from engine.serving.router import HandleRouterSource
from engine.serving.router_host import CHECK_S, RouterHost
from engine.serving.statuses import joined, with_lag
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

STATUS_TIMEOUT_S = 3.0
_MAX_KEPT_NEEDS = 64
T = TypeVar("T")


class RayBackends:
    """`engine.api.backends.Backends` over deployment handles."""

    def __init__(
        self,
        config: EngineConfig,
        retriever: DeploymentHandle,
        writer: DeploymentHandle,
        generator: DeploymentHandle,
        router: DeploymentHandle | None,
        adapters: DeploymentHandle | None,
    ) -> None:
        self._retriever = retriever
        # One retriever owns the store itself, under the same names.
        self._writer = writer
        self._num_retrievers = config.retriever.num_replicas
        self._generator = generator
        self._num_gateways = config.gateway.num_replicas
        self._generators = config.generator
        # One generator owns its adapters itself, under the same names.
        self._adapters = generator if adapters is None else adapters
        self._deltas = DeltaReceiver(own_host())
        self._router = router
        self._host = None if router is not None else RouterHost(config, HandleRouterSource(retriever, generator))
        self._needs: dict[str, tuple[float, Needs]] = {}
        self._model: ModelInfo | None = None

    async def start(self) -> None:
        """Know what requests would wait for. Calling it again does nothing."""
        if self._host is not None:
            await self._host.start()

    async def evidence(self, query: Query) -> Evidence:
        return await self._read(lambda: self._retriever.evidence.remote(query))

    async def embed(self, text: str, collection: str) -> NDArray[np.float32]:
        return await self._read(lambda: self._retriever.embed.remote(text, collection))

    async def _read(self, start: Callable[[], Awaitable[T]]) -> T:
        """Ask a retriever; where it dies and others are there, one of those."""
        return await call_any("retriever", start, num_tries=min(self._num_retrievers, 2))

    async def needs(self, collection: str) -> Needs:
        if self._host is not None:
            return await self._host.needs(collection)
        assert self._router is not None
        kept = self._needs.get(collection)
        # The router looks for changes as often, and a hop for each request would cost a millisecond.
        if kept is not None and time.monotonic() - kept[0] < CHECK_S:
            return kept[1]
        needs: Needs = await call("router", self._router.needs.remote(collection))
        if len(self._needs) >= _MAX_KEPT_NEEDS:
            self._needs.clear()
        self._needs[collection] = (time.monotonic(), needs)
        return needs

    async def decide(self, requests: Sequence[RouteRequest], wants_signals: bool = False) -> Routing:
        if self._host is not None:
            return await self._host.decide(requests, wants_signals)
        assert self._router is not None
        return await call("router", self._router.decide.remote(requests, wants_signals))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        begun_at = time.monotonic()

        async def start() -> Answer:
            answer = await self._deltas.open()
            waited_s = time.monotonic() - begun_at
            left_s = None if request.deadline_s is None else request.deadline_s - waited_s
            answer.follow(self._generator.answer.remote(replace(request, deadline_s=left_s), answer.reply_to))
            return answer

        # Where the only replica died, another try would wait for its successor: the client hears of it at once.
        deltas = stream("generator", start, num_tries=min(self._generators.most_replicas, 2))
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def score(self, request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        return await call("generator", self._generator.score.remote(request))

    async def model(self) -> ModelInfo:
        if self._model is not None:
            return self._model
        model: ModelInfo = await call("generator", self._generator.model.remote())
        self._model = model
        return model

    async def served_adapters(self) -> list[ServedAdapter]:
        return await call("generator", self._generator.served_adapters.remote())

    async def adapters(self) -> list[AdapterStatus]:
        return await call("generator", self._adapters.adapters.remote())

    async def load_adapter(self, name: str, path: str | None, version: str | None = None) -> AdapterStatus:
        status: AdapterStatus = await call("generator", self._adapters.load_adapter.remote(name, path, version))
        await self._notice()
        return status

    async def unload_adapter(self, name: str, delete_files: bool) -> None:
        await call("generator", self._adapters.unload_adapter.remote(name, delete_files))
        await self._notice()

    async def _notice(self) -> None:
        """Other gateways and a router of its own see a change of the adapters with their next look."""
        if self._host is not None:
            await self._host.check()

    async def write(self, collection: str, items: Sequence[DocumentWrite], tenant: str) -> list[WriteResult]:
        return await call("retriever", self._writer.write.remote(collection, items, tenant))

    async def enqueue(
        self, collection: str, items: Sequence[DocumentWrite], tenant: str, job: str | None
    ) -> list[WriteResult]:
        return await call("retriever", self._writer.enqueue.remote(collection, items, tenant, job))

    async def job(self, job_id: str, tenant: str) -> dict[str, Any]:
        return await call("retriever", self._writer.job.remote(job_id, tenant))

    async def jobs(self, limit: int, tenant: str) -> list[dict[str, Any]]:
        return await call("retriever", self._writer.jobs.remote(limit, tenant))

    async def cancel_job(self, job_id: str, tenant: str) -> dict[str, Any]:
        return await call("retriever", self._writer.cancel_job.remote(job_id, tenant))

    async def document(self, collection: str, document: str, tenant: str) -> dict[str, Any]:
        return await self._read(lambda: self._retriever.document.remote(collection, document, tenant))

    async def documents(
        self, collection: str, source: str | None, after: str | None, limit: int, tenant: str
    ) -> list[dict[str, Any]]:
        return await self._read(lambda: self._retriever.documents.remote(collection, source, after, limit, tenant))

    async def judge(self, collection: str, items: Sequence[Judgement], tenant: str) -> list[str]:
        return await call("retriever", self._writer.judge.remote(collection, items, tenant))

    async def judgements(self, collection: str, tenant: str) -> dict[str, Any]:
        return await call("retriever", self._writer.judgements.remote(collection, tenant))

    async def forget_judgements(self, collection: str, tenant: str) -> int:
        return await call("retriever", self._writer.forget_judgements.remote(collection, tenant))

    async def generations(self, collection: str) -> list[dict[str, Any]]:
        return await call("retriever", self._writer.generations.remote(collection))

    async def build_generation(self, collection: str, asked: dict[str, Any]) -> dict[str, Any]:
        return await call("retriever", self._writer.build_generation.remote(collection, asked))

    async def use_generation(self, collection: str, number: int) -> dict[str, Any]:
        return await call("retriever", self._writer.use_generation.remote(collection, number))

    async def drop_generation(self, collection: str, number: int) -> dict[str, Any]:
        return await call("retriever", self._writer.drop_generation.remote(collection, number))

    async def recall(self, response: str, tenant: str) -> Answered | None:
        if self._num_gateways == 1:
            return None
        context = serve.get_replica_context()
        gateways = serve.get_deployment_handle(context.deployment, context.app_name)
        asked = gateways.broadcast("recall", response, tenant).results_async(
            timeout_s=STATUS_TIMEOUT_S, return_exceptions=True
        )
        answers = await call("gateway", asked)
        return next((answer for answer in answers if isinstance(answer, Answered)), None)

    async def keep_feedback(self, response: str, content: dict[str, Any], tenant: str) -> str:
        return await call("retriever", self._writer.keep_feedback.remote(response, content, tenant))

    async def feedback(self, after: int, limit: int, tenant: str) -> list[tuple[int, dict[str, Any]]]:
        return await call("retriever", self._writer.feedback.remote(after, limit, tenant))

    async def collections(self, tenant: str) -> list[dict[str, Any]]:
        return await self._read(lambda: self._retriever.collections.remote(tenant))

    async def status(self) -> dict[str, dict[str, Any]]:
        retriever, generator, router = await asyncio.gather(
            self._retriever_status(),
            self._replicas_status("generator", self._generator, self._num_generators()),
            _status("router", self._router_status()),
        )
        return {"retriever": retriever, "generator": generator, "router": router}

    async def _router_status(self) -> dict[str, Any]:
        if self._host is not None:
            return await self._host.status()
        assert self._router is not None
        return await call("router", self._router.status.remote())

    async def _retriever_status(self) -> dict[str, Any]:
        """That of the replicas; searches go on without the writer, so it is shown beside them."""
        asked = self._replicas_status("retriever", self._retriever, self._num_retrievers)
        if self._num_retrievers == 1:
            return await asked
        status, writer = await asyncio.gather(asked, _status("retriever", self._writer.status.remote()))
        return with_lag(status, writer)

    def _num_generators(self) -> int | None:
        return self._generators.num_replicas if self._generators.autoscaling is None else None

    async def _replicas_status(self, name: str, handle: DeploymentHandle, num_replicas: int | None) -> dict[str, Any]:
        """That of the one replica, or of all as one; the service goes on where one of several hangs."""
        if num_replicas == 1:
            return await _status(name, handle.status.remote())
        asked = handle.broadcast("status").results_async(timeout_s=STATUS_TIMEOUT_S, return_exceptions=True)
        try:
            answers = await asyncio.wait_for(call(name, asked), STATUS_TIMEOUT_S)
        except (TimeoutError, SwitchyardError):
            answers = [await _status(name, handle.status.remote())]
        # There are as many as were asked with autoscaling, or where the deployment's own options say more.
        return joined([each for each in answers if isinstance(each, dict)], max(num_replicas or 0, len(answers)))


async def _status(name: str, response: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(call(name, response), STATUS_TIMEOUT_S)
    except TimeoutError:
        return {"ready": False, "why": f"no answer within {STATUS_TIMEOUT_S:g} s"}
    except SwitchyardError as error:
        return {"ready": False, "why": str(error)}


class GatewayDeployment:
    """Serves HTTP; the other deployments are reached through the handles that Ray Serve passes in."""

    def __init__(
        self,
        config: EngineConfig,
        retriever: DeploymentHandle,
        writer: DeploymentHandle,
        generator: DeploymentHandle,
        router: DeploymentHandle | None = None,
        adapters: DeploymentHandle | None = None,
    ) -> None:
        bind_replica_to_loopback()
        self._config = config
        self._backends = RayBackends(config, retriever, writer, generator, router, adapters)
        self._memory = AnswerMemory(config.gateway.rated_answers)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._backends, self._config, self._memory)

    async def check_health(self) -> None:
        """Called by Ray Serve, the first time before there are requests: in an update, an old gateway takes them while
        the router of a new one waits for the retriever.
        """
        await self._backends.start()

    async def recall(self, response: str, tenant: str) -> Answered | None:
        """An answer that this gateway remembers, for another one whose client rates it."""
        return self._memory.recall(response, tenant)
