"""What "overall" means: the mean of the sources' means, so that no source counts for more because it is larger.

Everything that is said of all questions together rests on the weights here: means and shares, percentiles, and the
bootstrap, which weighs every draw anew. With one source these are the plain ones. What is not a mean of questions,
AUROC and calibration, counts each question alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.figures import Estimate
from engine.evaluation.intervals import Interval, bounds, resampled_means
from engine.routing.heads import Floats


def source_weights(sources: NDArray[np.int64]) -> Floats:
    """[N] weights of sum 1 by the number of each question's source [N]: 1 / (sources * questions of its source)."""
    _, places, counts = np.unique(sources, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(counts) * counts[places]))


def weighted_mean(values: Floats | NDArray[np.bool_], weights: Floats) -> float:
    """The mean of `values` [N]: of shares from 0 to 1 within these, whatever the rounding."""
    return float((weights * values).sum() / weights.sum())


def weighted_percentile(values: Floats, weights: Floats, percent: float) -> float:
    """The percentile of `values` [N]; equal weights give the one that `np.percentile` interpolates.

    The k-th of the ordered values lies at the share of the others' weight that is below it.
    """
    order = np.argsort(values, kind="stable")
    ordered, counted = values[order], weights[order]
    total = counted.sum()
    below = np.cumsum(counted) - counted
    # One value alone has no others.
    shares = below / np.maximum(total - counted, np.finfo(float).tiny)
    return float(np.interp(percent / 100, shares, ordered))


@dataclass(frozen=True, slots=True)
class Overall:
    """How figures of N questions become one. `sources`, `groups` [N]: numbers; `weights` [N] sum to 1."""

    sources: NDArray[np.int64]
    groups: NDArray[np.int64]
    weights: Floats

    @property
    def num_sources(self) -> int:
        """Sources that are counted alike."""
        return len(np.unique(self.sources))

    def mean(self, values: Floats | NDArray[np.bool_]) -> float:
        """The mean of `values` [N]."""
        return weighted_mean(values, self.weights)

    def means(self, values: Floats | NDArray[np.bool_]) -> Floats:
        """[C] the means of `values` [N, C]."""
        return np.array([weighted_mean(column, self.weights) for column in values.T])

    def mean_known(self, values: Floats) -> float | None:
        """The mean of those of `values` [N] that are finite; None where none is."""
        is_known = np.isfinite(values)
        if not is_known.any():
            return None
        return weighted_mean(values[is_known], source_weights(self.sources[is_known]))

    def percentile(self, values: Floats, percent: float) -> float:
        """The percentile of `values` [N]."""
        return weighted_percentile(values, self.weights, percent)

    def resampled(self, values: Floats) -> Floats | None:
        """[R, C] the means of `values` [N, C] in draws of groups; None where there are too few."""
        return resampled_means(values, self.groups, self.sources)

    def interval(self, values: Floats) -> Interval | None:
        """The interval of the mean of `values` [N]; None where there are too few groups."""
        means = self.resampled(values[:, None])
        return None if means is None else bounds(means[:, 0])

    def estimate(self, values: Floats) -> Estimate:
        """The mean of `values` [N] with its interval."""
        return Estimate(self.mean(values), self.interval(values))


def overall_of(sources: Sequence[str], groups: NDArray[np.int64]) -> Overall:
    """By the name of each question's source and the number of its group."""
    _, numbers = np.unique(np.array(sources), return_inverse=True)
    return Overall(numbers, groups, source_weights(numbers))
