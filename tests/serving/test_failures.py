"""What becomes of a call whose replica dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError

from engine.errors import ComponentUnavailable, InvalidRequest, SwitchyardError
from engine.serving.failures import call_any, stream


@dataclass
class Replica:
    """Streams its items; an error among them is raised."""

    items: Sequence[str | Exception]
    is_cancelled: bool = False

    async def __aiter__(self) -> AsyncIterator[str]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    def cancel(self) -> None:
        self.is_cancelled = True


async def read(replicas: list[Replica], num_tries: int) -> list[str]:
    starting = iter(replicas)

    async def start() -> Replica:
        return next(starting)

    return [each async for each in stream("generator", start, num_tries=num_tries)]


def test_answer_begins_anew_on_another_replica_when_the_first_died_before_its_first_token():
    replicas = [Replica([ActorDiedError()]), Replica(["a", "b"])]
    assert asyncio.run(read(replicas, num_tries=2)) == ["a", "b"]
    assert all(replica.is_cancelled for replica in replicas)


@pytest.mark.parametrize(
    ("first", "num_tries"),
    [
        pytest.param(["a", ActorDiedError()], 2, id="after the first token"),
        pytest.param([ActorDiedError()], 1, id="no other replica"),
    ],
)
def test_answer_ends_with_an_error_that_names_the_generator(first, num_tries):
    replicas = [Replica(first), Replica(["again"])]
    with pytest.raises(ComponentUnavailable, match=r"generator.*died"):
        asyncio.run(read(replicas, num_tries))
    assert not replicas[1].is_cancelled, "begun without need"


def test_answer_is_tried_no_more_often_than_asked():
    replicas = [Replica([ActorDiedError()]), Replica([ActorDiedError()]), Replica(["late"])]
    with pytest.raises(ComponentUnavailable):
        asyncio.run(read(replicas, num_tries=2))
    assert not replicas[2].is_cancelled


def test_error_that_the_replica_raised_is_not_tried_again():
    replicas = [Replica([ComponentUnavailable("generator", "its queue is full")]), Replica(["again"])]
    with pytest.raises(ComponentUnavailable, match="its queue is full"):
        asyncio.run(read(replicas, num_tries=2))
    assert not replicas[1].is_cancelled


def read_one(answers: Sequence[str | Exception], num_tries: int) -> str:
    asking = iter(answers)

    async def start() -> str:
        answer = next(asking)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return asyncio.run(call_any("retriever", start, num_tries=num_tries))


def test_read_is_answered_by_another_replica_when_the_first_died():
    assert read_one([ActorDiedError(), "found"], num_tries=2) == "found"


def test_read_that_no_replica_is_left_for_names_the_component():
    for num_tries in (1, 2):
        with pytest.raises(ComponentUnavailable, match=r"retriever.*died"):
            read_one([ActorDiedError()] * num_tries, num_tries)


def test_error_that_a_read_raised_is_not_tried_again():
    with pytest.raises(InvalidRequest):
        read_one([InvalidRequest("k=0"), "again"], num_tries=2)


@pytest.mark.parametrize(
    ("raised", "reported"),
    [
        pytest.param(InvalidRequest("k=0"), "k=0", id="an error of ours as it is"),
        pytest.param(KeyError("secret"), "an unexpected error happened", id="a bug without its words"),
        pytest.param(AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata()), r"retriever.*died", id="gRPC's silence"),
        pytest.param(TimeoutError(), r"retriever.*died", id="no answer in time"),
    ],
)
def test_error_that_gRPC_brings_is_one_of_ours(raised, reported):
    with pytest.raises(SwitchyardError, match=reported):
        read_one([raised], num_tries=1)
