"""Bootstrap intervals over groups of questions: those of one group are drawn together, as they depend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.metrics.bootstrap import MIN_ROWS
from engine.routing.heads import Floats

NUM_RESAMPLES = 4_000
# Draws at a time, so that 100,000 groups fit into memory.
_CHUNK = 2_000_000

Interval = tuple[float, float]


def resampled_means(values: Floats, groups: NDArray[np.int64], seed: int = 0) -> Floats | None:
    """[R, C] means of `values` [N, C] over groups [N] drawn with replacement, all columns by the same draws.

    None below MIN_ROWS groups: an interval of fewer is too narrow to be believed.
    """
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    num = len(counts)
    if num < MIN_ROWS:
        return None
    # The last column counts the questions of each group.
    sums = np.zeros((num, values.shape[1] + 1))
    np.add.at(sums, place, np.column_stack([values, np.ones(len(values))]))
    draw = np.random.default_rng(seed)
    found = []
    for first in range(0, NUM_RESAMPLES, step := max(1, _CHUNK // num)):
        size = min(step, NUM_RESAMPLES - first)
        totals = draw.multinomial(num, np.full(num, 1 / num), size=size) @ sums
        found.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(found)


def bounds(figures: Floats) -> Interval | None:
    """2.5 and 97.5 % percentiles of those that are finite; None where none is."""
    finite = figures[np.isfinite(figures)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, (2.5, 97.5))
    return float(low), float(high)


def grouped_interval(values: Floats, groups: NDArray[np.int64], seed: int = 0) -> Interval | None:
    """The interval of the mean of `values` [N]; None below MIN_ROWS groups."""
    means = resampled_means(values[:, None], groups, seed)
    return None if means is None else bounds(means[:, 0])
