"""Probabilities of labels that mean what they say: one temperature (Guo et al., arXiv:1706.04599)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.metrics.calibration import expected_calibration_error
from engine.tuning.outcome import Calibration

# Fewer rows fit the temperature to a handful of mistakes, or to none.
MIN_ROWS = 30
# Rows that are all right would ask for 0.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.25, 10.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_ROUNDS = 60

Floats = NDArray[np.float64]


def label_probabilities(scores: Floats, temperature: float = 1.0) -> Floats:
    """[N, L] log-probabilities to probabilities that sum to 1: softmax(scores / temperature)."""
    scaled = scores / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def label_losses(scores: Floats, targets: Sequence[int], temperature: float = 1.0) -> Floats:
    """[N] negative log-probability of the right label among the labels, in nats."""
    scaled = scores / temperature
    top = scaled.max(axis=1)
    total = np.log(np.exp(scaled - top[:, None]).sum(axis=1)) + top
    return np.asarray(total - scaled[np.arange(len(targets)), list(targets)])


def fit_temperature(scores: Floats, targets: Sequence[int]) -> float:
    """The temperature with the least mean loss, within bounds; 1 for fewer than MIN_ROWS rows.

    The loss has one minimum in the inverse temperature (it is convex there), so a golden section finds it.
    """
    if len(targets) < MIN_ROWS:
        return 1.0

    def loss(inverse: float) -> float:
        return float(label_losses(scores, targets, 1 / inverse).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(_ROUNDS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return 2 / (low + high)


def calibrate(scores: Floats, targets: Sequence[int]) -> Calibration:
    """Fit the temperature to [N, L] log-probabilities and say what it changes on the same rows."""
    temperature = fit_temperature(scores, targets)
    losses, errors = [], []
    for each in (1.0, temperature):
        probabilities = label_probabilities(scores, each)
        is_right = probabilities.argmax(axis=1) == np.asarray(targets)
        losses.append(float(label_losses(scores, targets, each).mean()))
        errors.append(expected_calibration_error(probabilities.max(axis=1).tolist(), is_right.tolist()))
    return Calibration(temperature, len(targets), *losses, *errors)
