"""Choose a replica for a request: where the least work stands before its first token. No Ray, clock or I/O.

One unit, tokens of work: what waits there, minus what of the prompt is probably cached there, plus what putting the
adapter into a slot is worth. As in Preble (arXiv:2407.00023), reuse is weighed against load, never put above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from math import ceil

from engine.generation.placement.adapter_shares import AdapterShares
from engine.generation.placement.ledger import ReplicaLedger
from engine.generation.placement.report import ReplicaReport
from engine.generation.placement.sketch import PrefixSketch
from engine.generation.placement.work import Work

# A slot swap copies some tens of MB to the device, a few milliseconds in which about a hundred prompt tokens are
# computed, and the adapter that gave way will want to come back: twice that.
SWAP_TOKENS = 256
# An adapter gets another replica when its share is that much of a replica's above what it has, so that a share near
# the limit does not move it to and fro.
_SHARE_MARGIN = 0.25


class Placement:
    """One router's view of the replicas. Not for several threads at once."""

    def __init__(self, *, swap_tokens: int = SWAP_TOKENS) -> None:
        self._swap_tokens = swap_tokens
        self._replicas: dict[str, ReplicaLedger] = {}
        self._capacities: dict[str, int] = {}
        self._sketch = PrefixSketch()
        self._shares = AdapterShares()
        self._places: dict[str, str] = {}  # of requests sent and not done
        self._turns = count()

    def keep(self, replicas: Sequence[str]) -> None:
        """These replicas are there, no others."""
        for gone in self._replicas.keys() - set(replicas):
            for request_id in self._replicas.pop(gone).requests():
                self._places.pop(request_id, None)
            self._capacities.pop(gone, None)
            self._sketch.forget(gone)
        for replica in replicas:
            self._replicas.setdefault(replica, ReplicaLedger())

    def report(self, replica: str, report: ReplicaReport, now_s: float) -> None:
        """The latest a replica says of itself; the same one may come again and again."""
        if self._replicas.setdefault(replica, ReplicaLedger()).note(report, now_s):
            self._capacities[replica] = report.max_kv_tokens

    def rank(self, work: Work | None, now_s: float) -> list[str]:
        """All replicas, the best first. None: a question that costs nothing."""
        loads = self._loads(now_s)
        if work is not None:
            cached = self._sketch.cached(work.pieces, self._capacities, now_s)
            for replica, tokens in cached.items():
                if replica in loads:
                    loads[replica] -= min(tokens, work.tokens)
            for replica in self._cold(work.adapter, now_s):
                loads[replica] += self._swap_tokens
        names = list(loads)
        # Equal ones in turn, so that no replica is everybody's first.
        turn = next(self._turns) % len(names) if names else 0
        return sorted(names[turn:] + names[:turn], key=loads.__getitem__)

    def sent(self, work: Work, replica: str, now_s: float) -> None:
        """The request goes there; said again of another replica, it goes there instead."""
        before = self._places.get(work.id)
        if before == replica:
            return
        if before is not None:
            self._replicas[before].remove(work.id)
        ledger = self._replicas.setdefault(replica, ReplicaLedger())
        cached = self._sketch.cached(work.pieces, self._capacities, now_s).get(replica, 0)
        num_new = max(work.tokens - cached, 0)
        self._sketch.add(replica, work.pieces, num_new, now_s)
        self._places[work.id] = replica
        for dropped in ledger.add(work.id, num_new, work.adapter, now_s):
            self._places.pop(dropped, None)
        if before is None:
            self._shares.count(work.adapter)

    def done(self, request_id: str) -> None:
        """The answer is complete, or was given up; unknown ids are ignored."""
        replica = self._places.pop(request_id, None)
        if replica is not None:
            self._replicas[replica].remove(request_id)

    def place(self, request_id: str) -> str | None:
        """Where a request that is not done was sent."""
        return self._places.get(request_id)

    def _loads(self, now_s: float) -> dict[str, float]:
        """Tokens of work at each replica. One that has not reported is taken for as busy as the mean of the others, or
        as what this router has outstanding there: a replica that hangs is not everybody's first, nor a new one.
        """
        reported = {name: load for name, each in self._replicas.items() if (load := each.load(now_s)) is not None}
        mean = sum(reported.values()) / len(reported) if reported else 0.0
        return {
            name: reported[name] if name in reported else max(mean, each.outstanding)
            for name, each in self._replicas.items()
        }

    def _cold(self, adapter: str | None, now_s: float) -> Sequence[str]:
        """Replicas where the adapter would cost a swap; none while it has fewer than its traffic is worth."""
        if adapter is None:
            return ()
        cold = [name for name, each in self._replicas.items() if not each.is_warm(adapter, now_s)]
        num_warm = len(self._replicas) - len(cold)
        wanted = ceil(self._shares.share(adapter) * len(self._replicas) - _SHARE_MARGIN)
        return () if num_warm < wanted else cold

    @property
    def outstanding(self) -> Mapping[str, float]:
        """Tokens of work that this router sent to each replica and that are not done."""
        return {name: each.outstanding for name, each in self._replicas.items()}
