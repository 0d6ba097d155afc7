"""What went wrong in a call to another deployment, as an error of the house."""

from __future__ import annotations

from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from engine.api.error_table import unexpected
from engine.errors import ComponentUnavailable, Overloaded, SwitchyardError


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
