"""What went wrong in a call to another deployment, as an error of the house."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException, ReplicaUnavailableError

from engine.api.error_table import unexpected
from engine.errors import ComponentUnavailable, Overloaded, SwitchyardError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Stream(Protocol[T_co]):
    """What a call brings, one after another."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def cancel(self) -> None:
        """Without effect on a stream that ended."""


async def call(component: str, response: Awaitable[T]) -> T:
    """What a call to another deployment answers. Raises: SwitchyardError."""
    try:
        return await response
    except Exception as error:
        raise translate(component, error) from None


async def call_any(component: str, start: Callable[[], Awaitable[T]], *, num_tries: int) -> T:
    """What one of several replicas answers to a read; asked anew where a replica died.

    `start` begins the call, up to `num_tries` times. Raises: SwitchyardError.
    """
    for left in reversed(range(num_tries)):
        try:
            return await start()
        except Exception as error:
            if not left or not isinstance(error, RayActorError | ReplicaUnavailableError):
                raise translate(component, error) from None
    raise AssertionError(f"num_tries={num_tries}: at least one")


async def stream(component: str, start: Callable[[], Awaitable[Stream[T]]], *, num_tries: int) -> AsyncGenerator[T]:
    """What a streaming call brings; begun anew where a replica died before it brought anything.

    `start` begins the call, up to `num_tries` times. Closing the iterator cancels the call. Raises: SwitchyardError.
    """
    for left in reversed(range(num_tries)):
        call, has_begun = await start(), False
        try:
            async for each in call:
                has_begun = True
                yield each
            return
        except Exception as error:
            if has_begun or not left or not isinstance(error, RayActorError | ReplicaUnavailableError):
                raise translate(component, error) from None
        finally:
            call.cancel()


def translate(component: str, error: Exception) -> SwitchyardError:
    """The error that a component raised, or what its silence means."""
    # Ray's own messages wrap what was raised there; gRPC brings it as it is.
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, SwitchyardError):
        return cause
    if isinstance(error, BackPressureError):
        return Overloaded(f"the queue of the {component}", error.max_queued_requests or 0, f"{component}.max_queued")
    silence = RayError | RayServeException | AioRpcError | TimeoutError
    if isinstance(error, RayTaskError) or not isinstance(error, silence):
        return unexpected(error)
    return ComponentUnavailable(component, "it died or is being restarted")
