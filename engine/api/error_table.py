"""The one table from errors to HTTP, and the error bodies clients see. No traceback, path or class name leaves here."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from engine import errors
from engine.errors import InvalidRequest, RequestError, SwitchyardError, UnsupportedMediaType

logger = logging.getLogger("switchyard.api")

# First match wins, so a class stands before its parents.
STATUS: tuple[tuple[type[SwitchyardError], int], ...] = (
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.DeadlineExceeded, 408),
    (errors.Conflict, 409),
    (errors.PayloadTooLarge, 413),
    (errors.UnsupportedMediaType, 415),
    (errors.InvalidRequest, 400),
    (errors.NotImplementedYet, 501),
    (errors.Overloaded, 503),
    (errors.ComponentUnavailable, 503),
    (errors.StorageFull, 507),
    (errors.DataFolderError, 500),
    (errors.ModelSourceError, 500),
    (errors.SwitchyardError, 500),
)

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
}


def status_of(error: SwitchyardError) -> int:
    """HTTP status of an error."""
    return next(status for cls, status in STATUS if isinstance(error, cls))


def error_body(error: SwitchyardError) -> dict[str, Any]:
    """OpenAI's error object: `{"error": {"message", "type", "code", "param"}}`."""
    status = status_of(error)
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "code": error.code,
            "param": getattr(error, "param", None),
        }
    }


def error_response(error: SwitchyardError) -> JSONResponse:
    """The response for an error, with Retry-After where waiting helps."""
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    return JSONResponse(error_body(error), status_code=status_of(error), headers=headers)


def unexpected(error: BaseException) -> RequestError:
    """Stand-in for a bug of ours: the log gets the traceback, the client a code."""
    logger.error("unexpected error", exc_info=error)
    hidden = RequestError("an unexpected error happened on the server; its log has the details.")
    hidden.code = "internal_error"
    return hidden


def install(app: FastAPI) -> None:
    """Register the handlers that turn every exception into an error body."""

    @app.exception_handler(SwitchyardError)
    async def _ours(_: Request, error: SwitchyardError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # A wrong path or query is no matter of the body's type: there may be no body at all, or a file.
        if problem["loc"][0] == "body" and media_type != "application/json":
            return error_response(UnsupportedMediaType(media_type or "none", ["application/json"]))
        return error_response(describe_problem(problem))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return error_response(errors.NotFound(f"nothing is served at {request.url.path}. See GET /openapi.json."))
        body = {
            "message": str(error.detail),
            "type": "invalid_request_error",
            "code": "http_error",
            "param": None,
        }
        return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def _bug(_: Request, error: Exception) -> JSONResponse:
        return error_response(unexpected(error))


def describe_problem(problem: Any) -> InvalidRequest:
    """One validation problem in words. The input is not echoed: it may be large or not printable."""
    # The name of a field that we do not know is input as well.
    where = ".".join(str(part)[:80] for part in problem["loc"] if part not in ("body", "query", "path"))
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown field; GET /openapi.json lists the fields of this request"
    return InvalidRequest(f"{where}: {message}" if where else message, param=where or None)
