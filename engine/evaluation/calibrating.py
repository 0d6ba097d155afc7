"""Log-odds to qualities that mean what they say, fitted on questions that the heads were not fitted on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.routing.heads import Floats, IsotonicCurves, PlattCurves, Policy

# Below, a step function follows chance; above, a sigmoid may have the wrong shape (Niculescu-Mizil and Caruana, 2005).
MIN_ISOTONIC_ROWS = 1_000
# A mild penalty: scores that separate all rows would ask for an infinite slope.
_STRENGTH = 100.0
_EDGE = 1e-4


def fit_curves(scores: Floats, quality: Floats) -> PlattCurves | IsotonicCurves:
    """A curve for each arm, from log-odds [N, A] to quality [N, A]: Platt's below MIN_ISOTONIC_ROWS rows."""
    arms = range(scores.shape[1])
    if len(scores) < MIN_ISOTONIC_ROWS:
        pairs = [fit_platt(scores[:, arm], quality[:, arm]) for arm in arms]
        return PlattCurves(np.array([slope for slope, _ in pairs]), np.array([offset for _, offset in pairs]))
    curves = [_isotonic(scores[:, arm], quality[:, arm]) for arm in arms]
    longest = max(len(xs) for xs, _ in curves)
    # Arms have different numbers of points: the last one is repeated.
    xs, ys = (
        np.stack([np.pad(curve[which], (0, longest - len(curve[which])), mode="edge") for curve in curves])
        for which in (0, 1)
    )
    return IsotonicCurves(xs, ys)


def fit_platt(scores: Floats, quality: Floats) -> tuple[float, float]:
    """Slope and offset of sigmoid(slope * score + offset); a slope below 0 becomes 0: such scores say nothing."""
    from sklearn.linear_model import LogisticRegression

    mean = float(np.clip(quality.mean(), _EDGE, 1 - _EDGE))
    constant = 0.0, float(np.log(mean / (1 - mean)))
    centre, scale = float(scores.mean()), float(scores.std())
    counted = np.concatenate([quality, 1 - quality])
    labels = np.repeat([1, 0], len(quality))
    if scale < 1e-9 or not _EDGE < quality.mean() < 1 - _EDGE:
        return constant
    standard = np.tile((scores - centre) / scale, 2)[:, None]
    model = LogisticRegression(C=_STRENGTH, solver="newton-cholesky", max_iter=200)
    model.fit(standard[counted > 0], labels[counted > 0], sample_weight=counted[counted > 0])
    slope, offset = float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
    return (slope, offset - slope * centre) if slope > 0 else constant


def fit_policy(costs: Floats, qualities: Floats, measured: Floats) -> Policy:
    """The choice by `costs` [A], with its confidence fitted to what happened.

    Args:
        qualities: [N, A] expected, of questions that neither heads nor curves were fitted on where there are such.
        measured: [N, A].
    """
    bare = Policy(costs, 1.0, 0.0)
    chosen, margins = bare.choose(qualities)
    slope, offset = fit_platt(margins, is_best(chosen, measured).astype(np.float64))
    return Policy(costs, slope, offset)


def is_best(chosen: NDArray[np.int32], measured: Floats) -> NDArray[np.bool_]:
    """[N] whether no other arm answered better than the chosen one, by qualities [N, A]."""
    return np.asarray(measured[np.arange(len(measured)), chosen] >= measured.max(axis=1) - 1e-9)


def _isotonic(scores: Floats, quality: Floats) -> tuple[Floats, Floats]:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, quality)
    ys = np.asarray(model.y_thresholds_, dtype=np.float64)
    # Means of neighbouring blocks may fall by a rounding.
    return np.asarray(model.X_thresholds_, dtype=np.float64), np.maximum.accumulate(ys)
