"""Limits on what a client may send, as pure ASGI: who may call, how large a body is, how slowly it may arrive."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api.error_table import error_response
from engine.config import GatewaySettings
from engine.errors import InvalidRequest, PayloadTooLarge, RequestError, Unauthorized

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
DOCUMENT_PATH = re.compile(r"^/v1/collections/[^/]+/documents(/|:batch$)")


class RequestLimits:
    """Check the key and read the whole body, within its limits, before any handler runs."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["tenant"] = self._authorize(scope)
            body = await self._read_body(scope, receive)
        except RequestError as error:
            # The rest of a refused body is not read, so the connection cannot carry another request.
            response = error_response(error)
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _authorize(self, scope: Scope) -> str:
        """The caller's tenant: it comes from the key and from nowhere else."""
        allowed = self._settings.api_key_sha256
        # The raw ASGI path decides, never a URL rebuilt from headers that the client controls.
        if not allowed or scope["path"] in OPEN_PATHS:
            return ""
        header = dict(scope["headers"]).get(b"authorization", b"")
        digest = hashlib.sha256(header.removeprefix(b"Bearer ")).hexdigest()
        # Every key is compared, so the time taken does not tell which one was near.
        if sum(hmac.compare_digest(digest, known) for known in allowed) == 0:
            raise Unauthorized
        return self._settings.key_tenants.get(digest, "")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or None when the client left before sending all of it."""
        if DOCUMENT_PATH.match(scope["path"]):
            limit, setting = self._settings.max_document_bytes, "gateway.max_document_bytes"
        else:
            limit, setting = self._settings.max_body_bytes, "gateway.max_body_bytes"
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise PayloadTooLarge(limit, setting)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise InvalidRequest(
                "the body did not arrive within "
                f"gateway.body_timeout_s={self._settings.body_timeout_s:g} s; send it again."
            ) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out the body that was read, then what comes after it (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
