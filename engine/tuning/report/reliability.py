"""How often answers of some confidence are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.tuning.outcome import Evaluation

NUM_BINS = 10
# Fewer rows in a bin make shares that mean nothing.
_MIN_IN_BIN = 5


@dataclass(frozen=True, slots=True)
class Reliability:
    """Mean confidence and share of right answers of bins of about equal counts, least sure first.

    `error` is the expected calibration error over them: the mean distance of both, weighted by rows.
    """

    confidences: tuple[float, ...]
    shares: tuple[float, ...]
    error: float


def reliability_of(evaluation: Evaluation, *, is_calibrated: bool) -> Reliability | None:
    """At temperature 1, or at the fitted one; None where the answers have no confidence."""
    pairs = [
        (each.after.calibrated if is_calibrated else each.after.confidence, each.after.quality)
        for each in evaluation.predictions
    ]
    known = [(confidence, quality) for confidence, quality in pairs if confidence is not None]
    if not known:
        return None
    confidence, right = np.array(sorted(known, key=lambda pair: pair[0])).T
    num_bins = max(1, min(NUM_BINS, len(known) // _MIN_IN_BIN))
    parts = list(zip(np.array_split(confidence, num_bins), np.array_split(right, num_bins), strict=True))
    error = sum(abs(sure.mean() - hits.mean()) * len(sure) for sure, hits in parts) / len(known)
    return Reliability(
        tuple(float(sure.mean()) for sure, _ in parts), tuple(float(hits.mean()) for _, hits in parts), float(error)
    )
