"""The learning rate of each step, and the steps after which the adapter is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.tuning.training.settings import TrainingSettings


def num_warm_up_steps(settings: TrainingSettings, num_steps: int) -> int:
    """Steps whose rate still rises."""
    return math.ceil(settings.warm_up * num_steps)


def learning_rate_at(step: int, num_steps: int, settings: TrainingSettings) -> float:
    """Rate of step `step` (from 0) of `num_steps`: it rises linearly, then falls towards 0 by the chosen decay."""
    warm_up = num_warm_up_steps(settings, num_steps)
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, num_steps - warm_up)
    share = 1 - done if settings.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * share


def evaluation_steps(steps_per_epoch: Sequence[int], evaluations_per_epoch: int) -> frozenset[int]:
    """Numbers of finished steps after which to evaluate: evenly within each epoch, and at its end."""
    due = set()
    start = 0
    for steps in steps_per_epoch:
        due |= {start + math.ceil(steps * part / evaluations_per_epoch) for part in range(1, evaluations_per_epoch + 1)}
        start += steps
    return frozenset(due)
