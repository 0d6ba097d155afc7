"""`POST /v1/chat/completions` and `GET /v1/models`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from engine.api.answering import Answerer, Event, Finished, Started, Text
from engine.api.asked_model import AUTO
from engine.api.backends import Backends
from engine.api.client_values import choice_logprobs
from engine.api.schemas_chat import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionRequest,
    Choice,
    ModelCard,
    ModelList,
)
from engine.api.sse import chat_chunks
from engine.api.strict_json import StrictRoute
from engine.api.tenancy import Tenant
from engine.errors import ComponentUnavailable


def chat_router(backends: Backends, answerer: Answerer) -> APIRouter:
    """The routes that answer questions."""
    router = APIRouter(route_class=StrictRoute, tags=["chat"])

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: ChatCompletionRequest, tenant: Tenant) -> Response | ChatCompletion:
        """Answer a conversation, streamed or whole (OpenAI's API plus the `switchyard` extension)."""
        request_id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        events = answerer.answer(request, request_id, tenant=tenant)
        # Whatever fails before the first token still has a status code of its own.
        first = await anext(events)
        if not isinstance(first, Started):
            raise ComponentUnavailable("generator", "its answer did not begin")
        if request.stream:
            include_usage = bool(request.stream_options and request.stream_options.include_usage)
            chunks = chat_chunks(first, events, request_id=request_id, created=created, include_usage=include_usage)
            return StreamingResponse(
                chunks,
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        return await _whole(first, events, request_id, created)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """Names that `model` may take."""
        info = await backends.model()

        def card(name: str, parent: str | None, digest: str | None) -> ModelCard:
            return ModelCard(
                id=name,
                created=info.created,
                owned_by="switchyard",
                max_model_len=info.max_model_len,
                parent=parent,
                digest=digest,
            )

        adapters = [card(each.name, info.name, each.digest) for each in await backends.served_adapters()]
        return ModelList(data=[card(AUTO, None, None), card(info.name, None, info.digest), *adapters])

    return router


async def _whole(first: Started, events: AsyncGenerator[Event], request_id: str, created: int) -> ChatCompletion:
    parts, logprobs = [first.text], list(first.logprobs)
    async for event in events:
        if isinstance(event, Text):
            parts.append(event.text)
            logprobs += event.logprobs
        elif isinstance(event, Finished):
            return ChatCompletion(
                id=request_id,
                created=created,
                model=first.model,
                choices=[
                    Choice(
                        message=AssistantMessage(content="".join(parts)),
                        logprobs=choice_logprobs(logprobs),
                        finish_reason=event.finish_reason,
                    )
                ],
                usage=event.usage,
                switchyard=event.outcome,
            )
    raise ComponentUnavailable("generator", "its answer did not end")
