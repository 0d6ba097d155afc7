"""Fit the ambiguity head of `engine.routing.ambiguity`, and say how good it is on questions that it was not fitted on.

One logistic regression over all parts, so that each is weighed beside the others. What a question is judged by in the
report was fitted on other groups: the head, its calibration and the baseline alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from engine.errors import TrainingDataError
from engine.evaluation.ambiguity_report import AmbiguityReport, judged, naive_bayes
from engine.evaluation.regression import fit_logistic, fit_shares, group_folds, spread_of
from engine.routing.ambiguity import (
    AmbiguityHead,
    EmbeddingPart,
    SignalPart,
    WordPart,
    nearness,
    platt,
    points_of,
    standardised,
)
from engine.routing.question_features import hashed_rows
from engine.routing.signals.lexical import plain_words
from engine.routing.signals.table import Floats, SignalTable
from engine.tuning.baselines import check_learner

# Fewer questions of the rarer kind say nothing about the next ones.
MIN_OF_EACH = 25
NUM_FOLDS = 5
# Columns of hashed words, where 10,000 questions have about 80,000 different n-grams; the file has 4 bytes for each.
WIDTH = 2**16
NUM_COMMON = 300
_LEAST_LENGTH = 1e-5


@dataclass(frozen=True, slots=True)
class AmbiguityExamples:
    """Questions of which people said whether they have several readings.

    `shares` [N] in [0, 1] are the shares of annotators who saw several; `embeddings` [N, E] unit rows by the encoder of
    digest `encoder`, None to fit words alone; `groups` [N] name questions that must not be on both sides of a split.
    """

    questions: Sequence[str]
    shares: Floats
    groups: Sequence[str]
    embeddings: NDArray[np.float32] | None = None
    encoder: str = ""
    signals: SignalTable | None = None

    def rows(self, places: NDArray[np.intp]) -> AmbiguityExamples:
        """Those at `places`."""
        return AmbiguityExamples(
            [self.questions[place] for place in places],
            self.shares[places],
            [self.groups[place] for place in places],
            None if self.embeddings is None else self.embeddings[places],
            self.encoder,
            None if self.signals is None else SignalTable(self.signals.names, self.signals.values[places]),
        )


@dataclass(frozen=True, slots=True)
class AmbiguitySettings:
    """`strength` over the root of the number of questions is the inverse of the L2 penalty (scikit-learn's C): what
    more questions say once each is still noise. `embedding_scale` and `signal_scale` say how much a unit of those parts
    may weigh against one of words; `point_scale` is that of signals in the kernel. `bandwidth` is gamma of the kernel
    exp(-gamma |x - y|^2), for which the distances to `num_landmarks` drawn questions stand (Nystroem; Williams and
    Seeger, NIPS 2000).
    """

    strength: float = 10.0
    num_landmarks: int = 1_000
    bandwidth: float = 0.6
    embedding_scale: float = 3.0
    signal_scale: float = 0.2
    point_scale: float = 0.2
    seed: int = 0


def fit_ambiguity(
    examples: AmbiguityExamples, settings: AmbiguitySettings | None = None
) -> tuple[AmbiguityHead, AmbiguityReport]:
    """The head fitted on all examples, calibrated on held-out scores, and how good it was on those.

    The same examples and settings give the same head on the same machine.
    Raises: ConfigError without scikit-learn, TrainingDataError where there are too few of either kind, or of groups.
    """
    check_learner()
    _check(examples)
    chosen = settings or AmbiguitySettings()
    folds = group_folds(examples.groups, NUM_FOLDS, chosen.seed)
    truth = examples.shares >= 0.5
    scores, baseline = np.empty(len(truth)), np.empty(len(truth))
    for fold in range(NUM_FOLDS):
        held_out, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        train, test = examples.rows(rest), examples.rows(held_out)
        scores[held_out] = fit_scores(train, chosen).scores(test.questions, test.embeddings, test.signals)
        baseline[held_out] = naive_bayes(train.questions, truth[rest], test.questions)
    calibrated = np.empty(len(truth))
    for fold in range(NUM_FOLDS):
        is_rest = folds != fold
        calibrated[~is_rest] = platt(scores[~is_rest], *fit_shares(scores[is_rest], examples.shares[is_rest]))
    slope, offset = fit_shares(scores, examples.shares)
    bare = fit_scores(examples, chosen)
    head = AmbiguityHead(bare.bias, bare.words, bare.embedding, bare.signals, slope, offset)
    return head, judged(truth, scores, platt(scores, 1.0, 0.0), calibrated, baseline)


def fit_scores(examples: AmbiguityExamples, settings: AmbiguitySettings) -> AmbiguityHead:
    """A head without calibration: slope 1, offset 0."""
    from scipy.sparse import csr_matrix, hstack

    counts = Counter(word for question in examples.questions for word in set(plain_words(question)))
    # Of equally frequent words the first in the alphabet, on every machine.
    common = frozenset(sorted(counts, key=lambda word: (-counts[word], word))[:NUM_COMMON])
    hashed = hashed_rows(examples.questions, WIDTH, common)
    parts = [csr_matrix((hashed.values, hashed.columns, hashed.starts), shape=(len(examples.questions), WIDTH))]
    columns = np.empty((len(examples.questions), 0))
    if examples.signals is not None:
        means, scales = spread_of(examples.signals)
        columns = standardised(examples.signals.values, means, scales)
    if examples.embeddings is not None:
        points = points_of(examples.embeddings, columns, settings.point_scale)
        landmarks, basis = _landmarks(points, settings)
        parts.append(csr_matrix(nearness(points, landmarks, settings.bandwidth) @ basis))
    parts.append(csr_matrix(columns * settings.signal_scale))
    weights, bias = fit_logistic(
        hstack(parts, format="csr"), examples.shares, settings.strength / sqrt(len(examples.questions))
    )
    words, rest = weights[:WIDTH].astype(np.float32), weights[WIDTH:]
    embedding, signals = None, None
    if examples.embeddings is not None:
        num = basis.shape[1]
        embedding = EmbeddingPart(
            examples.encoder,
            landmarks,
            (basis @ rest[:num]).astype(np.float32),
            settings.bandwidth,
            settings.point_scale,
        )
        rest = rest[num:]
    if examples.signals is not None:
        known, unknown = np.split(rest * settings.signal_scale, 2)
        signals = SignalPart(examples.signals.names, means, scales, known, unknown)
    return AmbiguityHead(bias, WordPart(words, common), embedding, signals, 1.0, 0.0)


def _check(examples: AmbiguityExamples) -> None:
    num, ambiguous = len(examples.shares), int((examples.shares >= 0.5).sum())
    if min(ambiguous, num - ambiguous) < MIN_OF_EACH:
        raise TrainingDataError(
            f"{ambiguous} of {num} questions have several readings; the ambiguity head needs {MIN_OF_EACH} of each "
            "kind at least. Label more questions, or leave clarifying questions off."
        )
    groups = len(set(examples.groups))
    kinds = zip(examples.groups, examples.shares >= 0.5, strict=True)
    of_each = Counter(is_ambiguous for _, is_ambiguous in set(kinds))
    if groups < NUM_FOLDS or min(of_each.values()) < 2:
        raise TrainingDataError(
            f"the {num} questions are of {groups} groups, {of_each[True]} of them with ambiguous questions; "
            f"{NUM_FOLDS} are needed and 2 with each kind, so that the head is judged by others than it was fitted on. "
            "Name smaller groups."
        )


def _landmarks(points: NDArray[np.float32], settings: AmbiguitySettings) -> tuple[NDArray[np.float32], Floats]:
    """Landmarks [M, P], and the basis [M, B] that makes of nearness to them features whose products are the kernel."""
    num = min(settings.num_landmarks, len(points))
    drawn = np.sort(np.random.default_rng(settings.seed).choice(len(points), num, replace=False))
    landmarks = np.ascontiguousarray(points[drawn])
    values, vectors = np.linalg.eigh(nearness(landmarks, landmarks, settings.bandwidth).astype(np.float64))
    # Near-duplicates among the landmarks give directions of next to no length: noise, divided by next to nothing.
    is_real = values > _LEAST_LENGTH * values[-1]
    return landmarks, vectors[:, is_real] / np.sqrt(values[is_real]) * settings.embedding_scale
