"""What went wrong in a call to another deployment, as an error of the house."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from engine.api.error_table import unexpected
from engine.errors import ComponentUnavailable, Overloaded, SwitchyardError

T = TypeVar("T")


async def call(component: str, response: Awaitable[T]) -> T:
    """What a call to another deployment answers. Raises: SwitchyardError."""
    try:
        return await response
    except (RayError, RayServeException) as error:
        raise translate(component, error) from None


def translate(component: str, error: Exception) -> SwitchyardError:
    """The error that a component raised, or what its silence means."""
    cause = getattr(error, "cause", None) if isinstance(error, RayTaskError) else None
    if isinstance(cause, SwitchyardError):
        return cause
    if isinstance(error, BackPressureError):
        return Overloaded(f"the queue of the {component}", error.max_queued_requests or 0, f"{component}.max_queued")
    if isinstance(error, RayTaskError):
        return unexpected(error)
    return ComponentUnavailable(component, "it died or is being restarted")
