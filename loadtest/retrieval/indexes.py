"""Kinds of index over the same synthetic rows: how fast, how big, how long to build and how exact each is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine.config import RetrieverSettings
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.freezing import Freezer
from engine.retrieval.index.rows import Part
from loadtest.bench_format import Row, spread
from loadtest.measures import percentile
from loadtest.retrieval.progress import progress_bar
from loadtest.retrieval.synthetic import DIM, clustered_rows, size_name

Ids = NDArray[np.int64]
Search = Callable[[Vectors], Ids]

K = 10
NUM_QUERIES = 256
NPROBE = (1, 4, 16, 64)
EF_SEARCH = (16, 64, 256)
HNSW_LINKS = 32
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Least recall of a choice by size: as good as exact, and good enough where several passages are shown anyway.
RECALLS = (0.999, 0.95)


# Exact search is kept up to what takes as long; `retriever.frozen_rows` is about the number of rows on 2 cores.
EXACT_BUDGET_MS = 25.0


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How much is measured."""

    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    max_calls: int
    seconds_per_case: float
    largest_graph: int  # rows up to which HNSW is built, which takes by far the longest


@dataclass(frozen=True, slots=True)
class Built:
    """An index that is ready, with one setting of its search."""

    name: str
    build_s: float
    bytes_per_row: float
    search: Search


@dataclass(frozen=True, slots=True)
class Timed:
    """One index at one size and batch. `latencies_ms` are those of whole batches."""

    name: str
    size: int
    batch: int
    build_s: float
    bytes_per_row: float
    recall: float
    latencies_ms: Sequence[float] = field(repr=False)

    @property
    def p50_ms(self) -> float:
        """Median latency of a batch."""
        return percentile(self.latencies_ms, 50)

    def rows(self) -> list[Row]:
        """The report's rows."""
        case = f"index {self.name} {size_name(self.size)} batch {self.batch}"
        library = {"gemm": "torch", "froz": "switchyard"}.get(self.name[:4], "faiss")
        values = {
            ("latency_p50", "ms"): spread(self.latencies_ms),
            ("latency_p99", "ms"): spread([percentile(self.latencies_ms, 99)]),
            ("build", "s"): spread([self.build_s]),
            ("recall@10", "share"): spread([self.recall]),
            ("memory", "bytes/row"): spread([self.bytes_per_row]),
        }
        return [Row(case, library, metric, unit, *value) for (metric, unit), value in values.items()]


def measure_indexes(plan: IndexPlan, threads: int, console: Console, *, dim: int = DIM) -> list[Timed]:
    """Every index at every size and batch. Recall is against the exact inner products in float32."""
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    timed: list[Timed] = []
    for size in plan.sizes:
        rows, drawn = (each.numpy() for each in clustered_rows(size, NUM_QUERIES, dim=dim, dtype=torch.float32))
        queries: Vectors = drawn
        _, exact = faiss.knn(queries, rows, K, metric=faiss.METRIC_INNER_PRODUCT)
        kinds = 5 + len(NPROBE) + (len(EF_SEARCH) if size <= plan.largest_graph else 0)
        with progress_bar(console, f"indexes over {size_name(size)} rows", kinds) as advance:
            for built in _indexes(rows, threads, with_graph=size <= plan.largest_graph):
                for batch in plan.batches:
                    recall, latencies_ms = _time(built.search, queries, exact, batch, plan)
                    timed.append(
                        Timed(built.name, size, batch, built.build_s, built.bytes_per_row, recall, latencies_ms)
                    )
                advance(1)
    return timed


def _indexes(rows: Vectors, threads: int, *, with_graph: bool) -> Iterator[Built]:
    """Each index in turn; one is freed before the next is built."""
    dim = rows.shape[1]
    yield Built("flat-fp32", 0.0, 4.0 * dim, lambda q: faiss.knn(q, rows, K, metric=faiss.METRIC_INNER_PRODUCT)[1])
    yield Built("gemm-fp32", 0.0, 4.0 * dim, _gemm(torch.from_numpy(rows)))
    for name, dtype in _HALVES.items():
        started = time.perf_counter()
        halves = torch.from_numpy(rows).to(dtype)
        yield Built(f"gemm-{name}", time.perf_counter() - started, 2.0 * dim, _gemm(halves))
        del halves
    yield from _inverted(rows)
    yield _frozen(rows, threads)
    if with_graph:
        yield from _graph(rows)


def _inverted(rows: Vectors) -> Iterator[Built]:
    num_rows, dim = rows.shape
    started = time.perf_counter()
    num_lists = min(4 * math.isqrt(num_rows), max(num_rows // 39, 1))  # faiss warns below 39 rows a list
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.train(rows)
    index.add(rows)
    build_s, size = time.perf_counter() - started, _bytes_per_row(index)
    for nprobe in NPROBE:
        index.nprobe = nprobe
        yield Built(f"ivf-flat nprobe={nprobe}", build_s, size, lambda q: index.search(q, K)[1])


def _frozen(rows: Vectors, threads: int) -> Built:
    """What a collection above `retriever.frozen_rows` has, built as beside a server."""
    keys = np.arange(len(rows))
    freezer = Freezer(recall=RetrieverSettings().frozen_recall, threads=threads)
    started = time.perf_counter()
    shard = freezer.start([Part(keys, keys.astype(np.int32), lambda: rows)]).result()
    build_s = time.perf_counter() - started
    freezer.close()
    return Built("frozen shard", build_s, shard.num_bytes / len(rows), lambda q: shard.search(q, K, None)[0])


def _graph(rows: Vectors) -> Iterator[Built]:
    started = time.perf_counter()
    index = faiss.IndexHNSWFlat(rows.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    build_s, size = time.perf_counter() - started, _bytes_per_row(index)
    for ef_search in EF_SEARCH:
        index.hnsw.efSearch = ef_search
        yield Built(f"hnsw{HNSW_LINKS} ef={ef_search}", build_s, size, lambda q: index.search(q, K)[1])


def _gemm(rows: torch.Tensor) -> Search:
    def search(queries: Vectors) -> Ids:
        scores = torch.nn.functional.linear(torch.from_numpy(queries).to(rows.dtype), rows)  # [Q, N]
        ids: Ids = scores.topk(min(K, len(rows)), dim=1).indices.numpy()
        return ids

    return search


def _bytes_per_row(index: faiss.Index) -> float:
    return float(faiss.serialize_index(index).nbytes / index.ntotal)


def _time(search: Search, queries: Vectors, exact: Ids, batch: int, plan: IndexPlan) -> tuple[float, list[float]]:
    """Recall of what was returned and latency of each call, for as many calls as the plan's time allows."""
    search(queries[:batch])
    latencies_ms: list[float] = []
    found = 0
    ends_at = time.perf_counter() + plan.seconds_per_case
    while len(latencies_ms) < 3 or (len(latencies_ms) < plan.max_calls and time.perf_counter() < ends_at):
        chosen = np.arange(len(latencies_ms) * batch, (len(latencies_ms) + 1) * batch) % len(queries)
        asked = np.ascontiguousarray(queries[chosen])
        started = time.perf_counter()
        ids = search(asked)
        latencies_ms.append(1e3 * (time.perf_counter() - started))
        found += sum(len(np.intersect1d(mine, best)) for mine, best in zip(ids, exact[chosen], strict=True))
    return found / (len(latencies_ms) * batch * exact.shape[1]), latencies_ms


def choice_by_size(timed: Sequence[Timed]) -> dict[str, str]:
    """For each size, batch and least recall: the index with the lowest median latency."""
    choice = {}
    for size, batch in dict.fromkeys((one.size, one.batch) for one in timed):
        for recall in RECALLS:
            good = [one for one in timed if (one.size, one.batch) == (size, batch) and one.recall >= recall]
            best = min(good, key=lambda one: one.p50_ms, default=None)
            words = (
                "none" if best is None else f"{best.name} ({best.p50_ms:.3g} ms, {best.bytes_per_row:.0f} bytes/row)"
            )
            choice[f"{size_name(size)} batch {batch} recall >= {recall:g}"] = words
    return choice


def freezing_size(timed: Sequence[Timed]) -> int | None:
    """Rows of which an exact search for one question takes EXACT_BUDGET_MS, in proportion to the largest size measured.

    None where no exact search was measured for one question.
    """
    exact = [one for one in timed if one.batch == 1 and one.name in ("flat-fp32", "gemm-fp32")]
    if not exact:
        return None
    largest = max(one.size for one in exact)
    return round(largest * EXACT_BUDGET_MS / min(one.p50_ms for one in exact if one.size == largest))


def print_indexes(timed: Sequence[Timed], console: Console) -> None:
    """One table for each size: an index a line."""
    batches = sorted({one.batch for one in timed})
    for size in dict.fromkeys(one.size for one in timed):
        table = Table(title=f"indexes over {size_name(size)} rows of {DIM} dimensions", title_justify="left")
        table.add_column("index", no_wrap=True)
        for batch in batches:
            for column in ("p50 ms", "p99 ms"):
                table.add_column(f"{column}, batch {batch}", justify="right")
        for column in ("recall @10", "build s", "bytes per row"):
            table.add_column(column, justify="right", overflow="fold")
        here = [one for one in timed if one.size == size]
        for name in dict.fromkeys(one.name for one in here):
            mine = [one for one in here if one.name == name]
            numbers = [value for one in mine for value in (one.p50_ms, percentile(one.latencies_ms, 99))]
            cells = [f"{number:.3g}" for number in numbers]
            table.add_row(
                name, *cells, f"{mine[0].recall:.3f}", f"{mine[0].build_s:.1f}", f"{mine[0].bytes_per_row:.0f}"
            )
        console.print(table)
