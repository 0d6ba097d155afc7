"""Liveness, readiness, the playground page, and the addresses that later versions serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from engine import __version__
from engine.api.backends import Backends
from engine.errors import NotImplementedYet

PLAYGROUND = Path(__file__).with_name("playground.html").read_text(encoding="utf-8")
# Nothing but the page's own script and style runs, and it talks to this server only.
PLAYGROUND_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'"
)
PLANNED = (
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/classify"),
    ("GET", "/metrics"),
)


def health_router(backends: Backends) -> APIRouter:
    """The routes that probes ask."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process is alive."""
        return {"status": "alive", "version": __version__}

    @router.get("/readyz")
    async def readyz(response: Response) -> dict[str, Any]:
        """Every component answers (200), or which one does not and why (503)."""
        components = await backends.status()
        missing = [name for name, status in components.items() if not status["ready"]]
        if missing:
            response.status_code = 503
            response.headers["Retry-After"] = "2"
        return {"ready": not missing, "missing": missing, "components": components}

    @router.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        """A page to ask questions in a browser."""
        return HTMLResponse(PLAYGROUND, headers={"Content-Security-Policy": PLAYGROUND_POLICY})

    for method, path in PLANNED:
        router.add_api_route(path, _refusal(method, path), methods=[method], include_in_schema=False)
    return router


def _refusal(method: str, path: str) -> Any:
    async def refuse() -> None:
        raise NotImplementedYet(f"{method} {path}")

    return refuse
