"""Exact search of a million half-precision vectors on the device: right first, then against the rate of copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from engine.retrieval.index.gpu_rows import faiss_gpu
from engine.retrieval.index.products import best_products
from kernels.masked_topk import masked_topk
from loadtest.bench_format import Ratio, Row, paired_ratio, spread
from loadtest.gpu.bars import ENGINE_SEARCH, KERNEL_SEARCH, SEARCH_CASE
from loadtest.gpu.record import Record
from loadtest.kernels.case import Draw
from loadtest.kernels.clock import CpuClock, GpuClock, measure_ceiling

TORCH, FAISS = "torch", "faiss"
NUM_ROWS, DIM, BATCH, K = 1_000_000, 384, 64, 10
DRY_ROWS = 3_000
_ROUNDS = 15
# Of a score; other rows are excused where their scores lie this close.
_NEAR = 1e-4

Search = Callable[[], tuple[Tensor, Tensor]]


def race_search(record: Record, device: str, *, is_dry: bool) -> None:
    """Queries and results on the device. `engine` is what a collection without a filter is searched with."""
    draw = Draw(device, torch.float16)
    rows, queries = (normalize(draw(n, DIM), dim=1) for n in (DRY_ROWS if is_dry else NUM_ROWS, BATCH))
    systems: dict[str, Search] = {
        ENGINE_SEARCH: partial(best_products, queries, rows, K),
        KERNEL_SEARCH: partial(masked_topk, queries, rows, K),
        TORCH: lambda: _by_torch(queries, rows),
    }
    found = faiss_gpu() if device == "cuda" else None
    if found is None:
        record.found.extra.setdefault("missing", {})[FAISS] = "no FAISS built for GPUs that sees one"
    else:
        faiss, resources = found
        by_faiss = partial(faiss.knn_gpu, resources, queries, rows, K, metric=faiss.METRIC_INNER_PRODUCT)
        systems |= {ENGINE_SEARCH: by_faiss, FAISS: by_faiss, "products": systems[ENGINE_SEARCH]}
    best = (queries.float() @ rows.float().T).topk(K).values
    for name, search in systems.items():
        if name in (TORCH, FAISS):
            continue
        scores, ids = search()
        own = torch.einsum("qke,qe->qk", rows[ids].float(), queries.float())
        error = float(torch.maximum((scores.float() - best).abs(), (own - best).abs()).max())
        record.check(f"search {name}", is_right=error <= _NEAR, words=f"scores within {error:.2g} of float32's")
    if record.failed:
        return
    clock = GpuClock() if device == "cuda" else CpuClock()
    ceiling = measure_ceiling(clock, device, torch.float16)
    bound_s = ceiling.least_s(rows.numel() * rows.element_size(), 0)
    timers = {name: clock.timer(search) for name, search in systems.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(1 if is_dry else _ROUNDS):
        for name, timer in timers.items():
            seconds[name].append(timer())
    for name, values in seconds.items():
        record.found.rows.append(Row(SEARCH_CASE, name, "latency_us", "us", *spread([1e6 * each for each in values])))
        shares = [100 * bound_s / each for each in values]
        record.found.rows.append(Row(SEARCH_CASE, name, "share_of_bound", "%", *spread(shares)))
        if name not in (ENGINE_SEARCH, FAISS):
            ratio = paired_ratio(seconds[ENGINE_SEARCH], values, higher_is_better=False)
            record.found.ratios.append(Ratio(SEARCH_CASE, "latency_us", name, *ratio))
    record.save()


def _by_torch(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    found = (queries @ rows.T).topk(K)
    return found.values, found.indices
