"""Definitions of what is measured about streamed answers. Every load test and benchmark takes them from here.

Times are seconds on one monotonic clock, counted from the moment the request was sent. A chunk is what the client
saw arrive at once; it may hold several tokens, so ITL describes what a reader sees and TPOT what the engine does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np

REPORTED_PERCENTILES = (20, 50, 80, 95, 99)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that arrived `at_s` seconds after its request was sent; empty where a chunk carries no content."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Slo:
    """Service level objective of one answer. Both limits are in seconds and inclusive."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Served:
    """One complete answer. `tpot_s` is None where it does not exist (fewer than two tokens) or no count is known."""

    ttft_s: float
    tpot_s: float | None


def ttft_s(chunks: Iterable[Chunk]) -> float:
    """Time to first token: arrival of the first chunk with content, in seconds.

    An empty first chunk, which only names the role, does not count (AIPerf defines it so).
    Raises: ValueError when no chunk has content.
    """
    for chunk in chunks:
        if chunk.text:
            return chunk.at_s
    raise ValueError("no chunk has content, so there is no first token")


def gaps_s(chunks: Iterable[Chunk]) -> list[float]:
    """Inter-token latencies as a client sees them: seconds between neighbouring chunks with content."""
    arrivals = [chunk.at_s for chunk in chunks if chunk.text]
    return [later - earlier for earlier, later in pairwise(arrivals)]


def itl_s(chunks: Iterable[Chunk]) -> float | None:
    """Mean gap of one answer, in seconds; None when fewer than two chunks have content."""
    gaps = gaps_s(chunks)
    return fmean(gaps) if gaps else None


def tpot_s(latency_s: float, ttft_s: float, output_tokens: int) -> float:
    """Time per output token after the first, in seconds: (latency - TTFT) / (output_tokens - 1).

    vLLM and SGLang define it so; GuideLLM divides the whole latency by all tokens and calls this value ITL.
    Raises: ValueError when output_tokens < 2, where the quantity does not exist.
    """
    if output_tokens < 2:
        raise ValueError(f"output_tokens={output_tokens}: TPOT needs at least 2 tokens")
    return (latency_s - ttft_s) / (output_tokens - 1)


def meets(answer: Served, slo: Slo) -> bool:
    """Whether one answer keeps the objective. An answer without TPOT is judged by TTFT alone."""
    return answer.ttft_s <= slo.ttft_s and (answer.tpot_s is None or answer.tpot_s <= slo.tpot_s)


def goodput_per_s(answers: Iterable[Served], slo: Slo, duration_s: float) -> float:
    """Complete answers per second that keep the objective (DistServe, OSDI 2024).

    Failed and rejected requests add to `duration_s` and to nothing else.
    Raises: ValueError when duration_s is not positive.
    """
    if duration_s <= 0:
        raise ValueError(f"duration_s={duration_s}: goodput needs a positive duration")
    return sum(meets(answer, slo) for answer in answers) / duration_s


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile with linear interpolation between neighbours, 0 <= percent <= 100 (numpy's default).

    Raises: ValueError when `values` is empty.
    """
    if not len(values):
        raise ValueError(f"p{percent:g} of no values does not exist")
    return float(np.percentile(values, percent))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`{"p20", "p50", "p80", "p95", "p99"}` of the values. Raises: ValueError when empty."""
    return {f"p{percent}": percentile(values, percent) for percent in REPORTED_PERCENTILES}
