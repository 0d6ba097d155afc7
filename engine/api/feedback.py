"""What users say of answers, joined with what was decided about them."""

from __future__ import annotations

import time
from typing import Any

from engine.api.answered import Answered, AnswerMemory
from engine.api.backends import Backends
from engine.api.schemas_feedback import FeedbackBody
from engine.config import EngineConfig
from engine.errors import UnknownResponse
from engine.routing.arms import Arm


class FeedbackTaker:
    """Finds the answer that is rated and has the rating kept."""

    def __init__(self, backends: Backends, config: EngineConfig, memory: AnswerMemory) -> None:
        self._backends = backends
        self._keeps_questions = config.gateway.log_questions
        self._memory = memory

    async def take(self, body: FeedbackBody, *, tenant: str = "") -> str:
        """`created`, or `updated` where the answer was rated before; durable. Raises: UnknownResponse, StorageFull."""
        answered = self._memory.recall(body.id, tenant) or await self._backends.recall(body.id, tenant)
        if answered is None:
            raise UnknownResponse(body.id, self._memory.most)
        content = await self._content(body, answered)
        return await self._backends.keep_feedback(body.id, content, tenant)

    async def _content(self, body: FeedbackBody, answered: Answered) -> dict[str, Any]:
        request, decision = answered.request, answered.decision
        signals = decision.signals
        if signals is None:
            # Where no router reads them, they are made for what is rated alone.
            routing = await self._backends.decide([request], wants_signals=True)
            signals = routing.decisions[0].signals
        is_arm = answered.route == decision.route
        return {
            "id": body.id,
            "rated_at": round(time.time(), 3),
            "answered_at": round(answered.at, 3),
            "score": body.quality(),
            "text": body.text,
            "model": answered.model,
            "collection": request.collection,
            "route": answered.route,
            "adapter": decision.adapter,
            "arm": Arm(decision.adapter, decision.route == "rag").name if is_arm else None,
            "is_pinned": request.pinned is not None,
            "confidence": decision.confidence,
            "signals": signals,
            "versions": answered.versions,
            "keys": answered.keys,
            **({"question": request.text} if self._keeps_questions else {}),
        }
