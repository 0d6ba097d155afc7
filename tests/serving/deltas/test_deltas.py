"""Deltas of many answers over one connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import ComponentUnavailable, DeadlineExceeded
from engine.serving.deltas.receiver import Answer, DeltaReceiver
from engine.serving.deltas.sender import DeltaSender, delay_s
from engine.serving.deltas.wire import ReplyTo, decode, encode, joined, pack
from engine.values import Passage, PromptReport, TokenDelta, TokenLogprob

LONG_S = 60.0
FIRST = TokenDelta("Ray", 1, prompt=PromptReport(7, ()))
LAST = TokenDelta(".", 1, finish_reason="stop", timings_ms={"decode": 1.5})


class Source:
    """The deltas of one answer (TokenStream), fed by the test."""

    def __init__(self, *items: TokenDelta | Exception) -> None:
        self.queue: asyncio.Queue[TokenDelta | Exception] = asyncio.Queue()
        self.put(*items)
        self.is_closed = False
        self.closing = asyncio.Event()

    def put(self, *items: TokenDelta | Exception) -> None:
        for item in items:
            self.queue.put_nowait(item)

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> TokenDelta:
        if self.is_closed:
            raise StopAsyncIteration
        item = await self.queue.get()
        if isinstance(item, Exception):
            raise item
        self.is_closed = item.finish_reason is not None
        return item

    async def aclose(self) -> None:
        self.is_closed = True
        self.closing.set()


class Call:
    """A call of Ray Serve: awaited, or cancelled."""

    def __init__(self, work: Any) -> None:
        self.task = asyncio.ensure_future(work)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.task.__await__()

    def cancel(self) -> None:
        self.task.cancel()


@asynccontextmanager
async def sending(delay_s: float = LONG_S) -> AsyncIterator[DeltaSender]:
    sender = DeltaSender(lambda num_answers: delay_s)
    try:
        yield sender
    finally:
        await sender.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[DeltaReceiver]:
    receiver = DeltaReceiver("127.0.0.1")
    try:
        async with asyncio.timeout(20):
            yield receiver
    finally:
        await receiver.close()


async def ask(receiver: DeltaReceiver, sender: DeltaSender, source: Source) -> Answer:
    answer = await receiver.open()
    answer.follow(Call(sender.send(source, answer.reply_to)))
    return answer


def text(deltas: Sequence[TokenDelta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_delta_comes_out_of_the_wire_as_it_went_in():
    delta = TokenDelta(
        "é\n\u2028",
        2,
        prompt=PromptReport(
            3,
            (Passage("c", "d", "t", "h", "text", 0, 4, 0.25),),
            1,
            (None, TokenLogprob(5, "\ufffd", b"\xc3", -1.5, (TokenLogprob(6, "b", b"b", -2.25),))),
            "0" * 64,
        ),
        logprobs=(TokenLogprob(1, "é", b"\xc3\xa9", -0.5),),
    )
    assert decode(encode({0: [delta], 9: [LAST]})) == [(0, delta), (9, LAST)]


def test_joined_deltas_say_what_each_of_them_said():
    tokens = [TokenLogprob(number, str(number), b"", -1.0) for number in range(3)]
    middle = TokenDelta("a", 2, logprobs=(tokens[0], tokens[1]))
    assert joined([FIRST, middle, replace(LAST, logprobs=(tokens[2],))]) == TokenDelta(
        "Raya.", 4, FIRST.prompt, "stop", {"decode": 1.5}, tuple(tokens)
    )


async def test_first_delta_and_last_are_sent_at_once_and_those_between_together():
    async with receiving() as receiver, sending() as sender:
        source = Source(FIRST)
        answer = await ask(receiver, sender, source)
        assert await anext(answer) == FIRST
        between = [TokenDelta(str(number), 1) for number in range(3)]
        source.put(*between, LAST)
        assert [each async for each in answer] == [replace(LAST, text="012.", num_tokens=4)]
        answer.cancel()


async def test_deltas_between_come_within_the_delay():
    async with receiving() as receiver, sending(delay_s=0.01) as sender:
        source = Source(FIRST)
        answer = await ask(receiver, sender, source)
        await anext(answer)
        source.put(TokenDelta("a", 1))
        assert text([await anext(answer)]) == "a"
        answer.cancel()


@pytest.mark.parametrize(("num_answers", "events_per_s"), [(1, 25), (16, 400), (32, 400), (40, 400), (400, 4000)])
def test_many_answers_are_sent_more_together_within_a_limit(num_answers, events_per_s):
    assert num_answers / delay_s(num_answers) == pytest.approx(events_per_s)


async def test_deltas_wait_by_the_number_of_answers_under_way():
    asked: list[int] = []

    def told(num_answers: int) -> float:
        asked.append(num_answers)
        return 0.01

    sender = DeltaSender(told)
    async with receiving() as receiver:
        for number in (1, 2):
            source = Source(FIRST)
            answer = await ask(receiver, sender, source)
            await anext(answer)
            source.put(TokenDelta("a", 1))
            await anext(answer)
            assert asked == list(range(1, number + 1))
        await sender.close()


async def test_answers_to_one_gateway_share_a_connection_and_frames():
    async with receiving() as receiver, sending() as sender:
        sources = [Source(FIRST) for _ in range(8)]
        answers = [await ask(receiver, sender, source) for source in sources]
        for answer in answers:
            await anext(answer)
        for number, source in enumerate(sources):
            source.put(TokenDelta(str(number), 1), LAST)
        found = await asyncio.gather(*(_rest(answer) for answer in answers))
        assert [text(each) for each in found] == [f"{number}." for number in range(8)]
        assert len({answer.reply_to.gateway for answer in answers}) == len(sender._connections) == 1


async def _rest(answer: Answer) -> list[TokenDelta]:
    return [each async for each in answer]


async def test_error_of_an_answer_comes_after_its_deltas():
    async with receiving() as receiver, sending() as sender:
        source = Source(FIRST, TokenDelta("a", 1), DeadlineExceeded(5))
        answer = await ask(receiver, sender, source)
        seen = []
        with pytest.raises(DeadlineExceeded):
            async for delta in answer:
                seen.append(delta)
        assert text(seen) == "Raya"
        assert source.is_closed


async def test_cancelled_answer_closes_the_stream_behind_it():
    async with receiving() as receiver, sending() as sender:
        source = Source(FIRST)
        answer = await ask(receiver, sender, source)
        await anext(answer)
        answer.cancel()
        await source.closing.wait()


async def test_answers_end_with_the_gateway_that_asked_for_them_and_another_gateway_is_served():
    async with sending() as sender:
        source = Source(FIRST)
        async with receiving() as gone:
            answer = await ask(gone, sender, source)
            await anext(answer)
            connection = sender._connections[answer.reply_to.gateway]
        await connection._watching
        source.put(TokenDelta("a", 1))
        with pytest.raises(ComponentUnavailable, match="gateway"):
            await anext(answer)
        async with receiving() as receiver:
            again = await ask(receiver, sender, Source(FIRST, LAST))
            assert text(await _rest(again)) == "Ray."
            assert list(sender._connections) == [again.reply_to.gateway]


async def test_gateway_that_does_not_listen_is_named():
    async with receiving() as receiver:
        answer = await receiver.open()
    source = Source(FIRST)
    with pytest.raises(ComponentUnavailable, match=f"gateway.*127.0.0.1:{answer.reply_to.port}"):
        await DeltaSender().send(source, answer.reply_to)
    assert source.is_closed


@pytest.mark.parametrize(
    "frames", [pack(b"guess") + pack(encode({0: [FIRST]})), b"\xff\xff\xff\xff", b"GET / HTTP/1.1"]
)
async def test_stranger_is_cut_off_and_puts_nothing_into_an_answer(frames):
    async with receiving() as receiver:
        answer = await receiver.open()
        reader, writer = await asyncio.open_connection(answer.reply_to.host, answer.reply_to.port)
        writer.write(frames)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert answer._deltas.empty()


async def test_broken_frame_of_a_generator_ends_its_connection_alone(caplog):
    async with receiving() as receiver:
        answer = await receiver.open()
        reply_to = answer.reply_to
        reader, writer = await asyncio.open_connection(reply_to.host, reply_to.port)
        writer.write(pack(reply_to.secret.encode()) + pack(b"[[0, 7]]"))
        assert await reader.read() == b""
        writer.close()
        assert "a connection from a generator is closed" in caplog.text
        async with sending() as sender:
            again = await ask(receiver, sender, Source(FIRST, LAST))
            assert text(await _rest(again)) == "Ray."


async def test_call_that_ends_well_without_a_last_delta_is_an_error(monkeypatch):
    monkeypatch.setattr("engine.serving.deltas.receiver._LAST_FRAME_S", 0.01)
    async with receiving() as receiver:
        answer = await receiver.open()
        answer.follow(Call(asyncio.sleep(0)))
        with pytest.raises(ComponentUnavailable, match="ended before the answer was complete"):
            await anext(answer)


def test_secret_is_not_shown():
    assert "hidden" not in repr(ReplyTo("127.0.0.1", 1, "hidden", 0))
