"""How well scores tell positive rows from negative ones, whatever their scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.metrics.bootstrap import MIN_ROWS

# Rows are ranked anew in each, so fewer than of a mean.
NUM_RESAMPLES = 2_000
Numbers = Sequence[float] | NDArray[np.float64]
Truths = Sequence[bool] | NDArray[np.bool_]


def auroc(scores: Numbers, is_positive: Truths) -> float | None:
    """Share of (positive, negative) pairs that `scores` put in order, ties counted half; None without such a pair."""
    values, positive = _checked(scores, is_positive)
    return _auroc(_levels(values), positive, np.ones(len(values), dtype=np.int64))


def auroc_interval(scores: Numbers, is_positive: Truths, seed: int = 0) -> tuple[float, float] | None:
    """2.5 and 97.5 % percentiles of the AUROC over rows drawn with replacement; None below MIN_ROWS or of one class."""
    values, positive = _checked(scores, is_positive)
    drawn = _resampled((values,), positive, seed)
    return None if drawn is None else _bounds(drawn[0])


def auroc_gain_interval(
    scores: Numbers, others: Numbers, is_positive: Truths, seed: int = 0
) -> tuple[float, float] | None:
    """The same of AUROC(scores) - AUROC(others), both ranked on the same draw of rows."""
    values, positive = _checked(scores, is_positive)
    other_values, _ = _checked(others, is_positive)
    drawn = _resampled((values, other_values), positive, seed)
    return None if drawn is None else _bounds(drawn[0] - drawn[1])


def _checked(scores: Numbers, is_positive: Truths) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(is_positive, dtype=bool)
    if values.shape != positive.shape or values.ndim != 1:
        raise ValueError(f"scores are {values.shape} and truths {positive.shape}; both must be [N]")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN; they have no rank")
    return values, positive


def _levels(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N] place of each value among the distinct ones."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _auroc(levels: NDArray[np.int64], positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> float | None:
    """AUROC of rows that each count `counts` times."""
    size = int(levels.max(initial=-1)) + 1
    negatives = np.bincount(levels[~positive], weights=counts[~positive], minlength=size)
    positives = np.bincount(levels[positive], weights=counts[positive], minlength=size)
    pairs = positives.sum() * negatives.sum()
    if pairs == 0:
        return None
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / pairs)


def _resampled(
    scores: tuple[NDArray[np.float64], ...], positive: NDArray[np.bool_], seed: int
) -> NDArray[np.float64] | None:
    """[S, NUM_RESAMPLES] AUROC of each of the scores; draws without both classes are drawn again."""
    num = len(positive)
    if num < MIN_ROWS or positive.all() or not positive.any():
        return None
    levels = [_levels(each) for each in scores]
    draw = np.random.default_rng(seed)
    found = np.empty((len(scores), NUM_RESAMPLES))
    place = 0
    while place < NUM_RESAMPLES:
        counts = np.bincount(draw.integers(num, size=num), minlength=num)
        values = [_auroc(each, positive, counts) for each in levels]
        if values[0] is not None:
            found[:, place] = values
            place += 1
    return found


def _bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
