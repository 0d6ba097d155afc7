"""OpenAI's chunk format as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any

from pydantic_core import to_json

from engine.api.answering import Event, Finished, Started, Text
from engine.api.client_values import choice_logprobs
from engine.api.error_table import error_body, unexpected
from engine.errors import SwitchyardError
from engine.values import TokenLogprob

DONE = b"data: [DONE]\n\n"


def frame(data: Any) -> bytes:
    """One event. JSON escapes every newline, so the framing cannot be broken by a text."""
    return b"data: " + to_json(data) + b"\n\n"


async def chat_chunks(
    first: Started, events: AsyncGenerator[Event], *, request_id: str, created: int, include_usage: bool
) -> AsyncIterator[bytes]:
    """Frames of one streamed answer; `switchyard` rides on the first chunk and on the last one.

    An error after the first token is one `error` event, and the stream ends without `[DONE]`.
    """

    def chunk(
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: Iterable[TokenLogprob] = (),
        **extra: Any,
    ) -> bytes:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": choice_logprobs(logprobs),
            "finish_reason": finish_reason,
        }
        return frame(
            {
                "id": request_id,
                "object": "chat.completion.chunk",
                "created": created,
                "model": first.model,
                "choices": [choice],
                **extra,
            }
        )

    try:
        yield chunk({"role": "assistant", "content": first.text}, logprobs=first.logprobs, switchyard=first.outcome)
        async for event in events:
            if isinstance(event, Text):
                yield chunk({"content": event.text}, logprobs=event.logprobs)
            elif isinstance(event, Finished):
                yield chunk({}, event.finish_reason, switchyard=event.outcome)
                if include_usage:
                    yield frame(
                        {
                            "id": request_id,
                            "object": "chat.completion.chunk",
                            "created": created,
                            "model": first.model,
                            "choices": [],
                            "usage": event.usage,
                        }
                    )
        yield DONE
    except SwitchyardError as error:
        yield frame(error_body(error))
    except Exception as error:
        yield frame(error_body(unexpected(error)))
    finally:
        # Also reached when the client left: closing the events cancels the generation.
        await events.aclose()
