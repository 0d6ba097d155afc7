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


def resampled_means(
    values: Floats, groups: NDArray[np.int64], sources: NDArray[np.int64] | None = None, *, seed: int = 0
) -> Floats | None:
    """[R, C] means of `values` [N, C] over groups [N] drawn with replacement, all columns by the same draws.

    None below MIN_ROWS groups: an interval of fewer is too narrow to be believed.

    Args:
        sources: [N] numbers; each mean is then the mean of the means of those sources that the draw has.
    """
    names, group = np.unique(groups, return_inverse=True)
    num = len(names)
    if num < MIN_ROWS:
        return None
    source = np.zeros(len(group), dtype=np.int64) if sources is None else np.unique(sources, return_inverse=True)[1]
    # A cell is what one group has of one source; cells lie by source.
    cells, place, counts = np.unique(source * num + group, return_inverse=True, return_counts=True)
    sums = np.zeros((len(cells), values.shape[1]))
    np.add.at(sums, place, values)
    of_source, of_group = cells // num, cells % num
    starts = np.flatnonzero(np.diff(of_source, prepend=-1))
    draw = np.random.default_rng(seed)
    found = []
    for first in range(0, NUM_RESAMPLES, step := max(1, _CHUNK // len(cells))):
        size = min(step, NUM_RESAMPLES - first)
        drawn = draw.multinomial(num, np.full(num, 1 / num), size=size)[:, of_group]
        totals = np.add.reduceat(drawn * counts, starts, axis=1)
        weights = drawn / np.maximum(totals, 1)[:, of_source]
        found.append(weights @ sums / (totals > 0).sum(axis=1, keepdims=True))
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
    means = resampled_means(values[:, None], groups, seed=seed)
    return None if means is None else bounds(means[:, 0])
