"""What the engine tells of itself: counts and step times, written by its thread, read by any."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from statistics import median
from time import monotonic

from engine.generation.adapters.slots import SlotTable
from engine.generation.protocol import EngineStats
from engine.generation.scheduler import Scheduler
from engine.generation.sequence import BLOCK_TOKENS

_NUM_STEP_TIMES = 256


class Progress:
    """Figures of one engine. The engine's lock guards `publish` and `stats`."""

    def __init__(self, num_blocks: int) -> None:
        """`num_blocks` KV blocks are there in all."""
        self.output_tokens = 0
        self.slotted: frozenset[str] = frozenset()  # digests of the adapters that have a slot
        self._step_s: deque[float] = deque(maxlen=_NUM_STEP_TIMES)
        self._latest_s = monotonic()
        self._max_kv_tokens = num_blocks * BLOCK_TOKENS
        self._snapshot = EngineStats(0, 0, 0, self._max_kv_tokens, 0)

    @property
    def quiet_s(self) -> float:
        """Seconds since the latest `note`."""
        return monotonic() - self._latest_s

    def note(self) -> None:
        """Something was done, or there was nothing to do until now."""
        self._latest_s = monotonic()

    def observe(self, step_s: float) -> None:
        """A step took so many seconds."""
        self._step_s.append(step_s)

    def publish(self, scheduler: Scheduler, slots: SlotTable) -> None:
        """Note how the batch stands between two steps."""
        self.slotted = slots.digests
        self._snapshot = EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_tokens=scheduler.num_used_blocks * BLOCK_TOKENS,
            max_kv_tokens=self._max_kv_tokens,
            output_tokens=0,
            prompt_tokens=scheduler.prompt_tokens,
            cached_tokens=scheduler.cached_tokens,
            num_preemptions=scheduler.num_preemptions,
            adapter_swaps=slots.num_swaps,
            waiting_tokens=scheduler.num_waiting_tokens,
        )

    def stats(self, num_jobs: int) -> EngineStats:
        """The latest snapshot, where `num_jobs` are in flight by now."""
        return replace(
            self._snapshot,
            running=min(self._snapshot.running, num_jobs),
            waiting=max(num_jobs - self._snapshot.running, 0),
            output_tokens=self.output_tokens,
            step_ms=1000 * median(self._step_s) if self._step_s else 0.0,
        )
