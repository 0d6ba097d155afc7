"""When to stop: patience with evaluations that bring nothing, and none with a loss that runs away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from engine.tuning.training.events import HistoryPoint

# Steps whose mean loss is the start, and the present.
WINDOW_STEPS = 10
# A run that starts better than this has nothing to compare with: noise alone doubles so small a loss.
LEAST_START = 0.1


def is_out_of_patience(history: Sequence[HistoryPoint], patience: int) -> bool:
    """Whether the last `patience` evaluations improved neither the metric nor the validation loss of those before."""
    if len(history) <= patience:
        return False
    before, recent = history[:-patience], history[-patience:]
    best_loss = min(point.valid_loss for point in before)
    best_metric = max(point.metric or 0.0 for point in before)
    return all(point.valid_loss >= best_loss and (point.metric or 0.0) <= best_metric for point in recent)


def divergence(losses: Sequence[float], gradient_norm: float, num_warm_up: int) -> str | None:
    """Why a run with these losses of its steps cannot go on, or None.

    After the warm-up, the mean of the last steps may not be above twice that of the first.
    """
    if not math.isfinite(losses[-1]):
        return f"the loss is {losses[-1]}"
    if not math.isfinite(gradient_norm):
        return f"the gradient's norm is {gradient_norm}"
    if len(losses) < num_warm_up + WINDOW_STEPS or len(losses) < 2 * WINDOW_STEPS:
        return None
    start, now = fmean(losses[:WINDOW_STEPS]), fmean(losses[-WINDOW_STEPS:])
    if now > 2 * max(start, LEAST_START):
        return (
            f"the loss of the last {WINDOW_STEPS} steps is {now:.3g}, that of the first {WINDOW_STEPS} was {start:.3g}"
        )
    return None
