"""Models that train in seconds on the rows of `classify`: what an adapter has to beat to be worth its minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError
from engine.tuning.data.rows import LabelRow
from engine.tuning.outcome import Baseline, Metrics

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
# Inverse strength of the L2 penalty; of 1, 3 and 10, 10 did best on Financial PhraseBank.
_C = 10.0
_MAX_ITERATIONS = 200
_TOLERANCE = 1e-3
# Of words and of pieces of words each: of 5, 15 and 50 thousand, 15 did best on Financial PhraseBank.
_MIN_FEATURES, _MAX_FEATURES, _MAX_WEIGHTS = 2_000, 15_000, 1_200_000


def fit_baselines(
    train: Sequence[LabelRow], evaluations: Mapping[str, Sequence[LabelRow]], *, encode: Encode | None = None
) -> tuple[Baseline, ...]:
    """TF-IDF + logistic regression and, where `encode` is given, sentence embeddings + logistic regression.

    Both are fitted on `train` alone and answer the rows of each evaluation in their order. Seconds are of one fit and
    all answers, embedding included. The same rows give the same answers.

    Args:
        train: rows with two labels at least; each counts once, however often it is repeated in a training.
        encode: texts to embeddings [N, E]; cosine similarity is what counts, so they are scaled to unit length.
    Raises: ConfigError without scikit-learn.
    """
    check_learner()
    features: dict[str, Callable[[], Any]] = {"TF-IDF + LR": lambda: tfidf(len({row.label for row in train}))}
    if encode is not None:
        features["embeddings + LR"] = lambda: _Embeddings(encode)
    return tuple(_fit(name, make(), train, evaluations) for name, make in features.items())


def check_learner() -> None:
    """Raises: ConfigError naming the extra where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the models that an adapter is compared with need scikit-learn, which is not installed. "
            "Run pip install 'switchyard[tune]'."
        ) from None


def _fit(
    name: str, features: Any, train: Sequence[LabelRow], evaluations: Mapping[str, Sequence[LabelRow]]
) -> Baseline:
    from sklearn.linear_model import LogisticRegression

    started = time.perf_counter()
    inputs = features.fit_transform([row.text for row in train])
    model = LogisticRegression(C=_C, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
    model.fit(inputs, [row.label for row in train])
    answers = {
        evaluation: tuple(map(str, model.predict(features.transform([row.text for row in rows])))) if rows else ()
        for evaluation, rows in evaluations.items()
    }
    seconds = time.perf_counter() - started
    metrics = {evaluation: _metrics(evaluations[evaluation], answers[evaluation]) for evaluation in evaluations}
    return Baseline(name, seconds, metrics, answers)


def tfidf(num_labels: int) -> Any:
    """Words, pairs of words, and character 3- to 5-grams within words, which survive typing errors and inflection."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    # A weight for each label: the most frequent features are kept, so that those of a thousand labels fit into memory.
    most = min(_MAX_FEATURES, max(_MIN_FEATURES, _MAX_WEIGHTS // num_labels))
    # Symbols are words as well: whatever is visible has features.
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, max_features=most)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, max_features=most)
    return make_union(words, pieces)


class _Embeddings:
    """An encoder in the shape of scikit-learn's vectorizers."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def fit_transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Nothing is fitted."""
        return self.transform(texts)

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of unit length, [N, E]."""
        embeddings = np.asarray(self._encode(texts), dtype=np.float32)
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return np.asarray(embeddings / np.maximum(lengths, 1e-12), dtype=np.float32)


def _metrics(rows: Sequence[LabelRow], answers: Sequence[str]) -> Metrics:
    """Accuracy, and F1 averaged over the labels that occur in rows or answers; nothing of no rows."""
    from sklearn.metrics import f1_score

    if not rows:
        return {}
    labels = [row.label for row in rows]
    right = sum(label == answer for label, answer in zip(labels, answers, strict=True))
    macro_f1 = f1_score(labels, answers, average="macro", zero_division=0.0)
    return {"accuracy": right / len(rows), "macro_f1": float(macro_f1)}
