"""Heads fitted to outcomes with scikit-learn, and handed on as arrays.

Each arm's head predicts its quality: a graded one counts as a right answer of that weight and a wrong one of the rest.
Questions count by what the worst arm loses against the best, since one that all arms answer alike says nothing about
the choice; they keep a little weight, so that the heads stay near qualities before they are calibrated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError
from engine.evaluation.table import OutcomeTable
from engine.routing.heads import Floats, LinearHeads, Normaliser, TreeHeads, sigmoid

TIE_WEIGHT = 0.1
# Inverse strengths of the L2 penalty; the best by cross-validation is taken.
STRENGTHS = (0.003, 0.03, 0.3, 3.0)
_NUM_FOLDS = 3
_MAX_ITERATIONS = 200
_MIN_SCALE = 1e-9
# Boosting: shallow and slow, as few rows ask for.
_NUM_TREES, _DEPTH, _RATE, _MIN_LEAF, _SUBSAMPLE, _MAX_FEATURES = 80, 3, 0.06, 25, 0.7, 0.3


def fit_normaliser(values: Floats) -> Normaliser:
    """Means and standard deviations of what is known, and the signals that are sometimes unknown.

    A signal that is never known, or always the same, gets a scale that leaves it without influence.
    """
    is_known = np.isfinite(values)
    counts = np.maximum(is_known.sum(axis=0), 1)
    known = np.where(is_known, values, 0.0)
    mean = known.sum(axis=0) / counts
    spread = np.sqrt((np.where(is_known, values - mean, 0.0) ** 2).sum(axis=0) / counts)
    share = is_known.mean(axis=0)
    unknown = np.flatnonzero((share > 0) & (share < 1)).astype(np.int32)
    # Dividing by infinity would lose the row's NaN; a huge finite scale gives zeros and can be stored.
    return Normaliser(mean, np.where(spread > _MIN_SCALE, spread, 1e12), unknown)


def question_weights(table: OutcomeTable) -> Floats:
    """[N] weights of mean 1."""
    weights = np.maximum(table.regret, TIE_WEIGHT)
    return np.asarray(weights / weights.mean())


def fit_linear(columns: Floats, table: OutcomeTable, folds: NDArray[np.int64]) -> tuple[LinearHeads, Floats]:
    """Logistic regressions of one strength for all arms, chosen over `folds` [N] by their weighted log-loss.

    Returns: the heads, and log-odds [N, A] of each row by heads of that strength that were fitted without its fold.
    """
    weights = question_weights(table)
    found = []
    for strength in STRENGTHS:
        unseen = np.zeros_like(table.quality)
        for fold in np.unique(folds):
            rest = folds != fold
            heads = _linear(columns[rest], table.quality[rest], weights[rest], strength)
            unseen[~rest] = heads.scores(columns[~rest])
        found.append((_loss(unseen, table.quality, weights), strength, unseen))
    _, best, unseen = min(found, key=lambda each: each[0])
    return _linear(columns, table.quality, weights, best), unseen


def fit_trees(columns: Floats, table: OutcomeTable, seed: int) -> TreeHeads:
    """Gradient-boosted trees, as arrays."""
    weights = question_weights(table)
    grown: list[Any] = []
    for arm in range(len(table.arms)):
        doubled = _doubled(columns, table.quality[:, arm], weights)
        if doubled is None:
            grown.append(None)
            continue
        inputs, labels, counted = doubled
        grown.append(_booster(seed).fit(inputs, labels, sample_weight=counted))
    num_nodes = 2 ** (_DEPTH + 1) - 1
    shape = (len(grown), _NUM_TREES, num_nodes)
    column, value = np.zeros(shape, dtype=np.int32), np.zeros(shape)
    # An unused node is a leaf of value 0: it leads to itself.
    threshold = np.zeros(shape)
    left = np.broadcast_to(np.arange(num_nodes, dtype=np.int32), shape).copy()
    right = left.copy()
    bias = np.zeros(len(grown))
    for arm, model in enumerate(grown):
        if model is None:
            bias[arm] = _constant(table.quality[:, arm], weights)
            continue
        prior = model.init_.class_prior_
        bias[arm] = np.log(prior[1] / prior[0])
        for place, estimator in enumerate(model.estimators_[:, 0]):
            tree = estimator.tree_
            count = tree.node_count
            is_split = tree.children_left >= 0
            column[arm, place, :count] = np.where(is_split, tree.feature, 0)
            threshold[arm, place, :count] = np.where(is_split, tree.threshold, 0.0)
            left[arm, place, :count] = np.where(is_split, tree.children_left, np.arange(count))
            right[arm, place, :count] = np.where(is_split, tree.children_right, np.arange(count))
            value[arm, place, :count] = np.where(is_split, 0.0, _RATE * tree.value[:, 0, 0])
    return TreeHeads(column, threshold, left, right, value, bias, _DEPTH)


def check_learner() -> None:
    """Raises: ConfigError naming the extra where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError(
            "a router is fitted with scikit-learn, which is not installed. Run pip install 'switchyard[tune]'."
        ) from None


def _booster(seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(
        n_estimators=_NUM_TREES,
        max_depth=_DEPTH,
        learning_rate=_RATE,
        min_samples_leaf=_MIN_LEAF,
        subsample=_SUBSAMPLE,
        max_features=_MAX_FEATURES,
        random_state=seed,
    )


def _linear(columns: Floats, quality: Floats, weights: Floats, strength: float) -> LinearHeads:
    from sklearn.linear_model import LogisticRegression

    found, bias = np.zeros((quality.shape[1], columns.shape[1])), np.zeros(quality.shape[1])
    for arm in range(quality.shape[1]):
        doubled = _doubled(columns, quality[:, arm], weights)
        if doubled is None:
            bias[arm] = _constant(quality[:, arm], weights)
            continue
        model = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=_MAX_ITERATIONS)
        inputs, labels, counted = doubled
        model.fit(inputs, labels, sample_weight=counted)
        found[arm], bias[arm] = model.coef_[0], model.intercept_[0]
    return LinearHeads(found, bias)


def _doubled(columns: Floats, quality: Floats, weights: Floats) -> tuple[Floats, NDArray[np.int64], Floats] | None:
    """Rows as right answers weighed by their quality, and as wrong ones by the rest; None where all are of one kind."""
    counted = np.concatenate([weights * quality, weights * (1 - quality)])
    labels = np.concatenate([np.ones(len(quality), dtype=np.int64), np.zeros(len(quality), dtype=np.int64)])
    rows = np.concatenate([np.arange(len(quality))] * 2)[counted > 0]
    labels, counted = labels[counted > 0], counted[counted > 0]
    if labels.min() == labels.max():
        return None
    return columns[rows], labels, counted


def _constant(quality: Floats, weights: Floats) -> float:
    """Log-odds of an arm that is always right, or never."""
    mean = float(np.clip(np.average(quality, weights=weights), 1e-4, 1 - 1e-4))
    return float(np.log(mean / (1 - mean)))


def _loss(scores: Floats, quality: Floats, weights: Floats) -> float:
    said = np.clip(sigmoid(scores), 1e-9, 1 - 1e-9)
    losses = -(quality * np.log(said) + (1 - quality) * np.log(1 - said))
    return float((losses * weights[:, None]).sum())
