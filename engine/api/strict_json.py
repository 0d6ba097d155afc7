"""JSON bodies parsed strictly: no NaN or infinity, no lone surrogates, bounded nesting. A violation is a 400."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from engine.errors import InvalidRequest

MAX_DEPTH = 32


def parse_json(body: bytes | str) -> Any:
    """Parse one JSON value.

    Raises: InvalidRequest naming the position (syntax, NaN, surrogates) or the limit (depth, number range).
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error}. NaN, Infinity and lone surrogates are not JSON either."
        ) from None
    _check(value)
    return value


def _check(value: Any) -> None:
    """Walk level by level, since recursion would itself be limited by depth."""
    level, depth = [value], 0
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise InvalidRequest("the JSON body holds a number beyond the range of a 64-bit float.")
            if isinstance(item, dict | list):
                if depth == MAX_DEPTH:
                    raise InvalidRequest(f"the JSON body nests deeper than {MAX_DEPTH} levels; flatten it.")
                inner.extend(item.values() if isinstance(item, dict) else item)
        level, depth = inner, depth + 1


class StrictRequest(Request):
    """A request whose `json()` is `parse_json`."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """Routes of this class parse bodies with StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            try:
                return await handle(StrictRequest(request.scope, request.receive))
            except Exception as error:
                # FastAPI wraps errors raised while a body is parsed; ours say more than its stand-in.
                if isinstance(error.__cause__, InvalidRequest):
                    raise error.__cause__ from None
                raise

        return strict
