"""Judged queries of a collection, and the fusion weight that is fitted to them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError

from engine.api.backends import Backends
from engine.api.error_table import describe_problem
from engine.api.schemas_judgements import (
    JudgementLine,
    JudgementOutcome,
    JudgementsInfo,
    JudgementsRemoved,
    JudgementsResponse,
)
from engine.api.strict_json import StrictRoute, parse_json
from engine.api.tenancy import Tenant
from engine.errors import InvalidRequest
from engine.values import Judgement

_PATH = "/v1/collections/{collection}/judgements"


def judgements_router(backends: Backends) -> APIRouter:
    """The routes of judgements; each key sees its own tenant's only."""
    router = APIRouter(route_class=StrictRoute, tags=["judgements"])

    @router.put(_PATH, openapi_extra=_PUT_BODY)
    async def judge(collection: str, request: Request, tenant: Tenant) -> JudgementsResponse:
        """Judge documents for queries, one JSON object a line; a line that fails never stops the rest.

        A judgement takes the place of an earlier one of the same query and document. The fit follows in the background.
        """
        lines = [line for line in (await request.body()).split(b"\n") if line.strip()]
        if not lines:
            raise InvalidRequest(
                'the body is empty; send one JSON object a line, such as {"query": "a", "document": "b", "grade": 1}.'
            )
        read = [_judgement(line, number) for number, line in enumerate(lines, start=1)]
        sound = [one for one in read if isinstance(one, Judgement)]
        statuses = iter(await backends.judge(collection, sound, tenant))
        results = [
            JudgementOutcome.model_validate(
                {"query": one.query, "document": one.document, "status": next(statuses)},
            )
            if isinstance(one, Judgement)
            else one
            for one in read
        ]
        return JudgementsResponse(**await backends.judgements(collection, tenant), results=results)

    @router.get(_PATH)
    async def judgements(collection: str, tenant: Tenant) -> JudgementsInfo:
        """How many judgements there are, and what was fitted to them."""
        return JudgementsInfo(**await backends.judgements(collection, tenant))

    @router.delete(_PATH)
    async def forget_judgements(collection: str, tenant: Tenant) -> JudgementsRemoved:
        """Remove all judgements; searches go back to the default fusion."""
        return JudgementsRemoved(deleted=await backends.forget_judgements(collection, tenant))

    return router


def _judgement(line: bytes, number: int) -> Judgement | JudgementOutcome:
    """One line as a judgement, or as the outcome that says why it cannot be one."""
    try:
        raw = parse_json(line)
        read = JudgementLine.model_validate(raw)
    except (InvalidRequest, ValidationError) as error:
        problem = describe_problem(error.errors()[0]) if isinstance(error, ValidationError) else error
        known = raw if isinstance(error, ValidationError) and isinstance(raw, dict) else {}
        query, document = (value if isinstance(value := known.get(name), str) else "" for name in ("query", "document"))
        return JudgementOutcome(
            query=query, document=document, status="failed", error=f"line {number}: {problem}", code=problem.code
        )
    return Judgement(read.query, read.document, read.grade)


_PUT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"query": "restore a volume", "document": "docs/volumes.md", "grade": 1}\n',
            }
        },
    }
}
