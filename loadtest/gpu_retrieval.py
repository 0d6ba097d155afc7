"""Exact search over millions of vectors on a GPU: first that it finds what float32 finds, then how fast.

python -m loadtest.gpu_retrieval --json docs/benchmarks/gpu_retrieval.json    1M and 10M rows, batches of 1 to 512
python -m loadtest.gpu_retrieval --rows 1000000 --quick                       one size, few calls
python -m loadtest.gpu_retrieval --dry-run                                    a few rows on the CPU: does it work?

torch multiplies blocks of rows and keeps the best; where faiss was built for GPUs, `faiss.knn_gpu` takes turns with it.
Half-precision rows are searched for more candidates, which are scored again in float32. The engine's own rows
(`engine`, fp16 only) take queries and give results on the host, as they do in a collection.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from engine.retrieval.index.gpu_rows import GpuRows, faiss_gpu
from loadtest.bench_format import Report
from loadtest.measures import percentile
from loadtest.retrieval.findings import Findings
from loadtest.retrieval.synthetic import DIM, clustered_rows, size_name

K = 10
NUM_PARITY_QUERIES = 64
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BLOCK_ROWS = 1 << 20
_CANDIDATES = 4 * K
# Another row than the reference's is excused where both scores lie this close: the order of summing decides there.
_TIE = 1e-5
# The engine rounds queries to half precision too.
_ENGINE_TIE = 1e-4

# Rows that the engine is given at once.
_APPENDED_ROWS = 1 << 20
# A case is not repeated after so many seconds, once it has been a few times.
_CASE_S, _LEAST_CALLS = 3.0, 5

# Queries [Q, E] float32 to ids [Q, K], on the device.
Search = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rows: tuple[int, ...]
    batches: tuple[int, ...]
    calls: int


FULL = Plan((1_000_000, 10_000_000), (1, 8, 32, 128, 512), 100)
QUICK = Plan((1_000_000, 10_000_000), (1, 32, 512), 20)
DRY = Plan((2_000, 5_000), (1, 4), 3)


def main(argv: list[str] | None = None) -> int:
    """Run it; 1 when a search misses what the reference finds."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.gpu_retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", type=int, help="default: 1000000 10000000")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="few batches and calls")
    parser.add_argument("--dry-run", action="store_true", help="a few rows on the CPU")
    parser.add_argument("--budget-s", type=float, default=3600.0, help="what does not fit is skipped, and said")
    parser.add_argument("--json", type=Path, help="write the figures here, as soon as there are some")
    options = parser.parse_args(argv)
    console = Console(highlight=False, width=160)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run searches a few rows on the CPU")
    if options.rows and min(options.rows) < _CANDIDATES:
        parser.error(f"--rows {min(options.rows)} is too few; allowed: {_CANDIDATES} and more")
    device = "cpu" if options.dry_run else "cuda"
    plan = DRY if options.dry_run else QUICK if options.quick else FULL
    torch.backends.cuda.matmul.allow_tf32 = False
    faiss, found, end_s = gpu_faiss(), Findings(), time.monotonic() + options.budget_s
    found.extra["faiss"] = "knn_gpu takes part" if faiss is not None else "no faiss for GPUs imports: torch alone"
    found.extra["engine"] = "faiss" if device == "cuda" and faiss_gpu() is not None else "torch"
    found.extra["workload"] = (
        f"{DIM} dimensions, unit vectors around sqrt(rows) random centres, inner product, k={K}, queries and results "
        "on the device (engine: on the host); parity: rows found of those that float32 finds among the same rows"
    )
    console.print(found.extra["faiss"])
    is_right = True
    for num_rows in options.rows or plan.rows:
        for name in options.dtypes:
            try:
                is_right &= _measure(num_rows, name, plan, device, faiss, found, console, end_s)
            except (RuntimeError, MemoryError) as error:  # out of memory, most likely: other sizes may fit
                is_right = False
                found.extra.setdefault("failed", {})[f"{name} {size_name(num_rows)}"] = str(error)[:300]
            if options.json is not None:
                Report("gpu_retrieval", found.rows, found.ratios, found.extra).write_json(options.json)
            if device == "cuda":
                torch.cuda.empty_cache()
    for key in ("engine", "parity", "failed", "skipped", "append_s_per_million_rows"):
        console.print(f"{key}: {found.extra.get(key, 'none')}", markup=False)
    for row in found.rows:
        if row.metric in ("latency_p50", "queries_per_s"):
            console.print(f"{row.case} | {row.system} | {row.value:.4g} {row.unit}", markup=False, soft_wrap=True)
    return 0 if is_right else 1


def gpu_faiss() -> Any:
    """The faiss module with torch tensors as arguments, None where none built for GPUs imports."""
    try:
        faiss: Any = importlib.import_module("faiss")
        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
            return None
        importlib.import_module("faiss.contrib.torch_utils")
    except ImportError:
        return None
    return faiss


def _measure(
    num_rows: int, dtype: str, plan: Plan, device: str, faiss: Any, found: Findings, console: Console, end_s: float
) -> bool:
    """Parity, then times of every search over rows of one size and dtype, in turn. False where parity fails."""
    size = f"{dtype} {size_name(num_rows)}"
    if time.monotonic() > end_s:
        found.extra.setdefault("skipped", {})[size] = "no time left"
        return True
    most_queries = max(*plan.batches, NUM_PARITY_QUERIES)
    rows, queries = clustered_rows(num_rows, most_queries, device=device, dtype=DTYPES[dtype])
    searches: dict[str, Search] = {"torch": lambda asked: torch_search(rows, asked)}
    if faiss is not None:
        resources = faiss.StandardGpuResources()
        searches["faiss"] = lambda asked: _faiss_search(faiss, resources, rows, asked)
    if dtype == "fp16":
        append_s: dict[str, float] = found.extra.setdefault("append_s_per_million_rows", {})
        needed_s = max(append_s.values(), default=0.0) * num_rows / 1e6
        if time.monotonic() + needed_s > end_s:
            found.extra.setdefault("skipped", {})[f"engine {size}"] = f"{needed_s:.0f} s needed to fill it"
        else:
            started = time.monotonic()
            own = _engine_rows(rows, device)
            append_s[size] = round((time.monotonic() - started) * 1e6 / num_rows, 2)
            on_host = queries.cpu().numpy()
            searches["engine"] = lambda asked: torch.from_numpy(own.search(on_host[: len(asked)], K)[0])
    is_right = True
    for system, search in list(searches.items()):
        tie = _ENGINE_TIE if system == "engine" else _TIE
        share = parity(search, rows, queries[:NUM_PARITY_QUERIES], tie)
        found.extra.setdefault("parity", {})[f"{system} {size}"] = f"recall@{K} {share:.4f}"
        console.print(f"{system} {size}: recall@{K} {share:.4f} of float32")
        if share < 1:
            is_right = False
            del searches[system]  # no figure of what is wrong
    for batch in plan.batches:
        if time.monotonic() > end_s:
            found.extra.setdefault("skipped", {})[f"{size} batch {batch}"] = "no time left"
            continue
        latencies = _latencies(searches, queries[:batch], plan.calls, device)
        case = f"index flat-{size} batch {batch}"
        for system, values in latencies.items():
            found.add(case, system, "latency_p50", "ms", values)
            found.add(case, system, "latency_p99", "ms", [percentile(values, 99)])
            found.add(case, system, "queries_per_s", "queries/s", [1e3 * batch / value for value in values])
            found.add(case, system, "memory", "bytes/row", [rows.element_size() * DIM])
    return is_right


def _latencies(searches: dict[str, Search], queries: Tensor, calls: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each call, the searches in turn."""
    latencies: dict[str, list[float]] = {system: [] for system in searches}
    began = time.monotonic()
    for number in range(calls + 1):
        for system, search in searches.items():
            started = time.perf_counter()
            search(queries)
            _wait(device)
            if number > 0:  # the first call warms up
                latencies[system].append(1e3 * (time.perf_counter() - started))
        if number >= _LEAST_CALLS and time.monotonic() - began > _CASE_S:
            break
    return latencies


def _engine_rows(rows: Tensor, device: str) -> GpuRows:
    """The engine's own, filled as a collection fills them."""
    own = GpuRows(DIM, device=device)
    own.reserve(len(rows))
    for first in range(0, len(rows), _APPENDED_ROWS):
        block = rows[first : first + _APPENDED_ROWS].float().cpu().numpy()
        own.append(np.arange(first, first + len(block)), block)
    return own


def torch_search(rows: Tensor, queries: Tensor) -> Tensor:
    """Ids [Q, K] of the best rows, block by block; candidates of half-precision rows are scored again in float32."""
    asked = queries.to(rows.dtype)
    num_kept = K if rows.dtype == torch.float32 else _CANDIDATES
    best = torch.empty(len(queries), 0, device=rows.device, dtype=rows.dtype)
    ids = torch.empty(len(queries), 0, device=rows.device, dtype=torch.int64)
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = asked @ rows[first : first + _BLOCK_ROWS].T  # [Q, B]
        scores, positions = block.topk(min(num_kept, block.shape[1]))
        best, ids = torch.cat([best, scores], 1), torch.cat([ids, positions + first], 1)
        best, chosen = best.topk(min(num_kept, best.shape[1]))
        ids = ids.gather(1, chosen)
    return ids if num_kept == K else _rescored(rows, queries, ids)


def _faiss_search(faiss: Any, resources: Any, rows: Tensor, queries: Tensor) -> Tensor:
    asked = queries.to(rows.dtype)
    num_kept = K if rows.dtype == torch.float32 else _CANDIDATES
    ids: Tensor = faiss.knn_gpu(resources, asked, rows, num_kept, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return ids if num_kept == K else _rescored(rows, queries, ids)


def _rescored(rows: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
    """The K best of candidates [Q, C] by float32 scores."""
    scores = torch.einsum("qce,qe->qc", rows[candidates].float(), queries)
    return candidates.gather(1, scores.topk(K).indices)


def parity(search: Search, rows: Tensor, queries: Tensor, tie: float = _TIE) -> float:
    """Recall@K against float32 products with the same rows; a row that ties with the last one counts as found."""
    best = torch.empty(len(queries), 0, device=rows.device)
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = queries @ rows[first : first + _BLOCK_ROWS].float().T
        best = torch.cat([best, block.topk(min(K, block.shape[1])).values], 1).topk(K).values
    ids = search(queries).to(rows.device)
    scores = torch.einsum("qke,qe->qk", rows[ids].float(), queries)
    is_distinct = torch.tensor([len(set(mine)) == K for mine in ids.tolist()], device=rows.device)
    is_found = (scores >= best[:, -1:] - tie) & is_distinct[:, None]
    return float(is_found.float().mean())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
