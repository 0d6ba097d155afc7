"""What a router knows of one replica: its latest report, and the requests sent there since."""

from __future__ import annotations

from collections import deque

from engine.generation.placement.report import ReplicaReport

# An answer in progress takes one token of each of the steps that a prompt needs, some sixteen for a long one.
RUNNING_TOKENS = 16
# Where keys and values leave no room, a request waits for answers to end: above this share of the slots the wait grows
# to that of a whole long prompt.
_KV_FREE_SHARE = 0.8
_KV_FULL_TOKENS = 4096
# Reports come every second; after several that did not, the last one tells nothing.
MAX_REPORT_AGE_S = 5.0
# A report takes up to so long to arrive: what was sent within may not be in it.
_REPORT_DELAY_S = 0.3
# How long an adapter that was sent there is taken to have a slot, whatever a report says that may be older.
_WARM_S = 2.0
# More than a replica takes in: a request whose end was never heard of is dropped in the end.
_MAX_REQUESTS = 4096


class ReplicaLedger:
    """Prompts that wait are a queue that the replica works off at the speed it reports, and that requests add to."""

    def __init__(self) -> None:
        self._report: ReplicaReport | None = None
        self._reported_s = 0.0
        self._answers = 0.0  # what answers in progress cost a prompt, as of the report
        self._queue = 0.0  # prompt tokens that waited at `_queue_s`
        self._queue_s = 0.0
        self._latest: deque[tuple[float, int]] = deque()
        self._requests: dict[str, int] = {}
        self._used_s: dict[str, float] = {}
        self.outstanding = 0

    def note(self, report: ReplicaReport, now_s: float) -> bool:
        """Take in a report; False: it was there already."""
        if self._report is not None and report.serial == self._report.serial:
            return False
        self._report, self._reported_s = report, now_s
        pressure = max(report.kv_tokens / max(report.max_kv_tokens, 1) - _KV_FREE_SHARE, 0) / (1 - _KV_FREE_SHARE)
        self._answers = RUNNING_TOKENS * report.running + _KV_FULL_TOKENS * pressure
        while self._latest and self._latest[0][0] < now_s - _REPORT_DELAY_S:
            self._latest.popleft()
        self._queue, self._queue_s = report.waiting_tokens + sum(tokens for _, tokens in self._latest), now_s
        self._used_s = {name: used_s for name, used_s in self._used_s.items() if now_s - used_s < _WARM_S}
        return True

    def load(self, now_s: float) -> float | None:
        """Tokens of work there; None without a report of late."""
        if self._report is None or now_s - self._reported_s > MAX_REPORT_AGE_S:
            return None
        return self._answers + self._waiting(now_s)

    def is_warm(self, adapter: str, now_s: float) -> bool:
        """Whether the adapter is in a slot there, as far as is known."""
        if self._report is not None and adapter in self._report.adapters:
            return True
        used_s = self._used_s.get(adapter)
        return used_s is not None and now_s - used_s < _WARM_S

    def requests(self) -> list[str]:
        """Those sent and not removed."""
        return list(self._requests)

    def add(self, request_id: str, num_new_tokens: int, adapter: str | None, now_s: float) -> list[str]:
        """A request was sent there; returns those that are dropped for it."""
        self._queue, self._queue_s = self._waiting(now_s) + num_new_tokens, now_s
        self._latest.append((now_s, num_new_tokens))
        if len(self._latest) > _MAX_REQUESTS:
            self._latest.popleft()
        self._requests[request_id] = num_new_tokens + RUNNING_TOKENS
        self.outstanding += num_new_tokens + RUNNING_TOKENS
        if adapter is not None:
            self._used_s[adapter] = now_s
        dropped = []
        while len(self._requests) > _MAX_REQUESTS:
            dropped.append(next(iter(self._requests)))
            self.remove(dropped[-1])
        return dropped

    def remove(self, request_id: str) -> None:
        """The request is done, or went elsewhere. What it added to the queue is worked off with the rest."""
        self.outstanding -= self._requests.pop(request_id, 0)

    def _waiting(self, now_s: float) -> float:
        speed = 0.0 if self._report is None else self._report.tokens_per_s
        return max(self._queue - speed * (now_s - self._queue_s), 0)
