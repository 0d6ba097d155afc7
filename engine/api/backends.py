"""What the HTTP layer needs from the components, whether they live in Ray deployments or in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.api.answered import Answered
from engine.generation.adapters.status import AdapterStatus, ServedAdapter
from engine.routing.needs import Needs
from engine.values import (
    ContinuationScore,
    DocumentWrite,
    Evidence,
    GenerationRequest,
    Judgement,
    Query,
    RouteRequest,
    Routing,
    ScoreRequest,
    TokenDelta,
    WriteResult,
)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The generator behind this server. `created` is a Unix time in seconds."""

    name: str
    digest: str
    max_model_len: int
    created: int


class Backends(Protocol):
    """Every call raises errors of `engine.errors` only; a component that died raises ComponentUnavailable."""

    async def evidence(self, query: Query) -> Evidence: ...

    async def embed(self, text: str, collection: str) -> NDArray[np.float32]:
        """[E], as a search of `collection` embeds a question."""
        ...

    async def needs(self, collection: str) -> Needs:
        """What the router has to know of questions to a collection. Cheap, for every request."""
        ...

    async def decide(self, requests: Sequence[RouteRequest], wants_signals: bool = False) -> Routing:
        """The arm of each question; with `wants_signals` its signals too, whether or not they were read."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """The first delta at once, later ones joined as they come. Closing the iterator cancels the request."""
        ...

    async def score(self, request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        """How likely each continuation of each prompt is. Cancelling the waiting task stops the work."""
        ...

    async def model(self) -> ModelInfo: ...

    async def served_adapters(self) -> list[ServedAdapter]:
        """What requests may name. Cheap, for every request."""
        ...

    async def adapters(self) -> list[AdapterStatus]:
        """Those that are not loaded too, with all that their folders say."""
        ...

    async def load_adapter(self, name: str, path: str | None, version: str | None = None) -> AdapterStatus: ...

    async def unload_adapter(self, name: str, delete_files: bool) -> None: ...

    async def write(self, collection: str, items: Sequence[DocumentWrite], tenant: str) -> list[WriteResult]:
        """Durable and searchable when it returns."""
        ...

    async def enqueue(
        self, collection: str, items: Sequence[DocumentWrite], tenant: str, job: str | None
    ) -> list[WriteResult]:
        """Durable when it returns, and applied later; counted by `job`, or by a new one."""
        ...

    async def job(self, job_id: str, tenant: str) -> dict[str, Any]: ...

    async def jobs(self, limit: int, tenant: str) -> list[dict[str, Any]]: ...

    async def cancel_job(self, job_id: str, tenant: str) -> dict[str, Any]: ...

    async def document(self, collection: str, document: str, tenant: str) -> dict[str, Any]: ...

    async def documents(
        self, collection: str, source: str | None, after: str | None, limit: int, tenant: str
    ) -> list[dict[str, Any]]: ...

    async def judge(self, collection: str, items: Sequence[Judgement], tenant: str) -> list[str]:
        """Durable when it returns; what is fitted to the judgements follows in the background."""
        ...

    async def judgements(self, collection: str, tenant: str) -> dict[str, Any]: ...

    async def forget_judgements(self, collection: str, tenant: str) -> int: ...

    async def generations(self, collection: str) -> list[dict[str, Any]]: ...

    async def build_generation(self, collection: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The job of a build that has begun; `asked` are the arguments of `GenerationService.build`."""
        ...

    async def use_generation(self, collection: str, number: int) -> dict[str, Any]:
        """The job that puts a kept one in place."""
        ...

    async def drop_generation(self, collection: str, number: int) -> dict[str, Any]: ...

    async def recall(self, response: str, tenant: str) -> Answered | None:
        """An answer of the tenant's that another gateway gave and remembers."""
        ...

    async def keep_feedback(self, response: str, content: dict[str, Any], tenant: str) -> str:
        """Durable when it returns; whether it was created or updated."""
        ...

    async def feedback(self, after: int, limit: int, tenant: str) -> list[tuple[int, dict[str, Any]]]: ...

    async def collections(self, tenant: str) -> list[dict[str, Any]]: ...

    async def status(self) -> dict[str, dict[str, Any]]:
        """Per component: `{"ready": bool, ...}`; a component that does not answer is not ready and says why."""
        ...
