"""Exact search over millions of vectors on a GPU: first that it finds what float32 finds, then how fast.

python -m loadtest.gpu_retrieval --json docs/benchmarks/gpu_retrieval.json    1M and 10M rows, batches of 1 to 512
python -m loadtest.gpu_retrieval --rows 1000000 --quick                       one size, few calls
python -m loadtest.gpu_retrieval --dry-run                                    a few rows on the CPU: does it work?

torch multiplies blocks of rows and keeps the best; where faiss was built for GPUs, `faiss.knn_gpu` takes turns with it.
Half-precision rows are searched for more candidates, which are scored again in float32.
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

import torch
from rich.console import Console
from torch import Tensor

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
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    console = Console(stderr=True, highlight=False)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run searches a few rows on the CPU")
    if options.rows and min(options.rows) < _CANDIDATES:
        parser.error(f"--rows {min(options.rows)} is too few; allowed: {_CANDIDATES} and more")
    device = "cpu" if options.dry_run else "cuda"
    plan = DRY if options.dry_run else QUICK if options.quick else FULL
    torch.backends.cuda.matmul.allow_tf32 = False
    faiss, found = gpu_faiss(), Findings()
    found.extra["faiss"] = "knn_gpu takes part" if faiss is not None else "no faiss for GPUs imports: torch alone"
    console.print(found.extra["faiss"])
    for num_rows in options.rows or plan.rows:
        for name in options.dtypes:
            if not _measure(num_rows, name, plan, device, faiss, found, console):
                return 1
    found.extra["workload"] = (
        f"{DIM} dimensions, unit vectors around sqrt(rows) random centres, inner product, k={K}, queries and results "
        "on the device; parity: rows found of those that float32 finds among the same rows"
    )
    report = Report("gpu_retrieval", found.rows, found.ratios, found.extra)
    report.print_table(Console())
    if options.json is not None:
        report.write_json(options.json)
    return 0


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


def _measure(num_rows: int, dtype: str, plan: Plan, device: str, faiss: Any, found: Findings, console: Console) -> bool:
    """Parity, then times of every search over rows of one size and dtype, in turn. False where parity fails."""
    most_queries = max(*plan.batches, NUM_PARITY_QUERIES)
    rows, queries = clustered_rows(num_rows, most_queries, device=device, dtype=DTYPES[dtype])
    searches: dict[str, Search] = {"torch": lambda asked: torch_search(rows, asked)}
    if faiss is not None:
        resources = faiss.StandardGpuResources()
        searches["faiss"] = lambda asked: _faiss_search(faiss, resources, rows, asked)
    size = f"{dtype} {size_name(num_rows)}"
    for system, search in searches.items():
        share = parity(search, rows, queries[:NUM_PARITY_QUERIES])
        found.extra.setdefault("parity", {})[f"{system} {size}"] = f"recall@{K} {share:.4f}"
        console.print(f"{system} {size}: recall@{K} {share:.4f} of float32")
        if share < 1:
            return False
    for batch in plan.batches:
        case = f"index flat-{size} batch {batch}"
        latencies: dict[str, list[float]] = {system: [] for system in searches}
        for number in range(plan.calls + 1):
            for system, search in searches.items():
                started = time.perf_counter()
                search(queries[:batch])
                _wait(device)
                if number > 0:  # the first call warms up
                    latencies[system].append(1e3 * (time.perf_counter() - started))
        for system, values in latencies.items():
            found.add(case, system, "latency_p50", "ms", values)
            found.add(case, system, "latency_p99", "ms", [percentile(values, 99)])
            found.add(case, system, "queries_per_s", "queries/s", [1e3 * batch / value for value in values])
            found.add(case, system, "memory", "bytes/row", [rows.element_size() * DIM])
    return True


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


def parity(search: Search, rows: Tensor, queries: Tensor) -> float:
    """Recall@K against float32 products with the same rows; a row that ties with the last one counts as found."""
    best = torch.empty(len(queries), 0, device=rows.device)
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = queries @ rows[first : first + _BLOCK_ROWS].float().T
        best = torch.cat([best, block.topk(min(K, block.shape[1])).values], 1).topk(K).values
    ids = search(queries)
    scores = torch.einsum("qke,qe->qk", rows[ids].float(), queries)
    is_distinct = torch.tensor([len(set(mine)) == K for mine in ids.tolist()], device=rows.device)
    is_found = (scores >= best[:, -1:] - _TIE) & is_distinct[:, None]
    return float(is_found.float().mean())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
