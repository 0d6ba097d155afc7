"""Exact search with and without a mask, in the shapes of a collection of MiniLM's vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.retrieval.index.gpu_rows import faiss_gpu
from kernels.masked_topk import masked_topk, pack_mask
from kernels.masked_topk.torch_op import products
from loadtest.bench_format import OURS
from loadtest.kernels.case import Case, Draw, Results

TORCH, COPIED, FAISS = "torch", "torch, allowed rows copied", "faiss"
DIM = 384
BATCHES = (1, 32, 512)
# Rows that a filter allows; None is no filter. They tell where a mask becomes better than a copy.
SHARES = (None, 0.03, 0.1, 0.3, 0.5, 0.9)
SHORT_SHARES = (None, 0.1, 0.5)
_KS = (10, 2048)


def search_cases(device: str, num_rows: int, *, is_short: bool) -> Iterator[Case]:
    """One after the other over the same rows."""
    draw = Draw(device, torch.float16)
    rows = torch.nn.functional.normalize(draw(num_rows, DIM), dim=1)
    for k in _KS[:1] if is_short else _KS:
        for batch in BATCHES[:2] if is_short or device == "cpu" else BATCHES:
            queries = torch.nn.functional.normalize(draw(batch, DIM), dim=1)
            for share in SHORT_SHARES if is_short or k > 10 else SHARES:
                yield _search(queries, rows, min(k, num_rows), share)


def _search(queries: Tensor, rows: Tensor, k: int, share: float | None) -> Case:
    allowed, mask = None, None
    if share is not None:
        allowed = torch.rand(len(rows), generator=torch.Generator().manual_seed(4)) < share
        allowed[:k] = True  # enough to find
        mask = pack_mask(allowed).to(rows.device)
        allowed = allowed.to(rows.device)

    def ours() -> tuple[Tensor, Tensor]:
        return masked_topk(queries, rows, k, mask)

    def by_torch() -> tuple[Tensor, Tensor]:
        scores = queries @ rows.T
        if allowed is not None:
            scores = scores.masked_fill_(~allowed, float("-inf"))
        found = scores.topk(k)
        return found.values, found.indices

    def copied(chosen: Tensor) -> object:
        picked = chosen.nonzero().flatten()
        found = (queries @ rows[picked].T).topk(k)
        return picked[found.indices]

    def exact() -> Tensor:
        scores = products(queries, rows)
        return (scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))).topk(k).values

    def results() -> Results:
        """Scores, and beside them those of the rows whose ids are given."""
        best = exact()
        scores, ids = ours()
        own = torch.einsum("qke,qe->qk", rows[ids].float(), queries.float())
        if allowed is not None and not bool(allowed[ids].all()):
            own = torch.full_like(own, float("nan"))  # a row that may not be found
        return Results(torch.cat([scores, own]), by_torch()[0].float().repeat(2, 1), best.repeat(2, 1))

    systems: dict[str, Callable[[], object]] = {OURS: ours, TORCH: by_torch}
    missing = {}
    if allowed is not None:
        systems[COPIED] = partial(copied, allowed)
    elif rows.is_cuda and (found := faiss_gpu()) is not None:
        systems[FAISS] = partial(_by_faiss, found, queries, rows, k)
    else:
        missing[FAISS] = "no FAISS built for GPUs that sees one"
    words = "all" if share is None else f"{share:g} allowed"
    size = f"{len(rows) // 1000}k" if len(rows) < 1_000_000 else f"{len(rows) // 1_000_000}M"
    return Case(
        *("masked_topk", f"{len(queries)}x{size} k={k} {words}", systems, results),
        *(rows.numel() * rows.element_size(), 2 * len(queries) * rows.numel(), missing),
    )


def _by_faiss(found: tuple[Any, Any], queries: Tensor, rows: Tensor, k: int) -> object:
    faiss, resources = found
    return faiss.knn_gpu(resources, queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
