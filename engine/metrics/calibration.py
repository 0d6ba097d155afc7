"""How far probabilities are from what happens.

The expected calibration error is that of Guo et al., arXiv:1706.04599; the bins have equal counts here, so that none is
empty. The Brier score is the mean squared error of a probability (Brier, 1950).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 10
Numbers = Sequence[float] | NDArray[np.float64]
Truths = Sequence[bool] | Sequence[float] | NDArray[np.bool_] | NDArray[np.float64]


def expected_calibration_error(confidences: Numbers, is_right: Truths) -> float:
    """Mean distance of confidence and share of right answers over NUM_BINS bins of about equal counts.

    `is_right` may be a grade in [0, 1] as well. Raises: ValueError for no rows.
    """
    if not len(confidences):
        raise ValueError("no rows have no calibration error")
    order = np.argsort(confidences, kind="stable")
    confidence, right = np.asarray(confidences)[order], np.asarray(is_right, dtype=float)[order]
    bins = zip(np.array_split(confidence, NUM_BINS), np.array_split(right, NUM_BINS), strict=True)
    return float(sum(abs(part.mean() - hits.mean()) * len(part) for part, hits in bins if len(part)) / len(order))


def brier_score(confidences: Numbers, is_right: Truths) -> float:
    """Mean squared difference of probability and outcome: 0 is best. Raises: ValueError for no rows."""
    if not len(confidences):
        raise ValueError("no rows have no Brier score")
    return float(np.mean((np.asarray(confidences, dtype=float) - np.asarray(is_right, dtype=float)) ** 2))
