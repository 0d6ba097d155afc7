"""Ray Serve's calls reach the placement, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID
from ray.serve.request_router import PendingRequest, RequestRouter

from engine.generation.placement.report import ReplicaReport
from engine.serving.replica_router import ReplicaRouter
from engine.values import GenerationRequest, Message

serials = count()


@dataclass
class Replica:
    name: str
    waiting_tokens: int = 0
    routing_stats: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replica_id = SimpleNamespace(unique_id=self.name)
        self.routing_stats = ReplicaReport(next(serials), self.waiting_tokens, 0, 0, 100_000, 1.0).as_json()


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicaRouter]:
    # Its own part starts tasks that talk to replicas.
    monkeypatch.setattr(RequestRouter, "update_replicas", lambda self, replicas: None)
    made = ReplicaRouter(DeploymentID("Generator", "test"), DeploymentHandleSource.REPLICA)
    made.initialize_state()
    yield made


def pending(name: str, call: str = "call") -> PendingRequest:
    request = GenerationRequest(name, (Message("user", f"{name} " * 500),))
    return PendingRequest([request], {}, SimpleNamespace(internal_request_id=call))


async def choose(router: ReplicaRouter, replicas: list[Replica], asked: PendingRequest | None) -> list[str]:
    ranks = await router.choose_replicas(replicas, asked)
    assert all(len(rank) == 1 for rank in ranks)
    return [replica.name for (replica,) in ranks]


async def found(asked: PendingRequest, replica: Replica) -> None:
    """Ray Serve has chosen where it goes."""
    asked.future.set_result(replica)
    await asyncio.sleep(0)


async def test_replicas_are_offered_one_by_one_and_the_least_busy_first(router: ReplicaRouter):
    replicas = [Replica("a", 900), Replica("b", 100), Replica("c", 500)]
    router.update_replicas(replicas)
    asked = pending("r")
    assert await choose(router, replicas, asked) == ["b", "c", "a"]
    assert asked.routing_context.should_backoff  # where none has room Ray Serve waits, in place of asking at once
    assert await choose(router, replicas[:1], None) == ["a"]


async def test_request_counts_where_it_went_until_it_is_done(router: ReplicaRouter):
    replicas = [Replica("a"), Replica("b", 50)]
    router.update_replicas(replicas)
    asked = pending("r")
    assert (await choose(router, replicas, asked))[0] == "a"
    await found(asked, replicas[1])  # a had no room
    assert router.outstanding["a"] == 0 < router.outstanding["b"]
    router.on_request_completed(replicas[1].replica_id, "call")
    assert set(router.outstanding.values()) == {0}


async def test_two_calls_of_one_request_end_one_by_one(router: ReplicaRouter):
    replicas = [Replica("a"), Replica("b")]
    router.update_replicas(replicas)
    for name, replica in (("answer", replicas[0]), ("score", replicas[1])):
        asked = pending(name)
        await choose(router, replicas, asked)
        await found(asked, replica)
    router.on_request_completed(replicas[0].replica_id, "call")
    assert router.outstanding["a"] == 0 < router.outstanding["b"]


async def test_request_that_was_refused_counts_where_it_went_in_the_end(router: ReplicaRouter):
    replicas = [Replica("a"), Replica("b", 50)]
    router.update_replicas(replicas)
    asked = pending("r")
    await choose(router, replicas, asked)
    await found(asked, replicas[0])
    asked.reset_future()
    await choose(router, replicas[1:], asked)
    await found(asked, replicas[1])
    assert router.outstanding["a"] == 0 < router.outstanding["b"]
    router.on_request_completed(replicas[1].replica_id, "call")
    assert set(router.outstanding.values()) == {0}


async def test_request_that_was_given_up_before_it_went_counts_nowhere(router: ReplicaRouter):
    replicas = [Replica("a"), Replica("b")]
    router.update_replicas(replicas)
    asked = pending("r")
    await choose(router, replicas, asked)
    assert sum(router.outstanding.values()) > 0
    asked.future.cancel()
    await asyncio.sleep(0)
    assert sum(router.outstanding.values()) == 0


async def test_calls_that_are_no_request_go_anywhere_and_count_nowhere(router: ReplicaRouter):
    replicas = [Replica("a", 10), Replica("b")]
    replicas[0].routing_stats = {}
    router.update_replicas(replicas)
    asked = PendingRequest([], {}, SimpleNamespace(internal_request_id="call"))
    assert set(await choose(router, replicas, asked)) == {"a", "b"}
    await found(asked, replicas[0])
    assert sum(router.outstanding.values()) == 0
