"""The Gateway deployment: the HTTP application over handles to the other deployments. Async, no torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from engine.api.app import create_app
from engine.api.backends import ModelInfo
from engine.api.error_table import unexpected
from engine.config import EngineConfig
from engine.errors import ComponentUnavailable, Overloaded, SwitchyardError
from engine.generation.adapters.status import AdapterStatus, ServedAdapter
from engine.routing.rule import ScoreRule
from engine.serving.loopback import bind_replica_to_loopback
from engine.values import (
    ContinuationScore,
    Decision,
    DocumentWrite,
    Evidence,
    GenerationRequest,
    Judgement,
    Query,
    Route,
    ScoreRequest,
    TokenDelta,
    WriteResult,
)

T = TypeVar("T")
STATUS_TIMEOUT_S = 3.0


class RayBackends:
    """`engine.api.backends.Backends` over deployment handles."""

    def __init__(
        self,
        config: EngineConfig,
        retriever: DeploymentHandle,
        generator: DeploymentHandle,
        router: DeploymentHandle | None,
    ) -> None:
        self._retriever = retriever
        self._generator = generator
        self._stream = generator.options(method_name="stream", stream=True)
        self._router = router
        self._rule = ScoreRule(config.router.min_z)
        self._model: ModelInfo | None = None

    async def evidence(self, query: Query) -> Evidence:
        return await _call("retriever", self._retriever.evidence.remote(query))

    async def decide(self, pinned: Route | None, evidence: Evidence | None, missing: str | None) -> Decision:
        if self._router is None:
            return self._rule.decide(pinned, evidence, missing)
        return await _call("router", self._router.decide.remote(pinned, evidence, missing))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Sequence[TokenDelta]]:
        stream = self._stream.remote(request)
        try:
            async for bundle in stream:
                yield bundle
        except (RayError, RayServeException) as error:
            raise _translate("generator", error) from None
        finally:
            # Without effect on a stream that ended; otherwise the engine frees the request's place.
            stream.cancel()

    async def score(self, request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        return await _call("generator", self._generator.score.remote(request))

    async def model(self) -> ModelInfo:
        if self._model is not None:
            return self._model
        model: ModelInfo = await _call("generator", self._generator.model.remote())
        self._model = model
        return model

    async def served_adapters(self) -> list[ServedAdapter]:
        return await _call("generator", self._generator.served_adapters.remote())

    async def adapters(self) -> list[AdapterStatus]:
        return await _call("generator", self._generator.adapters.remote())

    async def load_adapter(self, name: str, path: str | None, version: str | None = None) -> AdapterStatus:
        return await _call("generator", self._generator.load_adapter.remote(name, path, version))

    async def unload_adapter(self, name: str, delete_files: bool) -> None:
        await _call("generator", self._generator.unload_adapter.remote(name, delete_files))

    async def write(self, collection: str, items: Sequence[DocumentWrite], tenant: str) -> list[WriteResult]:
        return await _call("retriever", self._retriever.write.remote(collection, items, tenant))

    async def enqueue(
        self, collection: str, items: Sequence[DocumentWrite], tenant: str, job: str | None
    ) -> list[WriteResult]:
        return await _call("retriever", self._retriever.enqueue.remote(collection, items, tenant, job))

    async def job(self, job_id: str, tenant: str) -> dict[str, Any]:
        return await _call("retriever", self._retriever.job.remote(job_id, tenant))

    async def jobs(self, limit: int, tenant: str) -> list[dict[str, Any]]:
        return await _call("retriever", self._retriever.jobs.remote(limit, tenant))

    async def cancel_job(self, job_id: str, tenant: str) -> dict[str, Any]:
        return await _call("retriever", self._retriever.cancel_job.remote(job_id, tenant))

    async def document(self, collection: str, document: str, tenant: str) -> dict[str, Any]:
        return await _call("retriever", self._retriever.document.remote(collection, document, tenant))

    async def documents(
        self, collection: str, source: str | None, after: str | None, limit: int, tenant: str
    ) -> list[dict[str, Any]]:
        return await _call("retriever", self._retriever.documents.remote(collection, source, after, limit, tenant))

    async def judge(self, collection: str, items: Sequence[Judgement], tenant: str) -> list[str]:
        return await _call("retriever", self._retriever.judge.remote(collection, items, tenant))

    async def judgements(self, collection: str, tenant: str) -> dict[str, Any]:
        return await _call("retriever", self._retriever.judgements.remote(collection, tenant))

    async def forget_judgements(self, collection: str, tenant: str) -> int:
        return await _call("retriever", self._retriever.forget_judgements.remote(collection, tenant))

    async def collections(self, tenant: str) -> list[dict[str, Any]]:
        return await _call("retriever", self._retriever.collections.remote(tenant))

    async def status(self) -> dict[str, dict[str, Any]]:
        handles = {"retriever": self._retriever, "generator": self._generator}
        answers = await asyncio.gather(*(_status(name, handle) for name, handle in handles.items()))
        return dict(zip(handles, answers, strict=True))


async def _status(name: str, handle: DeploymentHandle) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(_call(name, handle.status.remote()), STATUS_TIMEOUT_S)
    except TimeoutError:
        return {"ready": False, "why": f"no answer within {STATUS_TIMEOUT_S:g} s"}
    except SwitchyardError as error:
        return {"ready": False, "why": str(error)}


async def _call(component: str, response: Awaitable[T]) -> T:
    try:
        return await response
    except (RayError, RayServeException) as error:
        raise _translate(component, error) from None


def _translate(component: str, error: Exception) -> SwitchyardError:
    """The error that a component raised, or what its silence means."""
    cause = getattr(error, "cause", None) if isinstance(error, RayTaskError) else None
    if isinstance(cause, SwitchyardError):
        return cause
    if isinstance(error, BackPressureError):
        return Overloaded(f"the queue of the {component}", error.max_queued_requests or 0, f"{component}.max_queued")
    if isinstance(error, RayTaskError):
        return unexpected(error)
    return ComponentUnavailable(component, "it died or is being restarted")


class GatewayDeployment:
    """Serves HTTP; the other deployments are reached through the handles that Ray Serve passes in."""

    def __init__(
        self,
        config: EngineConfig,
        retriever: DeploymentHandle,
        generator: DeploymentHandle,
        router: DeploymentHandle | None = None,
    ) -> None:
        bind_replica_to_loopback()
        self._config = config
        self._backends = RayBackends(config, retriever, generator, router)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._backends, self._config)
