"""Whose data a request may see."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request


async def _tenant(request: Request) -> str:  # without "async" it would be called in a thread
    # Set with the key's check; a request that has passed without it must not fall back to anybody's data.
    tenant: str = request.state.tenant
    return tenant


Tenant = Annotated[str, Depends(_tenant)]
