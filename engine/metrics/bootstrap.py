"""Whether chance explains a difference: the bootstrap over rows (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
# Of fewer rows a resampled interval is too narrow to be believed.
MIN_ROWS = 30


def paired_interval(differences: Sequence[float] | NDArray[np.float64], seed: int = 0) -> tuple[float, float] | None:
    """2.5 and 97.5 % percentiles of the mean difference over rows drawn with replacement; None below MIN_ROWS.

    Rows that differ by as much are interchangeable, so how often each difference is drawn is one multinomial draw.
    """
    if len(differences) < MIN_ROWS:
        return None
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(differences), counts / counts.sum(), size=NUM_RESAMPLES)
    low, high = np.percentile(draws @ values / len(differences), (2.5, 97.5))
    return float(low), float(high)
