"""Vector rows in half precision on a GPU, searched by FAISS where its GPU build is installed, else by torch.

FAISS searches our own buffer (`knn_gpu`), so that append, update and delete cost O(batch). Its GPU indexes do not
remove, and the faiss-gpu wheel ignores filters without a word, so neither is used: with a filter the allowed rows are
copied where they are few, and masked in place (`kernels/masked_topk`) where they are many.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.products import best_products, with_ties
from engine.retrieval.index.rows import FIRST_CAPACITY, Keys, Mask, VectorRows
from kernels.masked_topk import masked_topk, pack_mask

# Beyond this k FAISS does not raise: it aborts the process.
MAX_FAISS_K = 2048
# One pass over the rows serves so many queries.
MAX_FAISS_QUERIES = 512
_FAISS_TEMP_BYTES = 256 * 2**20
# A copy of the allowed rows is read, written and read again; a mask reads every row once. Counted, not measured.
_GATHER_SHARE = 1 / 3

_log = logging.getLogger(__name__)
# FAISS's resources belong to one thread at a time, reads included.
_faiss_lock = threading.Lock()


@lru_cache(maxsize=1)
def faiss_gpu() -> tuple[Any, Any] | None:
    """FAISS and its resources where a GPU build is installed and sees a GPU, None otherwise. Says once which it is."""
    try:
        import faiss
    except ImportError as error:
        _log.info("vector search runs on torch: FAISS cannot be imported (%s)", error)
        return None
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        _log.info("vector search runs on torch: this build of FAISS has no GPU")
        return None
    import faiss.contrib.torch_utils  # teaches FAISS to read torch tensors

    resources = faiss.StandardGpuResources()
    # The default is 1.5 GiB, which a language model beside it misses.
    resources.setTempMemory(_FAISS_TEMP_BYTES)
    _log.info("vector search runs on %s", "faiss-gpu-cuvs" if hasattr(faiss, "GpuIndexCagra") else "faiss-gpu")
    return faiss, resources


class GpuRows(VectorRows):
    """See VectorRows. Scores are those of the vectors as stored, summed in float32."""

    def __init__(self, dim: int, *, device: str, dtype: torch.dtype = torch.float16) -> None:
        """`device` may be "cpu", where tests compare it with CpuRows."""
        super().__init__(dim)
        self._device = torch.device(device)
        self._faiss = faiss_gpu() if self._device.type == "cuda" else None
        self._vectors = torch.empty((FIRST_CAPACITY, dim), dtype=dtype, device=self._device)  # [capacity, E]

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Keys, Vectors]:
        """See VectorRows."""
        if self._device.type == "cpu":
            return super().search(queries, k, allowed)
        # FAISS and our kernels launch on the thread's current device, which need not be that of these rows.
        with torch.cuda.device(self._device):
            return super().search(queries, k, allowed)

    def _grow(self, capacity: int) -> None:
        longer = torch.empty((capacity, self._dim), dtype=self._vectors.dtype, device=self._device)
        longer[: len(self)] = self._vectors[: len(self)]
        self._vectors = longer

    def _write(self, first: int, vectors: Vectors) -> None:
        self._vectors[first : first + len(vectors)] = torch.from_numpy(vectors).to(self._device, self._vectors.dtype)

    def _move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._vectors[list(targets)] = self._vectors[list(sources)]

    def _nearest(self, queries: Vectors, num_results: int) -> tuple[Keys, Vectors]:
        return self._search(queries, self._vectors[: len(self)], num_results)

    def _nearest_allowed(self, queries: Vectors, num_results: int, is_allowed: Mask) -> tuple[Keys, Vectors]:
        if is_allowed.mean() >= _GATHER_SHARE:
            return self._masked(queries, num_results, is_allowed)
        chosen = np.flatnonzero(is_allowed)
        picked = self._vectors[torch.from_numpy(chosen).to(self._device)]
        rows, scores = self._search(queries, picked, num_results)
        return chosen[rows], scores

    def _masked(self, queries: Vectors, num_results: int, is_allowed: Mask) -> tuple[Keys, Vectors]:
        """As `_nearest_allowed`, without a copy of the rows."""
        stored = self._vectors[: len(self)]
        asked = torch.from_numpy(queries).to(self._device, stored.dtype)
        mask = pack_mask(torch.from_numpy(is_allowed)).to(self._device)
        num_allowed = int(np.count_nonzero(is_allowed))
        scores, rows = with_ties(lambda k: masked_topk(asked, stored, k, mask), num_allowed, num_results)
        return rows.cpu().numpy(), scores.cpu().numpy()

    def _search(self, queries: Vectors, stored: Tensor, num_results: int) -> tuple[Keys, Vectors]:
        """As `_nearest`, over `stored` [n, E]."""
        asked = torch.from_numpy(queries).to(self._device, stored.dtype)

        def search(k: int) -> tuple[Tensor, Tensor]:
            if self._faiss is not None and k <= MAX_FAISS_K:
                return self._by_faiss(asked, stored, k)
            return best_products(asked, stored, k)

        scores, rows = with_ties(search, len(stored), num_results)
        return rows.cpu().numpy(), scores.cpu().numpy()

    def _by_faiss(self, queries: Tensor, stored: Tensor, k: int) -> tuple[Tensor, Tensor]:
        assert self._faiss is not None
        faiss, resources = self._faiss
        assert 0 < k <= min(MAX_FAISS_K, len(stored)) and stored.is_contiguous() and len(queries) > 0
        scores, rows = [], []
        with _faiss_lock:
            for first in range(0, len(queries), MAX_FAISS_QUERIES):
                part = queries[first : first + MAX_FAISS_QUERIES]
                found = faiss.knn_gpu(resources, part, stored, k, metric=faiss.METRIC_INNER_PRODUCT)
                scores.append(found[0])
                rows.append(found[1])
        return torch.cat(scores), torch.cat(rows)
