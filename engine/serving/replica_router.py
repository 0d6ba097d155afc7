"""Ray Serve's side of the choice between several generators; the choice itself is `placement`'s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from threading import Lock
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from engine.generation.placement.placement import Placement
from engine.generation.placement.report import ReplicaReport
from engine.generation.placement.work import Work, work_of
from engine.values import GenerationRequest, ScoreRequest


class ReplicaRouter(RequestRouter):  # type: ignore[misc]
    """One for each process that calls the generators. Ray Serve calls it from its loop, but ends of requests come from
    other threads.
    """

    def initialize_state(self, **_kwargs: Any) -> None:
        """Called once, before anything else."""
        self._placement = Placement()
        self._lock = Lock()
        # By Ray's id, which the calls of one HTTP request share: what each asks for, and which replica it is to get.
        self._works: dict[str, dict[str, tuple[Work, asyncio.Future[RunningReplica]]]] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called when replicas come, go or tell news of themselves."""
        now_s = time.monotonic()
        with self._lock:
            self._placement.keep([_name(replica.replica_id) for replica in replicas])
            for replica in replicas:
                report = ReplicaReport.parse(replica.routing_stats or {})
                if report is not None:
                    self._placement.report(_name(replica.replica_id), report, now_s)
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The candidates one by one, the best first: Ray Serve takes the first that has room."""
        now_s = time.monotonic()
        candidates = {_name(replica.replica_id): replica for replica in candidate_replicas}
        with self._lock:
            work = None if pending_request is None else self._work(pending_request)
            ranked = [candidates[name] for name in self._placement.rank(work, now_s) if name in candidates]
            if work is not None and ranked:
                # At once, or all of a burst would choose the same one.
                self._placement.sent(work, _name(ranked[0].replica_id), now_s)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[replica] for replica in ranked]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """It ended, whichever way."""
        with self._lock:
            works = self._works.get(internal_request_id, {})
            for request_id in works:
                if self._placement.place(request_id) == _name(replica_id):
                    self._end(internal_request_id, request_id)
                    return

    @property
    def outstanding(self) -> Mapping[str, float]:
        """Tokens of work of the requests that went from here to each replica and have not ended."""
        with self._lock:
            return self._placement.outstanding

    def _work(self, pending: PendingRequest) -> Work | None:
        """What the call asks for; None where it is no answer or score."""
        request = pending.args[0] if pending.args else None
        if not isinstance(request, GenerationRequest | ScoreRequest):
            return None
        call = pending.metadata.internal_request_id
        works = self._works.setdefault(call, {})
        known = works.get(request.id)
        # Another try has another future.
        if known is None or known[1] is not pending.future:
            known = works[request.id] = work_of(request.id, request), pending.future
            # Ray Serve's own word that it went there comes with the end of the answer, where replicas talk gRPC.
            pending.future.add_done_callback(partial(self._found, call, request.id))
        return known[0]

    def _found(self, call: str, request_id: str, future: asyncio.Future[RunningReplica]) -> None:
        """It goes there, perhaps because a better one had no room, or the caller went before one was found."""
        with self._lock:
            work, newest = self._works.get(call, {}).get(request_id, (None, None))
            if work is None or newest is not future:
                return
            if future.cancelled():
                self._end(call, request_id)
            else:
                self._placement.sent(work, _name(future.result().replica_id), time.monotonic())

    def _end(self, call: str, request_id: str) -> None:
        self._placement.done(request_id)
        works = self._works.get(call, {})
        works.pop(request_id, None)
        if not works:
            self._works.pop(call, None)


def _name(replica_id: ReplicaID) -> str:
    name: str = replica_id.unique_id
    return name
