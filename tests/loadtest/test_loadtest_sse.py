from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.measures import Chunk
from loadtest.sse import AnswerFailed, Event, StreamedAnswer, error_message, read_answer, read_events

DONE = b"data: [DONE]\n\n"


def lines_of(stream: bytes) -> Callable[[], bytes]:
    """What a connection gives: a line at a time, then b"" for ever."""
    lines = itertools.chain(stream.splitlines(keepends=True), itertools.repeat(b""))
    return lambda: next(lines)


def chunk(content: str | None = None, **more: Any) -> bytes:
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def read(stream: bytes) -> StreamedAnswer:
    """Read with a clock that moves a second per look."""
    clock = itertools.count(1)
    return read_answer(lines_of(stream), lambda: float(next(clock)))


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [Event("message", "a"), Event("message", "b")]),
        (b"data: a\r\n\r\n", [Event("message", "a")]),
        (b"data:a\ndata:  b\n\n", [Event("message", "a\n b")]),
        (b": keep-alive\n\ndata: a\n\n", [Event("message", "a")]),
        (b"event: error\nid: 7\ndata: a\n\ndata: b\n\n", [Event("error", "a"), Event("message", "b")]),
        (b"data: a\n\ndata: cut off", [Event("message", "a")]),
        (b"", []),
    ],
)
def test_events_are_parsed_as_the_standard_says(stream: bytes, events: list[Event]) -> None:
    assert list(read_events(lines_of(stream))) == events


def test_an_answer_keeps_route_times_and_tokens() -> None:
    first = chunk("", switchyard={"route": "rag"})
    usage = chunk(usage={"completion_tokens": 5})
    answer = read(first + chunk("Vol") + chunk("umes") + chunk("", usage=None) + usage + DONE)
    assert answer == StreamedAnswer(
        route="rag",
        chunks=(Chunk(1.0, ""), Chunk(2.0, "Vol"), Chunk(3.0, "umes"), Chunk(4.0, "")),
        num_tokens=5,
        latency_s=6.0,
    )


def test_an_answer_without_usage_has_no_token_count() -> None:
    assert read(chunk("Yes.", switchyard={"route": "direct"}) + DONE).num_tokens is None


def test_the_route_is_the_one_of_the_first_chunk() -> None:
    stream = chunk("a", switchyard={"route": "rag"}) + chunk("b", switchyard={"route": "direct"}) + DONE
    assert read(stream).route == "rag"


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (b"", "stream ended without data: \\[DONE\\]"),
        (b'data: {"error": {"message": "the deadline passed"}}\n\n', "^the deadline passed$"),
        (b'event: error\ndata: {"message": "odd"}\n\n', "odd"),
        (b"event: error\ndata: plain words\n\n", "^plain words$"),
        (b"data: <html>\n\n", "not a chat chunk: '<html>'"),
        (b"data: [1]\n\n", "not a chat chunk"),
    ],
)
def test_a_broken_stream_fails_with_its_reason_and_route(ending: bytes, message: str) -> None:
    with pytest.raises(AnswerFailed, match=message) as caught:
        read(chunk("a", switchyard={"route": "rag"}) + ending)
    assert caught.value.route == "rag"


def test_an_error_before_the_first_chunk_has_no_route() -> None:
    with pytest.raises(AnswerFailed, match="full") as caught:
        read(b'data: {"error": {"message": "the queue is full"}}\n\n' + DONE)
    assert caught.value.route is None


def test_a_lost_connection_fails_the_answer() -> None:
    stream = iter([chunk("a", switchyard={"route": "rag"}).rstrip(b"\n") + b"\n", b"\n"])

    def next_line() -> bytes:
        for line in stream:
            return line
        raise ConnectionResetError("reset by peer")

    with pytest.raises(AnswerFailed, match="connection broke mid-stream: reset by peer"):
        read_answer(next_line, lambda: 0.0)


def test_a_stream_without_route_is_not_ours() -> None:
    with pytest.raises(AnswerFailed, match=r"switchyard\.route"):
        read(chunk("a") + DONE)


def test_an_empty_answer_fails_rather_than_have_no_first_token() -> None:
    with pytest.raises(AnswerFailed, match="no content"):
        read(chunk("", switchyard={"route": "rag"}) + DONE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "m", "code": "c"}}, "m"),
        ({"error": "words"}, "words"),
        ({"detail": "x"}, "{'detail': 'x'}"),
        ("<html>", "<html>"),
    ],
)
def test_error_message_falls_back_to_the_body(body: Any, message: str) -> None:
    assert error_message(body) == message
