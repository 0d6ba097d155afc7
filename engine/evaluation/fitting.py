"""A router fitted to some questions: heads on most of them, curves, costs and confidence on the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.calibrating import fit_curves, fit_policy
from engine.evaluation.choosing import find_costs, measured, routed_by
from engine.evaluation.fitting_heads import fit_linear, fit_normaliser, fit_trees
from engine.evaluation.folds import make_folds
from engine.evaluation.table import OutcomeTable
from engine.routing.artefact import Objective
from engine.routing.heads import Floats, LinearHeads, Policy, QualityModel, TreeHeads, sigmoid

# Trees follow chance in fewer rows.
MIN_TREE_ROWS = 2_000
_NUM_INNER_FOLDS = 3

HeadKind = Literal["linear", "trees"]


@dataclass(frozen=True, slots=True)
class FittedRouter:
    """What decides, and which kind of heads it has. `why` says what the kind rests on."""

    model: QualityModel
    policy: Policy
    kind: HeadKind
    why: str


@dataclass(frozen=True, slots=True)
class Routed:
    """Decisions for questions that took no part in fitting what decided.

    before, expected: [N, A] quality before and after calibration. chosen: [N]. confidence: [N]. costs: [N, A], what
    counts against an arm where routes are compared; a budget is no cost, since all are held to it.
    """

    before: Floats
    expected: Floats
    costs: Floats
    chosen: NDArray[np.int32]
    confidence: Floats


def fit_router(fit: OutcomeTable, calibrate: OutcomeTable, objective: Objective, seed: int) -> FittedRouter:
    """Fit heads to `fit`; choose the kind of heads and find the costs on `calibrate`.

    Curves and confidence are fitted to questions that the heads which scored them had not seen. The same tables and
    seed give the same router.
    """
    normaliser = fit_normaliser(fit.values)
    columns = normaliser.columns(fit.values)
    linear, unseen = fit_linear(columns, fit, _inner_folds(fit, seed))
    heads: LinearHeads | TreeHeads = linear
    kind: HeadKind = "linear"
    why = f"logistic regression; trees are tried from {MIN_TREE_ROWS:,} questions on"
    if len(fit) + len(calibrate) >= MIN_TREE_ROWS:
        trees = fit_trees(columns, fit, seed)
        scores = normaliser.columns(calibrate.values)
        gain = _gain(trees.scores(scores), linear.scores(scores), calibrate, seed)
        why = f"logistic regression; trees did not beat it on the calibration split (interval {_said(gain)})"
        if gain is not None and gain[0] > 0:
            heads, kind = trees, "trees"
            why = f"gradient-boosted trees, which beat logistic regression on the calibration split by {_said(gain)}"
    scores = heads.scores(normaliser.columns(calibrate.values))
    # What the cross-validation of linear heads held out is calibrated on as well: few rows give curves of chance.
    known, quality = (
        (np.concatenate([unseen, scores]), np.concatenate([fit.quality, calibrate.quality]))
        if kind == "linear"
        else (scores, calibrate.quality)
    )
    curves = fit_curves(known, quality)
    costs = find_costs(objective, curves.qualities(scores), calibrate)
    policy = fit_policy(costs, curves.qualities(known), quality)
    return FittedRouter(QualityModel(normaliser, heads, curves), policy, kind, why)


def route(model: QualityModel, policy: Policy, values: Floats, objective: Objective) -> Routed:
    """The decisions for questions of signals `values` [N, F]."""
    scores = model.scores(values)
    expected = model.curves.qualities(scores)
    chosen, margins = policy.choose(expected)
    return Routed(
        before=sigmoid(scores),
        expected=expected,
        costs=np.tile(compared_costs(objective, policy.costs), (len(values), 1)),
        chosen=chosen,
        confidence=policy.confidence(margins),
    )


def compared_costs(objective: Objective, costs: Floats) -> Floats:
    """[A] costs as they count where routes are compared."""
    return np.zeros_like(costs) if objective.name == "budget" else costs


def _gain(trees: Floats, linear: Floats, calibrate: OutcomeTable, seed: int) -> tuple[float, float] | None:
    """The interval of the quality that trees route to beyond what lines do, each calibrated on the other half."""
    halves = make_folds(calibrate, 2, seed)
    gained = np.zeros(len(calibrate))
    free = np.zeros(len(calibrate.arms))
    for half in (0, 1):
        known, asked = halves != half, halves == half
        for scores, sign in ((trees, 1.0), (linear, -1.0)):
            curves = fit_curves(scores[known], calibrate.quality[known])
            shares = routed_by(free, curves.qualities(scores[asked]))
            gained[asked] += sign * measured(shares, calibrate.quality[asked])
    return calibrate.overall.interval(gained)


def _inner_folds(fit: OutcomeTable, seed: int) -> NDArray[np.int64]:
    return make_folds(fit, _NUM_INNER_FOLDS, seed + 1)


def _said(interval: tuple[float, float] | None) -> str:
    return "unknown: too few questions" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
