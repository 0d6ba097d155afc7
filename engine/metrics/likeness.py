"""How alike rankings, and vectors, are."""

from __future__ import annotations

from collections.abc import Collection, Hashable

import numpy as np
from numpy.typing import NDArray


def overlap(first: Collection[Hashable], second: Collection[Hashable]) -> float | None:
    """Share of the shorter of two collections of distinct items that the other has too; None where one is empty."""
    if not first or not second:
        return None
    return len(set(first) & set(second)) / min(len(first), len(second))


def mean_cosine(vectors: NDArray[np.float32]) -> float | None:
    """Mean cosine over the pairs of `vectors` [K, E], unit rows; None for fewer than two."""
    num = len(vectors)
    if num < 2:
        return None
    # The squared length of the sum holds each pair twice, and each row with itself once.
    total = vectors.astype(np.float64).sum(axis=0)
    return float((total @ total - np.einsum("ke,ke->", vectors, vectors, dtype=np.float64)) / (num * (num - 1)))
