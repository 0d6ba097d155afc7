"""What a server's refusal is to a client: an error with the server's own message."""

from __future__ import annotations

import httpx

from engine.errors import SwitchyardError


class ServerError(SwitchyardError):
    """The server refused a request; `status`, `code` and `retry_after_s` are its own."""

    def __init__(self, status: int, message: str, code: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


def raise_for_error(response: httpx.Response) -> None:
    """Raises: ServerError where the response, which must have been read, is one of a failed request."""
    if response.status_code < 400:
        return
    try:
        error = response.json()["error"]
        retry_after_s = float(response.headers.get("Retry-After", 1))
        raise ServerError(response.status_code, error["message"], error["code"], retry_after_s)
    except (ValueError, KeyError, TypeError):
        raise ServerError(
            response.status_code,
            f"the server answered {response.status_code}: {response.text[:200]}",
            "http_error",
        ) from None
