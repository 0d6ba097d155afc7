"""From one chat request to the arm that answers it: what is searched for, embedded and asked of the router, in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.api.asked_model import AskedModel
from engine.api.backends import Backends
from engine.api.rewriting import search_text
from engine.api.schemas_chat import Extension
from engine.config import EngineConfig
from engine.errors import RequestError, UnknownCollection
from engine.routing.restraint import Restraint
from engine.routing.signals.questions import counted_words
from engine.values import BASE_MODEL, Decision, Evidence, Message, Query, Route, RouteRequest, Routing

PINNED: dict[str, Route | None] = {"auto": None, "direct": "direct", "rag": "rag"}


class ArmChoosing:
    """Searches for one request as far as its decision or its answer needs, and has the router decide.

    `timings` are milliseconds by stage. `search_reasons` say what was searched for, where that is not the last message;
    `degraded` is whether passages are missing because the retriever was unavailable; `routed` is what was decided last.
    """

    def __init__(
        self,
        backends: Backends,
        config: EngineConfig,
        restraint: Restraint,
        extension: Extension,
        messages: Sequence[Message],
        *,
        request_id: str,
        tenant: str,
        deadline: float,
    ) -> None:
        """`deadline` is on the monotonic clock, in seconds."""
        self._backends = backends
        self._config = config
        self._restraint = restraint
        self._extension = extension
        self._messages = tuple(messages)
        self._id = request_id
        self._tenant = tenant
        self._deadline = deadline
        self._searched: str | None = None
        self.pinned = PINNED[extension.route]
        self.timings: dict[str, float] = {}
        self.degraded = False
        self.search_reasons: list[str] = []
        self.routed: tuple[RouteRequest, Routing] | None = None

    @property
    def question(self) -> str:
        """What was searched for, or the last message."""
        return self._searched or self._messages[-1].content

    @property
    def collection(self) -> str:
        """The one that is searched."""
        return self._extension.collection or self._config.retriever.default_collection

    async def choose(self, asked: AskedModel) -> tuple[Decision, Evidence | None]:
        """The arm, with what the search found where one was made for it or for the answer.

        Raises: RequestError of the hop that failed, unless the answer can do without it.
        """
        pinned, missing = self.pinned, asked.no_search
        plan = (await self._backends.needs(self.collection)).plan(asked.model, pinned)
        plan = self._restraint.plan(plan, asked.model, pinned)
        evidence: Evidence | None = None
        embedding: NDArray[np.float32] | None = None
        may_search = missing is None or pinned == "rag"
        if may_search and plan.searches:
            evidence, missing = await self._search(plan.wants_clues)
        if may_search and evidence is None and (plan.wants_clues or plan.embeds) and not self.degraded:
            embedding, missing = await self._embed(missing)
        request = RouteRequest(
            text=self.question,
            collection=self.collection,
            model=asked.model,
            pinned=pinned,
            evidence=evidence,
            missing=missing,
            can_search=may_search and not plan.searches and not self.degraded,
            embedding=embedding,
        )
        decision = await self._decide(request)
        if decision.route == "rag" and request.can_search:
            evidence, missing = await self._search(wants_clues=False)
            if evidence is None or not evidence.passages:
                request = replace(request, can_search=False, missing=missing or "the search found no passage")
                decision = await self._decide(request)
        if asked.model is None and decision.adapter is not None:
            served = [adapter.name for adapter in await self._backends.served_adapters()]
            if decision.adapter not in served:
                # Unloaded since the router last looked.
                decision = await self._decide(replace(request, model=BASE_MODEL))
        return decision, evidence

    async def _decide(self, request: RouteRequest) -> Decision:
        started = time.perf_counter()
        routing = await self._backends.decide([request])
        self.routed = (request, routing)
        self.timings["route"] = self.timings.get("route", 0.0) + (time.perf_counter() - started) * 1000
        return routing.decisions[0]

    async def _embed(self, missing: str | None) -> tuple[NDArray[np.float32] | None, str | None]:
        """Embedding of the question where it is not searched for, and why passages are missing."""
        text = await self._search_text()
        started = time.perf_counter()
        try:
            embedding = await self._backends.embed(text, self.collection)
        except RequestError as error:
            return None, self._without_retriever(error)
        self.timings["embed"] = (time.perf_counter() - started) * 1000
        return embedding, missing

    async def _search_text(self) -> str:
        """What is searched for, found once: the generator may have to be asked."""
        if self._searched is None:
            search = await search_text(
                self._config.retriever.followups,
                self._backends,
                self._messages,
                request_id=self._id,
                tenant=self._tenant,
                remaining_s=self._deadline - time.monotonic(),
            )
            self.search_reasons = [search.reason] if search.reason else []
            if search.rewrite_ms is not None:
                self.timings["rewrite"] = search.rewrite_ms
            self._searched = search.text
        return self._searched

    async def _search(self, wants_clues: bool) -> tuple[Evidence | None, str | None]:
        """What was found, or why there is nothing to go by where that need not fail the request."""
        text = await self._search_text()
        query = Query(
            text=text,
            collection=self.collection,
            k=self._extension.top_k or self._config.generator.max_passages,
            filter=self._extension.filter,
            tenant=self._tenant,
            mode=self._config.retriever.mode,
            wants_clues=wants_clues,
            words=counted_words(text) if wants_clues else (),
        )
        try:
            evidence = await self._backends.evidence(query)
        except UnknownCollection:
            # Only a collection that nobody asked for by name may be missing: nothing was ingested yet.
            if self._extension.collection or self.pinned == "rag":
                raise
            return None, f"the knowledge base is empty (no collection {query.collection!r})"
        except RequestError as error:
            return None, self._without_retriever(error)
        self.timings.update(evidence.timings_ms)
        return evidence, None

    def _without_retriever(self, error: RequestError) -> str:
        """Why the answer goes on without passages. Raises: the error, where it must not."""
        unavailable = error.retry_after_s is not None
        if not unavailable or self.pinned == "rag" or self._config.gateway.on_retrieval_error == "fail":
            raise error
        self.degraded = True
        return f"answered without passages: {error}"
