"""Clusters of rows by inner product: spherical k-means that stops when told to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.rows import Keys

_POINTS_PER_CENTRE = 48
_ROUNDS = 6
# Rows that are compared with every centre at once, and between two looks at `check`.
_BLOCK_ROWS = 4096


def cluster_centres(vectors: Vectors, num_centres: int, rng: np.random.Generator, check: Callable[[], None]) -> Vectors:
    """Centres [num_centres, E] of unit length, found on a sample of `vectors` [n, E], n >= num_centres.

    `check` is called every few thousand rows and may raise, to stop.
    """
    num_points = min(len(vectors), _POINTS_PER_CENTRE * num_centres)
    points = torch.from_numpy(vectors[np.sort(rng.choice(len(vectors), num_points, replace=False))])
    centres = _unit(points[torch.from_numpy(rng.choice(num_points, num_centres, replace=False))])
    for _ in range(_ROUNDS):
        nearest = torch.from_numpy(nearest_centres(points.numpy(), centres.numpy(), check))
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        # A centre without points starts again at a point, so that no centre is wasted.
        is_empty = torch.bincount(nearest, minlength=num_centres) == 0
        sums[is_empty] = points[torch.from_numpy(rng.choice(num_points, int(is_empty.sum())))]
        centres = _unit(sums)
    found: Vectors = centres.numpy()
    return found


def nearest_centres(vectors: Vectors, centres: Vectors, check: Callable[[], None]) -> Keys:
    """For each of `vectors` [n, E] the number [n] of the centre with the largest inner product; `check` as above."""
    nearest = np.empty(len(vectors), np.int64)
    others = torch.from_numpy(centres).T
    for first in range(0, len(vectors), _BLOCK_ROWS):
        check()
        block = torch.from_numpy(vectors[first : first + _BLOCK_ROWS])
        nearest[first : first + _BLOCK_ROWS] = (block @ others).argmax(1).numpy()
    return nearest


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)
