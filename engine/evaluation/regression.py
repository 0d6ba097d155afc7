"""Logistic regression on shares between 0 and 1, with whole groups held out: what small heads are fitted by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.routing.signals.table import Floats, SignalTable

_MAX_ITERATIONS, _TOLERANCE = 200, 1e-4


def group_folds(groups: Sequence[str], num_folds: int, seed: int) -> NDArray[np.intp]:
    """[N] fold of each question: groups in a drawn order, each to the fold with the fewest questions."""
    sizes = Counter(groups)
    names = sorted(sizes)
    order = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    filled = [0] * num_folds
    fold_of = {}
    for name in sorted(order, key=lambda name: -sizes[name]):
        fold_of[name] = filled.index(min(filled))
        filled[fold_of[name]] += sizes[name]
    return np.array([fold_of[group] for group in groups])


def spread_of(signals: SignalTable) -> tuple[Floats, Floats]:
    """[F] mean and standard deviation of what is known of each signal; 0 and 1 where nothing, or nothing varies."""
    means, scales = np.zeros(len(signals.names)), np.ones(len(signals.names))
    for place, column in enumerate(signals.values.T):
        known = column[~np.isnan(column)]
        if len(known):
            means[place] = known.mean()
            scales[place] = known.std() or 1.0
    return means, scales


def fit_logistic(rows: Any, shares: Floats, strength: float) -> tuple[Floats, float]:
    """Weights and bias. A share between 0 and 1 counts as a part of a row of each kind."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    positive, negative = np.flatnonzero(shares > 0), np.flatnonzero(shares < 1)
    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    parts = np.concatenate([shares[positive], 1 - shares[negative]])
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
    model.fit(vstack([rows[positive], rows[negative]]), labels, sample_weight=parts)
    return np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0])


def fit_shares(scores: Floats, shares: Floats) -> tuple[float, float]:
    """Slope and offset of sigmoid(slope * score + offset).

    A head that ranks the wrong way round gets slope 0, the mean share for every question.
    """
    from scipy.sparse import csr_matrix

    weights, offset = fit_logistic(csr_matrix(scores[:, None]), shares, strength=1e4)
    if weights[0] > 0:
        return float(weights[0]), offset
    return 0.0, float(np.log(shares.mean() / (1 - shares.mean())))
