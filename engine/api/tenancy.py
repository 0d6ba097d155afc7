"""Whose data a request may see."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from engine.errors import Forbidden


async def _tenant(request: Request) -> str:  # without "async" it would be called in a thread
    # Set with the key's check; a request that has passed without it must not fall back to anybody's data.
    tenant: str = request.state.tenant
    return tenant


Tenant = Annotated[str, Depends(_tenant)]


def no_tenant(what: str) -> Any:
    """A dependency of routes that concern every tenant: keys of one get 403. `what` they are about begins the error."""

    def check(tenant: Tenant) -> None:
        if tenant:
            raise Forbidden(what)

    return Depends(check)
