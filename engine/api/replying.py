"""What is said without the generator, as the deltas of an answer: a question back, a refusal, a reading assumed.

So it is streamed, timed and counted like any answer, with no token of a model in it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from engine.routing.restraint import Reply
from engine.values import PromptReport, TokenDelta


async def said(reply: Reply) -> AsyncGenerator[TokenDelta]:
    """The whole answer at once. No token was read or made; what it speaks of counts as shown."""
    yield TokenDelta(reply.text, 0, prompt=PromptReport(0, reply.pages), finish_reason="stop")


async def led_by(opening: str, generated: AsyncIterator[TokenDelta]) -> AsyncGenerator[TokenDelta]:
    """The generator's answer behind `opening`. Closing it closes what is generated."""
    try:
        async for delta in generated:
            if opening:
                delta = replace(delta, text=opening + delta.text)
                opening = ""
            yield delta
    finally:
        if isinstance(generated, AsyncGenerator):
            await generated.aclose()
