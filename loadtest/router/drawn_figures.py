"""Figures of weighed questions, and what they are in draws of groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.evaluation.overall import Overall, source_weights, weighted_mean, weighted_percentile
from engine.routing.heads import Floats

# A figure of values [N] or [N, C] by the weight of each question [N].
Figure = Callable[[Floats, Floats], Any]


class Resamples:
    """Rows of groups drawn with replacement, the same draws for every figure; each weighs its sources anew."""

    def __init__(self, overall: Overall, num: int, seed: int) -> None:
        self.weights = overall.weights
        _, place = np.unique(overall.groups, return_inverse=True)
        members = [np.flatnonzero(place == group) for group in range(place.max() + 1)]
        draw = np.random.default_rng(seed)
        self._rows = [
            np.concatenate([members[group] for group in draw.integers(len(members), size=len(members))])
            for _ in range(num)
        ]
        self._weights = [source_weights(overall.sources[rows]) for rows in self._rows]

    def of(self, values: Floats, figure: Figure) -> Floats:
        """[R] the figure of `values` [N] or [N, C] in every draw."""
        pairs = zip(self._rows, self._weights, strict=True)
        return np.array([float(figure(values[rows], weights)) for rows, weights in pairs])


def mean(values: Floats, weights: Floats) -> float:
    """The mean."""
    return weighted_mean(values, weights)


def headroom(columns: Floats, weights: Floats) -> float:
    """How far the first column is on the way from the second to the third."""
    routed, single, best = weights @ columns
    return float((routed - single) / (best - single)) if best > single else float("nan")


def mean_ratio(columns: Floats, weights: Floats) -> float:
    """The mean of the first column over that of the second."""
    first, second = weights @ columns
    return float(first / second) if second > 0 else float("nan")


def median_ratio(columns: Floats, weights: Floats) -> float:
    """The median of the second column over that of the first."""
    first, second = medians(columns, weights)
    return second / first if first > 0 else float("nan")


def medians(columns: Floats, weights: Floats) -> tuple[float, float]:
    """Of two columns."""
    first, second = (weighted_percentile(column, weights, 50) for column in columns.T)
    return first, second


def percentile(percent: float) -> Figure:
    """The figure that is a percentile."""
    return lambda values, weights: weighted_percentile(values, weights, percent)


def spread_of(drawn: Floats) -> tuple[float, float, float, float]:
    """2.5, 20, 80 and 97.5 % of what is finite."""
    low, p20, p80, high = np.percentile(drawn[np.isfinite(drawn)], (2.5, 20, 80, 97.5)).tolist()
    return low, p20, p80, high
