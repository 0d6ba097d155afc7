"""Follow-ups in the generator's words, through the engine and in the same way as `retriever.followups: generator`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

from engine.api.rewriting import search_text
from engine.config import GeneratorSettings
from engine.generation.engine import Engine
from engine.generation.protocol import GenerationEngine
from engine.models import resolve_model
from engine.values import GenerationRequest, Message, TokenDelta
from loadtest.closed_loop import closed_loop

_CLIENTS = 4
# A quarter of it is as long as a rewrite may ever take.
_DEADLINE_S = 60.0

Messages = tuple[Message, ...]


async def rewrites(asked: Sequence[Messages], engine: GenerationEngine) -> tuple[dict[Messages, str], int]:
    """What to search for, by conversation; and how many were rewritten, since the rules stand in for the generator."""
    found: dict[Messages, str] = {}
    num_rewritten = 0
    backend = _InProcess(engine)
    ids = itertools.count()

    async def rewrite(messages: Messages) -> None:
        nonlocal num_rewritten
        text = await search_text(
            "generator", backend, messages, request_id=str(next(ids)), tenant="", remaining_s=_DEADLINE_S
        )
        found[messages] = text.text
        num_rewritten += text.reason is not None and text.reason.endswith("(by the generator)")

    await closed_loop(asked, _CLIENTS, rewrite)
    return found, num_rewritten


def default_rewrites(asked: Sequence[Messages]) -> tuple[dict[Messages, str], int]:
    """`rewrites` by the default generator. Raises: SwitchyardError when it cannot be fetched or does not start."""
    settings = GeneratorSettings()
    engine = Engine(resolve_model(settings.model, kind="generator", show_progress=True).path, settings)
    try:
        return asyncio.run(rewrites(asked, engine))
    finally:
        engine.close()


class _InProcess:
    """An engine as what a rewrite generates with."""

    def __init__(self, engine: GenerationEngine) -> None:
        self._engine = engine

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        async for delta in self._engine.submit(request):
            yield delta
