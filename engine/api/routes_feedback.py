"""`POST` and `GET /v1/feedback`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from engine.api.backends import Backends
from engine.api.feedback import FeedbackTaker
from engine.api.schemas_feedback import FeedbackBody, FeedbackList, FeedbackOutcome
from engine.api.strict_json import StrictRoute
from engine.api.tenancy import Tenant


def feedback_router(backends: Backends, taker: FeedbackTaker) -> APIRouter:
    """The routes of feedback; each key sees its own tenant's only."""
    router = APIRouter(route_class=StrictRoute, tags=["routing"])

    @router.post("/v1/feedback")
    async def rate(body: FeedbackBody, tenant: Tenant) -> FeedbackOutcome:
        """Say how good an answer was, or what it should have been. It is kept with what was decided and known then."""
        return FeedbackOutcome.model_validate({"id": body.id, "status": await taker.take(body, tenant=tenant)})

    @router.get("/v1/feedback")
    async def feedback(
        tenant: Tenant,
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    ) -> FeedbackList:
        """What was said so far, a page at a time."""
        rows = await backends.feedback(after, limit, tenant)
        return FeedbackList(feedback=[content for _, content in rows], next=rows[-1][0] if len(rows) == limit else None)

    return router
