"""Whose data a request may see."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request


def _tenant(request: Request) -> str:
    # Set with the key's check; a request that has passed without it must not fall back to anybody's data.
    tenant: str = request.state.tenant
    return tenant


Tenant = Annotated[str, Depends(_tenant)]
