"""How far probabilities are from what happens.

The expected calibration error is that of Guo et al., arXiv:1706.04599; the bins have equal counts here, so that none is
empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_BINS = 10


def expected_calibration_error(confidences: Sequence[float], is_right: Sequence[bool]) -> float:
    """Mean distance of confidence and share of right answers over NUM_BINS bins of about equal counts."""
    order = np.argsort(confidences, kind="stable")
    confidence, right = np.asarray(confidences)[order], np.asarray(is_right, dtype=float)[order]
    bins = zip(np.array_split(confidence, NUM_BINS), np.array_split(right, NUM_BINS), strict=True)
    return float(sum(abs(part.mean() - hits.mean()) * len(part) for part, hits in bins if len(part)) / len(order))
