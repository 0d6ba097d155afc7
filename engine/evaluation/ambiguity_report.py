"""How good an ambiguity head is, beside what the words alone give away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.metrics.calibration import brier_score, expected_calibration_error
from engine.metrics.ranking import auroc, auroc_gain_interval, auroc_interval
from engine.routing.signals.table import Floats


@dataclass(frozen=True, slots=True)
class AmbiguityReport:
    """How well scores of held-out questions rank them (positive: a share of at least half), with 95 % intervals.

    `baseline` is naive Bayes on words and pairs of words; `gain` bounds the difference, paired. ECE and Brier score are
    before and after calibration. None where a figure of so few questions is not given.
    """

    num_questions: int
    num_ambiguous: int
    auroc: float | None
    interval: tuple[float, float] | None
    baseline: float | None
    gain: tuple[float, float] | None
    ece_before: float
    ece_after: float
    brier_before: float
    brier_after: float


def judged(
    truth: NDArray[np.bool_], scores: Floats, before: Floats, after: Floats, baseline: Floats
) -> AmbiguityReport:
    """The report of [N] scores and probabilities `before` and `after` calibration beside the scores of a baseline."""
    return AmbiguityReport(
        num_questions=len(truth),
        num_ambiguous=int(truth.sum()),
        auroc=auroc(scores, truth),
        interval=auroc_interval(scores, truth),
        baseline=auroc(baseline, truth),
        gain=auroc_gain_interval(scores, baseline, truth),
        ece_before=expected_calibration_error(before, truth),
        ece_after=expected_calibration_error(after, truth),
        brier_before=brier_score(before, truth),
        brier_after=brier_score(after, truth),
    )


def naive_bayes(questions: Sequence[str], truth: NDArray[np.bool_], asked: Sequence[str]) -> Floats:
    """[N] log-odds of `asked` by which words and pairs of words occur at all, fitted on `questions` with `truth`."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import BernoulliNB

    words = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\w+")
    model = BernoulliNB().fit(words.fit_transform(questions), truth)
    logs = model.predict_log_proba(words.transform(asked))
    return np.asarray(logs[:, 1] - logs[:, 0])
