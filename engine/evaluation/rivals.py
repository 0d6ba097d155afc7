"""Simpler ways to choose an arm, which a learned router has to beat; fitted on the same questions at the same costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.choosing import one_hot, worthiest_arm
from engine.evaluation.overall import Overall
from engine.evaluation.table import OutcomeTable
from engine.routing.heads import Floats
from engine.tuning.baselines import tfidf

SINGLE, MAJORITY, RANDOM = "best single arm", "majority arm", "random at the same rate"
WORDS, NEIGHBOURS = "TF-IDF + LR", "kNN over embeddings"
NUM_NEIGHBOURS = 10
_EQUAL = 1e-9
_C = 1.0
_CHUNK = 512


def rival_shares(
    train: OutcomeTable, test: OutcomeTable, costs: Floats, single: int | None = None
) -> dict[str, Floats]:
    """The choices [N, A] that each rival makes for `test`; one that lacks what it needs is left out.

    Args:
        costs: [A] of quality.
        single: the best single arm; None takes the one that is worth most.
    """
    worth, overall = train.quality - costs, train.overall
    num_arms = len(train.arms)
    single = worthiest_arm(worth, overall) if single is None else single
    choices = {
        SINGLE: np.full(len(test), single, dtype=np.int64),
        MAJORITY: np.full(len(test), _majority(worth, single, overall), dtype=np.int64),
    }
    if train.texts is not None and test.texts is not None:
        choices[WORDS] = _by_words(train.texts, test.texts, worth, single)
    if train.embeddings is not None and test.embeddings is not None:
        choices[NEIGHBOURS] = _by_neighbours(train.embeddings, test.embeddings, worth)
    return {name: one_hot(chosen, num_arms) for name, chosen in choices.items()}


def rivals_not_run(table: OutcomeTable) -> dict[str, str]:
    """Why a rival cannot be asked, by name."""
    missing = {}
    if table.texts is None:
        missing[WORDS] = "the outcomes hold no texts of questions"
    if table.embeddings is None:
        missing[NEIGHBOURS] = "the outcomes hold no embeddings of questions"
    return missing


def random_shares(chosen: Floats, overall: Overall) -> Floats:
    """Arms drawn for each question as often as `chosen` [N, A] takes them over all, and so with passages as often."""
    return np.tile(overall.means(chosen), (len(chosen), 1))


def held_to(rate: float, shares: Floats, train: OutcomeTable, overall: Overall) -> Floats:
    """`shares` [N, A] of questions that make up `overall`, with passages for `rate` of the questions at most.

    Where there are more, they are left out by chance, and the best arm without them answers.
    """
    with_context = train.has_context
    used = overall.mean(shares[:, with_context].sum(axis=1))
    if used <= rate + _EQUAL:
        return shares
    held = np.where(with_context, shares * (rate / used), shares)
    direct = np.where(with_context, -np.inf, train.overall.means(train.quality))
    held[:, int(direct.argmax())] += 1 - held.sum(axis=1)
    return held


def _majority(worth: Floats, single: int, overall: Overall) -> int:
    """The arm that is best for the most questions; equally good ones share a question."""
    is_best = worth >= worth.max(axis=1, keepdims=True) - _EQUAL
    credit = overall.means(is_best / is_best.sum(axis=1, keepdims=True)).round(9)
    return single if credit[single] == credit.max() else int(credit.argmax())


def _by_words(train: tuple[str, ...], test: tuple[str, ...], worth: Floats, single: int) -> NDArray[np.int64]:
    """The best arm as a label of the text, weighed by what the worst one loses."""
    from sklearn.linear_model import LogisticRegression

    regret = worth.max(axis=1) - worth.min(axis=1)
    counts = np.flatnonzero(regret > _EQUAL)
    labels = worth.argmax(axis=1)
    labels[worth[:, single] >= worth.max(axis=1) - _EQUAL] = single
    if len(counts) == 0 or len({*labels[counts].tolist()}) == 1:
        return np.full(len(test), labels[counts[0]] if len(counts) else single, dtype=np.int64)
    features = tfidf(worth.shape[1])
    inputs = features.fit_transform([train[row] for row in counts])
    model = LogisticRegression(C=_C, max_iter=200, tol=1e-3)
    model.fit(inputs, labels[counts], sample_weight=regret[counts] / regret[counts].mean())
    return np.asarray(model.predict(features.transform(list(test))), dtype=np.int64)


def _by_neighbours(train: Floats, test: Floats, worth: Floats) -> NDArray[np.int64]:
    """The arm that was worth most for the nearest questions by cosine."""
    known, asked = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (train, test))
    num = min(NUM_NEIGHBOURS, len(known))
    found = []
    for first in range(0, len(asked), _CHUNK):
        near = np.argpartition(-(asked[first : first + _CHUNK] @ known.T), num - 1, axis=1)[:, :num]
        found.append(worth[near].mean(axis=1).argmax(axis=1))
    return np.concatenate(found).astype(np.int64)
