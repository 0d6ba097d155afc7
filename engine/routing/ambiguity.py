"""Has a question several readings? A head on its words, its embedding and, where there are any, other signals.

An underspecified question is not a gap of knowledge: there passages help, here only asking back does. The head is
fitted by `engine.evaluation.ambiguity`; this module reads it and applies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.routing.question_features import hashed_rows
from engine.routing.signals.table import Floats, SignalTable

Weights = NDArray[np.float32]
# A signal further from its mean counts as this many standard deviations: no question outweighs everything else.
MAX_DEVIATIONS = 4.0
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WordPart:
    """Weights [W] of hashed n-grams, and the words that their patterns keep."""

    weights: Weights
    common: frozenset[str]

    def scores(self, questions: Sequence[str]) -> Floats:
        """[N] share of the score."""
        return hashed_rows(questions, len(self.weights), self.common).products(self.weights)


@dataclass(frozen=True, slots=True)
class EmbeddingPart:
    """How near a question is to `landmarks` [M, P] among the training questions, each by its weight [M].

    Near is exp(-bandwidth |x - y|^2) of points [P]: the embedding [E] by the encoder of digest `encoder`, a unit row,
    and behind it the standardised signals [2F] times `signal_scale`, where the head reads signals: what the embedding
    says of a subject means another thing of "who" than of "when".
    """

    encoder: str
    landmarks: Vectors
    weights: Weights
    bandwidth: float
    signal_scale: float
    # Of the landmarks [M]: they are many, and the same for every question.
    _squares: Vectors = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_squares", squares_of(self.landmarks))

    def scores(self, embeddings: Vectors, columns: Floats) -> Floats:
        """[N] share of the score; `columns` [N, 2F] are standardised signals."""
        points = points_of(embeddings, columns, self.signal_scale)
        near = nearness(points, self.landmarks, self.bandwidth, self._squares)
        return np.asarray(near @ self.weights, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class SignalPart:
    """Weights [F] of signals by name, in standard deviations `scales` from their `means`.

    An unknown signal adds its weight [F] of `unknown` and counts as its mean.
    """

    names: tuple[str, ...]
    means: Floats
    scales: Floats
    weights: Floats
    unknown: Floats

    def columns(self, signals: SignalTable | None, num: int) -> Floats:
        """[N, 2F] standardised; without a table every signal is unknown."""
        values = np.full((num, len(self.names)), np.nan) if signals is None else signals.select(self.names).values
        return standardised(values, self.means, self.scales)

    def scores(self, columns: Floats) -> Floats:
        """[N] share of the score of standardised signals."""
        return np.asarray(columns @ np.concatenate([self.weights, self.unknown]))


@dataclass(frozen=True, slots=True)
class AmbiguityHead:
    """The fitted head. A part that is None was not fitted.

    Scores are in logits before calibration; a probability is sigmoid(slope * score + offset) (Platt, 1999), of what it
    was fitted on: the share of annotators who saw several readings.
    """

    bias: float
    words: WordPart
    embedding: EmbeddingPart | None
    signals: SignalPart | None
    slope: float
    offset: float

    @property
    def embedding_size(self) -> int:
        """E of the embeddings that it reads; 0 where it reads none."""
        if self.embedding is None:
            return 0
        return int(self.embedding.landmarks.shape[1]) - (0 if self.signals is None else 2 * len(self.signals.names))

    def scores(
        self,
        questions: Sequence[str],
        embeddings: Vectors | None = None,
        signals: SignalTable | None = None,
    ) -> Floats:
        """[N] uncalibrated logits.

        Args:
            embeddings: [N, E] unit rows of the questions, by the encoder that the head names.
            signals: of the same questions; those that the head does not name are not read.
        Raises: ValueError when embeddings are missing, or do not fit.
        """
        num = len(questions)
        scores = self.bias + self.words.scores(questions)
        columns = np.empty((num, 0)) if self.signals is None else self.signals.columns(signals, num)
        if self.embedding is not None:
            wanted = (num, self.embedding_size)
            if embeddings is None or embeddings.shape != wanted:
                found = None if embeddings is None else embeddings.shape
                raise ValueError(f"embeddings are {found}; this head needs {wanted}")
            scores = scores + self.embedding.scores(embeddings, columns)
        if self.signals is not None:
            scores = scores + self.signals.scores(columns)
        return scores

    def probabilities(
        self,
        questions: Sequence[str],
        embeddings: Vectors | None = None,
        signals: SignalTable | None = None,
    ) -> Floats:
        """[N] calibrated probabilities that a question has several readings; arguments as of `scores`."""
        return platt(self.scores(questions, embeddings, signals), self.slope, self.offset)


def platt(scores: Floats, slope: float, offset: float) -> Floats:
    """[N] sigmoid(slope * score + offset); tanh does not overflow, however large the score."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * (slope * scores + offset))))


def points_of(embeddings: Vectors, columns: Floats, signal_scale: float) -> Vectors:
    """[N, E + 2F] what nearness is measured between."""
    return np.hstack([embeddings, columns * signal_scale]).astype(np.float32)


def squares_of(rows: Vectors) -> Vectors:
    """[N] squared lengths."""
    return np.asarray((rows**2).sum(axis=1), dtype=np.float32)


def nearness(points: Vectors, landmarks: Vectors, bandwidth: float, landmark_squares: Vectors | None = None) -> Vectors:
    """[N, M] in (0, 1]: exp(-bandwidth |x - y|^2). `landmark_squares` [M], where they are known already."""
    known = squares_of(landmarks) if landmark_squares is None else landmark_squares
    squares = squares_of(points)[:, None] + known - 2 * (points @ landmarks.T)
    return np.asarray(np.exp(np.float32(-bandwidth) * np.maximum(squares, 0)), dtype=np.float32)


def standardised(values: Floats, means: Floats, scales: Floats) -> Floats:
    """[N, 2F]: [N, F] values in standard deviations, 0 where unknown; then 1 where unknown, else 0."""
    is_unknown = np.isnan(values)
    deviations = np.clip((values - means) / scales, -MAX_DEVIATIONS, MAX_DEVIATIONS)
    return np.hstack([np.where(is_unknown, 0.0, deviations), is_unknown.astype(np.float64)])
