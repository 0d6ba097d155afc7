"""Seconds of one call, and what the device could do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear

# Calls of a CPU are repeated for so long, so that the clock's own cost vanishes.
_LEAST_S = 2e-3
_MAX_CALLS = 1000
# Written before each call on a GPU: more than its caches hold.
_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Measured rates: bytes read and written by a large copy, and operations of a large matrix product, a second."""

    bytes_s: float
    flops_s: float

    def least_s(self, num_bytes: int, flops: int) -> float:
        """Of work that moves and computes so much: the longer of the two."""
        return max(num_bytes / self.bytes_s, flops / self.flops_s)


class CpuClock:
    """Wall time of calls in a row; what they read stays in the caches, as far as it fits."""

    def timer(self, work: Callable[[], object]) -> Callable[[], float]:
        """What measures the seconds of one call, each time that it is called. Warms up first."""
        work()
        once_s = _wall_s(work, 1)
        count = min(max(int(_LEAST_S / max(once_s, 1e-9)), 1), _MAX_CALLS)
        return lambda: _wall_s(work, count) / count


class GpuClock:
    """Time between two events of the device around one call, after its caches were overwritten."""

    def __init__(self) -> None:
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def timer(self, work: Callable[[], object]) -> Callable[[], float]:
        """See CpuClock."""
        for _ in range(3):  # compiles
            work()
        new_event: Any = torch.cuda.Event

        def seconds() -> float:
            start, end = (new_event(enable_timing=True) for _ in range(2))
            self._flush.zero_()  # the host launches the call meanwhile
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(end)) / 1000

        return seconds


Clock = CpuClock | GpuClock


def measure_ceiling(clock: Clock, device: str, dtype: torch.dtype) -> Ceiling:
    """Copies far larger than the caches, and products as large as a GPU needs to be busy or a CPU to be at its best."""
    is_cuda = device == "cuda"
    source = torch.ones((1 << 28) if is_cuda else (1 << 26), device=device)
    target = torch.empty_like(source)
    copy_s = _median_s(clock, lambda: target.copy_(source))
    rows, inner, outputs = (8192, 8192, 8192) if is_cuda else (512, 2048, 4096)
    product_s = float("inf")
    # On a CPU torch may widen a half format in software, slower than it multiplies float32.
    for each in {dtype} if is_cuda else {dtype, torch.float32}:
        x, weight = (torch.randn(n, inner, device=device).to(each) for n in (rows, outputs))
        product_s = min(product_s, _median_s(clock, partial(linear, x, weight)))
    return Ceiling(2 * source.numel() * 4 / copy_s, 2 * rows * inner * outputs / product_s)


def _median_s(clock: Clock, work: Callable[[], object]) -> float:
    timer = clock.timer(work)
    return median(timer() for _ in range(5))


def _wall_s(work: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - started
