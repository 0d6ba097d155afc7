"""The text that a conversation's last question is searched with; the prompt of the answer is not touched.

By rules (`engine.retrieval.followups`), or rewritten by the generator with the rules to fall back on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.config import FollowUps
from engine.errors import SwitchyardError
from engine.retrieval.followups import standalone_query
from engine.values import GenerationRequest, Message, SamplingParams, TokenDelta

MAX_TOKENS = 48
MAX_REWRITE_S = 10.0
# The answer itself has to be generated in what is left.
MAX_SHARE_OF_TIME = 0.25
MAX_TURNS = 5
MAX_TURN_CHARS = 400
MAX_SHOWN_CHARS = 200
INSTRUCTION = (
    "Rewrite the last question of this conversation so that it can be understood without the conversation. "
    "Write only the question."
)
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


class Generates(Protocol):
    """What a rewrite needs of `Backends`."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """The answer, piece by piece."""
        ...


@dataclass(frozen=True, slots=True)
class SearchText:
    """`reason` is for the user, None where the question is searched as it was written.

    `rewrite_ms` is the generator's time, None where it was not asked.
    """

    text: str
    reason: str | None = None
    rewrite_ms: float | None = None


async def search_text(
    how: FollowUps,
    backends: Generates,
    messages: Sequence[Message],
    *,
    request_id: str,
    tenant: str,
    remaining_s: float,
) -> SearchText:
    """What to search for, to answer the last message.

    Args:
        messages: the conversation, ending with the user's question.
        tenant: whose cached prompts the generator may use.
        remaining_s: what is left of the request's deadline, in seconds.
    """
    question = messages[-1].content
    if how == "off":
        return SearchText(question)
    rewrite_ms = None
    turns = [message for message in messages if message.role != "system"][-MAX_TURNS:]
    if how == "generator" and len(turns) > 1:
        started = time.perf_counter()
        limit_s = min(remaining_s * MAX_SHARE_OF_TIME, MAX_REWRITE_S)
        rewritten = await _generate(backends, turns, f"{request_id}-search", tenant, limit_s)
        rewrite_ms = (time.perf_counter() - started) * 1000
        if rewritten:
            return SearchText(rewritten, f"searched for {_shown(rewritten)} (by the generator)", rewrite_ms)
    text = standalone_query(messages)
    reason = None if text == question else f"searched for {_shown(text)} (with words of earlier turns)"
    return SearchText(text, reason, rewrite_ms)


async def _generate(backends: Generates, turns: Sequence[Message], request_id: str, tenant: str, limit_s: float) -> str:
    """The question in the generator's words, on one line; empty where it fails, says nothing or is too slow."""
    if limit_s <= 0:
        return ""
    request = GenerationRequest(
        id=request_id,
        messages=(Message("user", _prompt(turns)),),
        sampling=SamplingParams(max_tokens=MAX_TOKENS),
        deadline_s=limit_s,
        cache_salt=tenant,
    )
    parts: list[str] = []
    try:
        async with asyncio.timeout(limit_s):
            async for delta in backends.generate(request):
                parts.append(delta.text)
    except (SwitchyardError, TimeoutError):
        return ""
    return next((line.strip() for line in "".join(parts).splitlines() if line.strip()), "")


def _prompt(turns: Sequence[Message]) -> str:
    conversation = [f"{_SPEAKERS[turn.role]}: {' '.join(turn.content[:MAX_TURN_CHARS].split())}" for turn in turns]
    return "\n".join([INSTRUCTION, "", *conversation, "", "Question:"])


def _shown(text: str) -> str:
    """Quoted, and of a long text the beginning and the end, where words are added."""
    if len(text) > MAX_SHOWN_CHARS:
        half = MAX_SHOWN_CHARS // 2
        text = f"{text[:half]} … {text[-half:]}"
    return repr(text)
