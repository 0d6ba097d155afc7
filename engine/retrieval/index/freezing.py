"""Building a frozen shard in the background, and measuring how many of its lists a search has to read."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.clusters import cluster_centres, nearest_centres
from engine.retrieval.index.products import best_products
from engine.retrieval.index.rows import Keys, Part
from engine.retrieval.index.shard import Reach, Shard

# Numbers of results for which recall is measured: what is shown, what a hybrid search fuses (100), and what lies around
# it under a filter.
_DEPTHS = (10, 30, 100, 300, 1000)
_NUM_QUERIES = 256
_NUM_DEEP_QUERIES = 64  # each of which counts for more than 10 results
# With fewer rows in a list, reading the centres costs more than it saves.
_LEAST_ROWS_PER_LIST = 16
# Behind whatever answers requests, yet not so far that others wait long for the interpreter's lock when this has it.
_NICENESS = 5


class FreezingStopped(Exception):
    """The retriever closes; nobody waits for the shard."""


class Freezer:
    """Builds shards one after another, off the threads that serve."""

    def __init__(self, *, recall: float, threads: int, executor: Executor | None = None) -> None:
        """`recall` is what a shard has to reach on a sample of its own rows, and with 1 every search reads all of it;
        `threads` are those of one search. `executor` runs the builds; default: one thread of low priority.
        """
        self._recall = recall
        self._threads = threads
        self._is_stopped = threading.Event()
        self._executor = executor or ThreadPoolExecutor(1, "freezer", initializer=step_behind)

    def start(self, parts: Sequence[Part]) -> Future[Shard]:
        """Build a shard of all rows in `parts`, whose keys differ; one row at least.

        Raises: RuntimeError after `close`.
        """
        return self._executor.submit(self._build, tuple(parts))

    def discard(self, garbage: list[Any]) -> None:
        """Empty a list in the background, where giving back hundreds of MiB holds nobody up."""
        try:
            self._executor.submit(garbage.clear)
        except RuntimeError:  # closed: it goes where the caller drops it
            return

    def close(self) -> None:
        """Stop the build that is running, within seconds; those that wait never start."""
        self._is_stopped.set()
        self._executor.shutdown(cancel_futures=True)

    def _build(self, parts: tuple[Part, ...]) -> Shard:
        keys = np.concatenate([part.keys for part in parts])
        slots = np.concatenate([part.slots for part in parts])
        pieces = [part.read() for part in parts]
        vectors = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        del pieces
        rng = np.random.default_rng(len(keys))
        centres = cluster_centres(vectors, _num_lists(len(keys)), rng, self._check)
        nearest = nearest_centres(vectors, centres, self._check)
        full, nearest = np.unique(nearest, return_inverse=True)
        order = np.argsort(nearest, kind="stable")
        starts = np.searchsorted(nearest[order], np.arange(len(full)))
        shard = Shard(centres[full], starts, keys, slots, vectors, order, threads=self._threads)
        shard.reaches = _measured(shard, vectors, order, self._recall, rng, self._check)
        return shard

    def _check(self) -> None:
        if self._is_stopped.is_set():
            raise FreezingStopped


def _measured(
    shard: Shard, vectors: Vectors, order: Keys, recall: float, rng: np.random.Generator, check: Callable[[], None]
) -> tuple[Reach, ...]:
    """The fewest lists that reach `recall` at each depth, asking with some of the shard's rows, each without itself."""
    own = rng.choice(len(vectors), min(len(vectors), _NUM_QUERIES), replace=False)  # as rows of the shard
    depths = [depth for depth in _DEPTHS if depth < len(vectors)]
    if recall == 1 or not depths:
        return shard.reaches  # every list: what a sample shows is no promise
    check()
    queries = vectors[order[own]]
    scores, found = best_products(torch.from_numpy(queries), torch.from_numpy(vectors), depths[-1] + 1)
    exact = _without(scores.numpy(), found.numpy(), order[own])
    aim = 1 - (1 - recall) / 2  # half the misses, since questions lie further from the rows than rows do
    reaches: list[Reach] = []
    nprobe = 1
    for depth in depths:
        asked = slice(_NUM_QUERIES if depth <= _DEPTHS[0] else _NUM_DEEP_QUERIES)
        # Equal scores count, whichever of the rows is found; kernels differ in the last bits.
        last = exact[asked, depth - 1 : depth]
        least = last - 1e-5 * np.abs(last)
        while True:
            check()
            rows, read = shard.nearest(queries[asked], depth + 1, nprobe, None)
            num_found = (_without(read, rows, own[asked]) >= least).sum(axis=1)
            reached = float(np.minimum(num_found, depth).mean() / depth)
            if reached >= aim or nprobe == shard.num_lists:
                break
            nprobe = min(max(nprobe + 1, nprobe * 5 // 4), shard.num_lists)
        reaches.append(Reach(depth, nprobe, reached))
    return tuple(reaches)


def _without(scores: Vectors, rows: Keys, own: Keys) -> Vectors:
    """Scores [Q, k + n] without the one of the row that asks, best first, [Q, k + n - 1]."""
    others = np.where(rows == own[:, None], -np.inf, scores)
    best: Vectors = -np.sort(-others, axis=1)[:, :-1]
    return best


def _num_lists(num_rows: int) -> int:
    return max(1, min(4 * math.isqrt(num_rows), num_rows // _LEAST_ROWS_PER_LIST))


def step_behind() -> None:
    """Lower the priority of this thread alone, which only Linux can."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
