"""Reading a streamed answer: server-sent events, then chat chunks with the time at which each arrived.

No HTTP and no clock of its own: the caller passes a function that returns the next line and one that tells the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from loadtest.measures import Chunk


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: its type (`message` unless named) and its data lines joined by newlines."""

    type: str
    data: str


class AnswerFailed(Exception):
    """A response that is no complete answer. `route` is None when the server had not named one yet."""

    def __init__(self, message: str, route: str | None) -> None:
        super().__init__(message)
        self.route = route


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """A complete answer. `latency_s` runs until `data: [DONE]`; `num_tokens` is None where `usage` was not sent."""

    route: str
    chunks: tuple[Chunk, ...]
    num_tokens: int | None
    latency_s: float


def read_events(next_line: Callable[[], bytes]) -> Iterator[Event]:
    """Events of a stream as the HTML standard parses them; `next_line` returns b"" at the end.

    An event that the end cuts off is dropped, as the standard asks.
    """
    kind, data = "", list[str]()
    while line := next_line():
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        if not text:
            if data:
                yield Event(kind or "message", "\n".join(data))
            kind, data = "", []
            continue
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value


def read_answer(next_line: Callable[[], bytes], elapsed_s: Callable[[], float]) -> StreamedAnswer:
    """Consume the stream of `POST /v1/chat/completions`, timing each chunk as it arrives.

    `elapsed_s` returns the seconds since the request was sent.
    Raises: AnswerFailed on an `error` event, a broken connection, a body that is no chat chunk, or an end without
    `data: [DONE]`.
    """
    route: str | None = None
    num_tokens: int | None = None
    chunks: list[Chunk] = []
    try:
        for event in read_events(next_line):
            at_s = elapsed_s()
            if event.data == "[DONE]":
                return _complete(route, chunks, num_tokens, at_s)
            body = _parse(event, route)
            route = route or (body.get("switchyard") or {}).get("route")
            num_tokens = (body.get("usage") or {}).get("completion_tokens", num_tokens)
            chunks.extend(Chunk(at_s, _content(choice)) for choice in body.get("choices") or ())
    except OSError as error:
        raise AnswerFailed(f"connection broke mid-stream: {error}", route) from error
    raise AnswerFailed("stream ended without data: [DONE]", route)


def _parse(event: Event, route: str | None) -> dict[str, Any]:
    try:
        body = json.loads(event.data)
    except ValueError:
        body = event.data
    if event.type == "error" or (isinstance(body, dict) and body.get("error")):
        raise AnswerFailed(error_message(body), route)
    if not isinstance(body, dict):
        raise AnswerFailed(f"not a chat chunk: {event.data[:80]!r}", route)
    return body


def _content(choice: dict[str, Any]) -> str:
    return (choice.get("delta") or {}).get("content") or ""


def _complete(route: str | None, chunks: list[Chunk], num_tokens: int | None, latency_s: float) -> StreamedAnswer:
    if route is None:
        raise AnswerFailed("no chunk carries switchyard.route", None)
    if not any(chunk.text for chunk in chunks):
        raise AnswerFailed("stream is complete but has no content", route)
    return StreamedAnswer(route, tuple(chunks), num_tokens, latency_s)


def error_message(body: Any) -> str:
    """The message of an error body `{"error": {"message", "code", ...}}`, or the body itself where it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or body)
