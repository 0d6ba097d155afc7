"""Decisions without answers: what the router would do with questions, and what it knows of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine.api.asked_model import AskedModel, asked_model
from engine.api.backends import Backends
from engine.api.schemas_route import RouteBody, RouteResponse, RouteResult
from engine.config import EngineConfig
from engine.errors import ComponentUnavailable, DeadlineExceeded, UnknownCollection
from engine.routing.signals.questions import counted_words
from engine.values import Decision, Evidence, Query, RouteRequest


class RouteAsker:
    """Composes retriever and router for `POST /v1/route`."""

    def __init__(self, backends: Backends, config: EngineConfig) -> None:
        self._backends = backends
        self._config = config

    async def route(self, body: RouteBody, *, tenant: str = "") -> RouteResponse:
        """Raises: UnknownModel, UnknownCollection for one that was named, ComponentUnavailable, DeadlineExceeded."""
        deadline_ms = self._config.gateway.default_deadline_ms
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                return await self._route(body, tenant)
        except TimeoutError:
            raise DeadlineExceeded(deadline_ms) from None

    async def _route(self, body: RouteBody, tenant: str) -> RouteResponse:
        asked = await asked_model(self._backends, body.model)
        try:
            requests = await self._searched(body, asked, tenant)
        except UnknownCollection:
            # Nothing was ingested yet: what is known without a search is known.
            if body.collection is not None:
                raise
            requests = await self._embedded(body, asked)
        # The keys are of what the signals are made with, so both are asked for.
        routing = await self._backends.decide(requests, wants_signals=True)
        if routing.keys is None:
            raise ComponentUnavailable("router", "it does not know yet what is served")
        timings_ms: dict[str, float] = {}
        for request in requests:
            for name, value in (request.evidence.timings_ms if request.evidence else {}).items():
                timings_ms[name] = max(value, timings_ms.get(name, 0.0))
        return RouteResponse(
            results=[
                _result(decision, request, body) for decision, request in zip(routing.decisions, requests, strict=True)
            ],
            keys=routing.keys,
            arms=list(routing.arms),
            router=routing.router,
            timings_ms={name: round(value, 3) for name, value in {**timings_ms, **routing.timings_ms}.items()},
        )

    def _collection(self, body: RouteBody) -> str:
        return body.collection or self._config.retriever.default_collection

    async def _searched(self, body: RouteBody, asked: AskedModel, tenant: str) -> Sequence[RouteRequest]:
        """At once, so that the retriever makes batches of them."""
        collection = self._collection(body)
        queries = [
            Query(
                text=text,
                collection=collection,
                k=body.top_k or self._config.generator.max_passages,
                tenant=tenant,
                mode=self._config.retriever.mode,
                wants_clues=True,
                words=counted_words(text),
            )
            for text in body.texts()
        ]
        found: list[Evidence] = await asyncio.gather(*map(self._backends.evidence, queries))
        return [
            RouteRequest(query.text, collection, asked.model, evidence=evidence, missing=asked.no_search)
            for query, evidence in zip(queries, found, strict=True)
        ]

    async def _embedded(self, body: RouteBody, asked: AskedModel) -> Sequence[RouteRequest]:
        collection = self._collection(body)
        why = asked.no_search or f"the knowledge base is empty (no collection {collection!r})"
        embeddings = await asyncio.gather(*(self._backends.embed(text, collection) for text in body.texts()))
        return [
            RouteRequest(text, collection, asked.model, missing=why, embedding=embedding)
            for text, embedding in zip(body.texts(), embeddings, strict=True)
        ]


def _result(decision: Decision, request: RouteRequest, body: RouteBody) -> RouteResult:
    clues = request.evidence.clues if request.evidence is not None else None
    embedding = request.embedding if clues is None else clues.embedding
    return RouteResult(
        route=decision.route,
        adapter=decision.adapter,
        confidence=None if decision.confidence is None else round(decision.confidence, 3),
        reasons=list(decision.reasons),
        signals=decision.signals if body.signals else None,
        embedding=embedding.tolist() if body.embeddings and embedding is not None else None,
    )
