"""Fit the head that judges evidence (`engine.routing.abstain`), and say how good it is on groups it was not fitted to.

A small head: logistic regression over the signals of a search. Its threshold keeps a wanted share of the questions that
can be answered; what that saves on the others is in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from engine.errors import TrainingDataError
from engine.evaluation.regression import fit_logistic, fit_shares, group_folds, spread_of
from engine.metrics.calibration import expected_calibration_error
from engine.metrics.ranking import auroc
from engine.routing.abstain import EvidenceHead
from engine.routing.ambiguity import SignalPart, platt, standardised
from engine.routing.signals.table import Floats, SignalTable
from engine.tuning.baselines import check_learner

NUM_FOLDS = 5
# Questions of either kind below which a threshold is chance.
MIN_OF_EACH = 25
# Times the root of the number of questions, the inverse of the L2 penalty.
_STRENGTH = 0.1


@dataclass(frozen=True, slots=True)
class EvidenceReport:
    """How well held-out questions are told apart.

    `scores` [N] are their probabilities, `is_answered` [N] whether they reach a threshold that other folds chose.
    Shares: of the questions that can be answered, those that are (`coverage`); of the others, those that are answered
    all the same (`false_answers`); and of all answers, those (`false_share`).
    """

    num_questions: int
    num_answerable: int
    auroc: float | None
    ece: float
    coverage: float
    false_answers: float
    false_share: float
    scores: Floats
    is_answered: NDArray[np.bool_]


def fit_evidence(
    signals: SignalTable,
    is_answerable: NDArray[np.bool_],
    groups: Sequence[str],
    *,
    encoder: str = "",
    coverage: float = 0.9,
    seed: int = 0,
) -> tuple[EvidenceHead, EvidenceReport]:
    """The head fitted on all questions, with a threshold that keeps the share `coverage` of the answerable ones.

    Args:
        signals: [N, F] of each question's search; those that are never known are left out.
        groups: [N] names; those of one are on one side of every split.
        encoder: digest of what the questions were embedded with.
    Raises: ConfigError without scikit-learn; TrainingDataError where there are too few of either kind, or of groups.
    """
    check_learner()
    truth = np.asarray(is_answerable, dtype=bool)
    _check(truth, groups)
    known = ~np.isnan(signals.values).all(axis=0)
    table = SignalTable(tuple(np.array(signals.names)[known].tolist()), signals.values[:, known])
    folds = group_folds(groups, NUM_FOLDS, seed)
    scores, probabilities = np.empty(len(truth)), np.empty(len(truth))
    answered = np.zeros(len(truth), dtype=bool)
    for fold in range(NUM_FOLDS):
        held_out = folds == fold
        part, bias = _fit(_rows(table, ~held_out), truth[~held_out])
        scores[held_out] = bias + part.scores(part.columns(_rows(table, held_out), int(held_out.sum())))
    for fold in range(NUM_FOLDS):
        held_out = folds == fold
        slope, offset = fit_shares(scores[~held_out], truth[~held_out].astype(np.float64))
        probabilities[held_out] = platt(scores[held_out], slope, offset)
        answered[held_out] = scores[held_out] >= _threshold(scores[~held_out], truth[~held_out], coverage)
    part, bias = _fit(table, truth)
    slope, offset = fit_shares(scores, truth.astype(np.float64))
    threshold = platt(np.array([_threshold(scores, truth, coverage)]), slope, offset)
    head = EvidenceHead(part, bias, slope, offset, float(threshold[0]), encoder)
    return head, judged_evidence(truth, probabilities, answered)


def judged_evidence(is_answerable: NDArray[np.bool_], scores: Floats, is_answered: NDArray[np.bool_]) -> EvidenceReport:
    """The report of [N] probabilities and what was answered."""
    num_answered = int(is_answered.sum())
    return EvidenceReport(
        num_questions=len(is_answerable),
        num_answerable=int(is_answerable.sum()),
        auroc=auroc(scores, is_answerable),
        ece=expected_calibration_error(scores, is_answerable),
        coverage=float(is_answered[is_answerable].mean()),
        false_answers=float(is_answered[~is_answerable].mean()),
        false_share=float((is_answered & ~is_answerable).sum() / max(1, num_answered)),
        scores=scores,
        is_answered=is_answered,
    )


def _fit(table: SignalTable, truth: NDArray[np.bool_]) -> tuple[SignalPart, float]:
    from scipy.sparse import csr_matrix

    means, scales = spread_of(table)
    columns = standardised(table.values, means, scales)
    weights, bias = fit_logistic(csr_matrix(columns), truth.astype(np.float64), _STRENGTH * sqrt(len(truth)))
    known, unknown = np.split(weights, 2)
    return SignalPart(table.names, means, scales, known, unknown), bias


def _threshold(scores: Floats, truth: NDArray[np.bool_], coverage: float) -> float:
    """The highest score that `coverage` of the answerable questions reach."""
    return float(np.quantile(scores[truth], 1 - coverage, method="lower"))


def _rows(table: SignalTable, rows: NDArray[np.bool_]) -> SignalTable:
    return SignalTable(table.names, table.values[rows])


def _check(truth: NDArray[np.bool_], groups: Sequence[str]) -> None:
    num, answerable = len(truth), int(truth.sum())
    if min(answerable, num - answerable) < MIN_OF_EACH:
        raise TrainingDataError(
            f"{answerable} of {num} questions can be answered; the evidence head needs {MIN_OF_EACH} of each kind at "
            "least. Add questions, or leave router.abstain.head out."
        )
    of_each = Counter(kind for _, kind in {*zip(groups, truth.tolist(), strict=True)})
    if len(set(groups)) < NUM_FOLDS or min(of_each.values()) < 2:
        raise TrainingDataError(
            f"the {num} questions are of {len(set(groups))} groups, {of_each[True]} of them with answerable ones; "
            f"{NUM_FOLDS} are needed and 2 with each kind. Name smaller groups."
        )
