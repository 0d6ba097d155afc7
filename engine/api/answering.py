"""One chat request from question to answer: the order of the hops, the deadline, and what is reported about them.

Streamed and whole responses consume the same events, so they cannot drift apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

from engine.api.admission import Admission
from engine.api.answered import Answered, AnswerMemory
from engine.api.arm_choosing import ArmChoosing
from engine.api.asked_model import AskedModel, asked_model
from engine.api.backends import Backends
from engine.api.client_values import passage_info
from engine.api.replying import led_by, said
from engine.api.schemas_chat import (
    ChatCompletionRequest,
    CitationInfo,
    Outcome,
    PromptTokensDetails,
    Usage,
    Versions,
)
from engine.config import EngineConfig
from engine.errors import ComponentUnavailable, DeadlineExceeded
from engine.generation.citations import cite
from engine.routing.restraint import Asked, Restraint
from engine.values import (
    Decision,
    Evidence,
    FinishReason,
    GenerationRequest,
    Message,
    Passage,
    Role,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)

DEFAULT_MAX_TOKENS = 256
# Stages of an answer in their order, as `timings_ms` lists them.
STAGES = ("rewrite", "queue", "embed", "search", "rerank", "route", "prefill", "decode", "ttft", "total")
ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Started:
    """The first token is there: route and evidence are settled."""

    model: str
    outcome: Outcome
    text: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer. A token may come before its text, which waits for the rest of a character."""

    text: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    finish_reason: FinishReason
    outcome: Outcome
    usage: Usage


Event = Started | Text | Finished


class Answerer:
    """Composes retriever, router and generator for the chat route."""

    def __init__(self, backends: Backends, config: EngineConfig, memory: AnswerMemory, admission: Admission) -> None:
        """`memory` takes what answers were made of; `admission` lets requests in."""
        self._backends = backends
        self._config = config
        self._memory = memory
        self._admission = admission
        self._restraint = Restraint(config.router, config.generator.max_passages)

    async def answer(
        self, request: ChatCompletionRequest, request_id: str, *, tenant: str = ""
    ) -> AsyncGenerator[Event]:
        """Yield Started, then Text while there is more, then Finished.

        Raises: Overloaded, before anything is asked of anybody, when it would begin too late; RequestError of the hop
        that failed; DeadlineExceeded when the request's deadline passes.
        Closing the iterator cancels the generation.
        """
        gateway = self._config.gateway
        deadline_ms = min(request.switchyard.deadline_ms or gateway.default_deadline_ms, gateway.max_deadline_ms)
        deadline = time.monotonic() + deadline_ms / 1000
        with contextlib.closing(self._admission.enter(deadline_ms)) as ticket:
            answer = _Answer(
                self._backends, self._config, self._restraint, request, request_id, tenant, deadline_ms, deadline
            )
            async with contextlib.aclosing(answer.events()) as events:
                async for event in _until(deadline, deadline_ms, events):
                    if isinstance(event, Started):
                        ticket.begun()
                        self._memory.keep(request_id, answer.answered(event))
                    yield event


async def _until(deadline: float, deadline_ms: float, events: AsyncGenerator[Event]) -> AsyncIterator[Event]:
    """The events. Raises: DeadlineExceeded when one has not come by `deadline`, on the monotonic clock."""
    while True:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                event = await anext(events)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded(deadline_ms) from None
        yield event


class _Answer:
    """State of one request on its way through the hops."""

    def __init__(
        self,
        backends: Backends,
        config: EngineConfig,
        restraint: Restraint,
        request: ChatCompletionRequest,
        request_id: str,
        tenant: str,
        deadline_ms: float,
        deadline: float,
    ) -> None:
        self._backends = backends
        self._config = config
        self._restraint = restraint
        self._request = request
        self._messages = tuple(Message(ROLES[message.role], message.text()) for message in request.messages)
        self._id = request_id
        self._tenant = tenant
        self._deadline_ms = deadline_ms
        self._deadline = deadline
        self._start = time.perf_counter()
        self._choosing = ArmChoosing(
            backends,
            config,
            restraint,
            request.switchyard,
            self._messages,
            request_id=request_id,
            tenant=tenant,
            deadline=deadline,
        )
        self._timings = self._choosing.timings
        self._adapter_digest: str | None = None

    async def events(self) -> AsyncGenerator[Event]:
        asked = await asked_model(self._backends, self._request.model)
        decision, evidence = await self._choosing.choose(asked)
        reply = self._restraint.reply(decision, self._question(asked, evidence), evidence)
        decision = reply.decision
        shown: tuple[Passage, ...] = ()
        parts: list[str] = []
        num_prompt_tokens = num_cached_tokens = num_tokens = 0
        if reply.is_whole:
            deltas: AsyncIterator[TokenDelta] = said(reply)
        else:
            deltas = self._backends.generate(self._generation_request(decision, evidence))
            deltas = led_by(reply.text, deltas) if reply.text else deltas
        async for delta in deltas:
            num_tokens += delta.num_tokens
            parts.append(delta.text)
            if delta.prompt is not None:
                self._timings["ttft"] = _ms_since(self._start)
                shown, num_prompt_tokens = delta.prompt.passages, delta.prompt.num_tokens
                num_cached_tokens = delta.prompt.num_cached_tokens
                self._adapter_digest = delta.prompt.adapter or None
                yield Started(asked.name, self._outcome(decision, evidence, shown, None), delta.text, delta.logprobs)
            elif delta.text or delta.logprobs:
                yield Text(delta.text, delta.logprobs)
            if delta.finish_reason is not None:
                self._timings.update(delta.timings_ms or {})
                self._timings["total"] = _ms_since(self._start)
                citations = self._citations("".join(parts), shown, len(reply.text))
                usage = Usage(
                    prompt_tokens=num_prompt_tokens,
                    completion_tokens=num_tokens,
                    total_tokens=num_prompt_tokens + num_tokens,
                    prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
                )
                yield Finished(delta.finish_reason, self._outcome(decision, evidence, shown, citations), usage)
                return
        raise ComponentUnavailable("generator", "its stream ended before the answer was complete")

    def answered(self, started: Started) -> Answered:
        """How the answer came about, once it has begun; of the evidence, no more than signals are made of."""
        assert self._choosing.routed is not None
        request, routing = self._choosing.routed
        if request.evidence is not None:
            kept = request.evidence.passages[: self._config.generator.max_passages]
            request = replace(request, evidence=replace(request.evidence, passages=kept))
        return Answered(
            tenant=self._tenant,
            at=time.time(),
            model=started.model,
            request=request,
            decision=routing.decisions[0],
            route=started.outcome.route,
            keys=routing.keys,
            versions=started.outcome.versions.model_dump(),
        )

    def _generation_request(self, decision: Decision, evidence: Evidence | None) -> GenerationRequest:
        request = self._request
        stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        sampling = SamplingParams(
            max_tokens=request.max_completion_tokens or request.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=request.top_k or 0,
            min_p=request.min_p or 0.0,
            seed=request.seed,
            stop=tuple(stops),
            ignore_eos=bool(request.ignore_eos),
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=request.repetition_penalty or 1.0,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded(self._deadline_ms)
        return GenerationRequest(
            id=self._id,
            messages=self._messages,
            passages=evidence.passages if decision.route == "rag" and evidence else (),
            sampling=sampling,
            adapter=decision.adapter,
            deadline_s=remaining_s,
            cache_salt=self._tenant,
            grammar=request.grammar(),
            # {"type": "text"} is a form too: any.
            as_label=request.response_format is None,
        )

    def _question(self, asked: AskedModel, evidence: Evidence | None) -> Asked:
        choosing = self._choosing
        keys = choosing.routed[1].keys if choosing.routed else None
        clues = None if evidence is None else evidence.clues
        return Asked(
            choosing.question,
            self._messages,
            pinned=choosing.pinned,
            model=asked.model,
            # An adapter that labels the text answers with a label.
            is_free=asked.no_search is None and self._request.grammar() is None,
            tenant=self._tenant,
            embedding=None if clues is None else clues.embedding,
            encoder=(clues and clues.encoder) or (keys or {}).get("encoder"),
        )

    def _citations(self, answer: str, passages: tuple[Passage, ...], start: int) -> list[CitationInfo] | None:
        """Of what the model said: the answer from character `start` on."""
        if not self._request.switchyard.cite:
            return None
        return [
            CitationInfo(
                start=start + found.start, end=start + found.end, passage=found.passage, score=round(found.score, 3)
            )
            for found in cite(answer[start:], passages)
        ]

    def _outcome(
        self,
        decision: Decision,
        evidence: Evidence | None,
        passages: tuple[Passage, ...],
        citations: list[CitationInfo] | None,
    ) -> Outcome:
        return Outcome(
            route=decision.route,
            adapter=decision.adapter,
            confidence=None if decision.confidence is None else round(decision.confidence, 3),
            reasons=[*decision.reasons, *self._choosing.search_reasons],
            passages=[passage_info(passage) for passage in passages],
            citations=citations,
            timings_ms={name: round(self._timings[name], 2) for name in STAGES if name in self._timings},
            versions=Versions(
                index=evidence.version if evidence else None,
                adapter=self._adapter_digest,
                router=decision.router,
                weights=self._config.generator.lossy_weights,
            ),
            degraded=self._choosing.degraded,
        )


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
