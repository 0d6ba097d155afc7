"""`POST /v1/route`."""

from __future__ import annotations

from fastapi import APIRouter

from engine.api.routing_only import RouteAsker
from engine.api.schemas_route import RouteBody, RouteResponse
from engine.api.strict_json import StrictRoute
from engine.api.tenancy import Tenant


def route_router(asker: RouteAsker) -> APIRouter:
    """The route that decides and answers nothing."""
    router = APIRouter(route_class=StrictRoute, tags=["routing"])

    @router.post("/v1/route")
    async def route(body: RouteBody, tenant: Tenant) -> RouteResponse:
        """Which arm a chat with each question would take, why, and the signals that tell. Nothing is generated."""
        return await asker.route(body, tenant=tenant)

    return router
