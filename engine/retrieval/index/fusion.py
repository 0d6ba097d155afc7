"""Two rankings to one: by ranks, or by a convex combination of scores whose weight is fitted on judged queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_CUT_OFF = 10
MIN_JUDGED = 100
_GRID = tuple(step / 20 for step in range(21))
# Hits of each leg that are fused; what both rank lower than this hardly decides the first ten.
FUSED_DEPTH = 100
# By ranks, support questions want k0 small, where 60 is customary, and a little more weight on meaning: they rarely use
# the page's words.
_RRF_K0 = 6
_RRF_WEIGHTS = (1.1, 1.0)  # dense, lexical

Ranking = list[tuple[int, float]]  # keys and scores, best first


@dataclass(frozen=True, slots=True)
class Hits:
    """A ranking in arrays: distinct keys [n] and their scores [n], best first."""

    keys: NDArray[np.int64]
    scores: NDArray[np.float64]

    def pairs(self, k: int | None = None) -> Ranking:
        """The first `k`, or all, as plain numbers."""
        return list(zip(self.keys[:k].tolist(), self.scores[:k].tolist(), strict=True))


def hits_of(ranking: Ranking) -> Hits:
    """The same in arrays."""
    return Hits(np.array([key for key, _ in ranking], np.int64), np.array([score for _, score in ranking], np.float64))


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """What both legs found for a query (key to score) and what is relevant (document to gain; absent is 0).

    `documents` gives the document of each key, for keys that are chunks: a document stands where its best chunk does. A
    key that it lacks is its own document.
    """

    dense: Mapping[int, float]
    lexical: Mapping[int, float]
    gains: Mapping[int, float]
    documents: Mapping[int, int] = field(default_factory=dict)


def hybrid(dense: Hits, lexical: Hits, alpha: float | None) -> Hits:
    """The ranking of a hybrid search: by scores with weight `alpha` of the dense leg, or by ranks (None).

    A score of 1 is first in both legs. Raises: see `convex`.
    """
    if alpha is not None:
        return convex(dense, lexical, alpha)
    fused = reciprocal_rank_fusion((dense.keys, lexical.keys), k0=_RRF_K0, weights=_RRF_WEIGHTS)
    return Hits(fused.keys, fused.scores / (sum(_RRF_WEIGHTS) / (_RRF_K0 + 1)))


def reciprocal_rank_fusion(
    rankings: Sequence[NDArray[np.int64]], *, k0: int = 60, weights: Sequence[float] | None = None
) -> Hits:
    """Sum over the rankings of weight / (k0 + rank), ranks from 1; best first, ties by key.

    Args:
        rankings: keys, best first; a key that a ranking lacks gets nothing from it.
        k0: the larger, the less the first ranks stand out.
        weights: one per ranking, finite and not negative; None weighs all alike.
    Raises: ValueError for a key twice in one ranking, k0 below 0, or weights that do not fit.
    Source: Cormack, Clarke and Buettcher, SIGIR 2009.
    """
    if k0 < 0:
        raise ValueError(f"k0={k0} is below 0; 60 is customary")
    weights = [1.0] * len(rankings) if weights is None else weights
    if len(weights) != len(rankings) or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights {list(weights)} do not fit {len(rankings)} rankings; give each one, 0 or more")
    for ranking in rankings:
        if len(np.unique(ranking)) != len(ranking):
            raise ValueError(f"a ranking of {len(ranking)} keys holds {len(np.unique(ranking))} distinct ones")
    if sum(map(len, rankings)) == 0:
        return hits_of([])
    keys = np.concatenate(rankings)
    parts = np.concatenate(
        [weight / (k0 + np.arange(1, len(one) + 1)) for one, weight in zip(rankings, weights, strict=True)]
    )
    # By size within a key: a sum does not depend on the order of the rankings, so that equal sums tie.
    order = np.lexsort((parts, keys))
    keys, parts = keys[order], parts[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return _sorted(keys[starts], np.add.reduceat(parts, starts))


def convex(dense: Hits, lexical: Hits, alpha: float) -> Hits:
    """alpha * dense + (1 - alpha) * lexical over normalised scores; best first, ties by key.

    Each leg is scaled per query to its best score as 1. BM25 begins at 0. Encoders differ in where the cosines of
    unrelated texts lie (about 0 or about 0.7), so the dense scale begins at its FUSED_DEPTH-th score, whatever more was
    fetched. A key that a leg lacks counts as the lowest of that leg's first FUSED_DEPTH, or 0 where there are fewer.

    Args:
        dense: keys by cosine similarity.
        lexical: keys by BM25 score.
        alpha: weight of the dense leg, in [0, 1]; at 0 and 1 only the keys of one leg are ranked.
    Raises: ValueError for alpha outside of [0, 1].
    Source: convex combination, Bruch, Gai and Ingber, arXiv:2210.11934.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is not in [0, 1]; 1 is the dense leg alone, 0 the lexical one")
    return _combined(_normalised(dense, None), _normalised(lexical, 0.0), alpha)


def fit_alpha(judged: Sequence[JudgedQuery], *, at_least: int = MIN_JUDGED) -> float:
    """The alpha in steps of 0.05 with the highest mean nDCG@10 (linear gain); of equals the one nearest to 0.5.

    Raises: ValueError when fewer than `at_least` queries have something relevant: the choice would be chance.
    """
    usable = [query for query in judged if any(gain > 0 for gain in query.gains.values())]
    if len(usable) < at_least:
        raise ValueError(
            f"{len(usable)} judged queries have something relevant; alpha needs {at_least} or more. "
            "Judge more queries, or use reciprocal rank fusion, which needs none."
        )
    legs = [(_normalised(ranked(query.dense), None), _normalised(ranked(query.lexical), 0.0)) for query in usable]
    means = {
        alpha: math.fsum(
            ndcg(_combined(dense, lexical, alpha).pairs(), query)
            for (dense, lexical), query in zip(legs, usable, strict=True)
        )
        for alpha in _GRID
    }
    return max(_GRID, key=lambda alpha: (means[alpha], -abs(alpha - 0.5)))


def ranked(scores: Mapping[int, float]) -> Hits:
    """Scores by key, best first, ties by key."""
    keys, values = np.array(list(scores.keys()), np.int64), np.array(list(scores.values()), np.float64)
    return _sorted(keys, values)


@dataclass(frozen=True, slots=True)
class _Leg:
    """Keys [n] with scores [n] from 0 to 1, and what a key without one counts as."""

    keys: NDArray[np.int64]
    scores: NDArray[np.float64]
    absent: float


def _combined(dense: _Leg, lexical: _Leg, alpha: float) -> Hits:
    if alpha in (0, 1):
        leg = dense if alpha == 1 else lexical
        return _sorted(leg.keys, leg.scores)
    order = np.argsort(lexical.keys)
    in_order = lexical.keys[order]
    places = np.searchsorted(in_order, dense.keys)
    is_shared = np.zeros(len(dense.keys), np.bool_)
    if len(order):
        places[places == len(order)] = 0
        is_shared = in_order[places] == dense.keys
    shared = order[places[is_shared]]  # of the lexical leg
    by_words = np.full(len(dense.keys), lexical.absent)
    by_words[is_shared] = lexical.scores[shared]
    is_alone = np.ones(len(order), np.bool_)
    is_alone[shared] = False
    return _sorted(
        np.concatenate([dense.keys, lexical.keys[is_alone]]),
        np.concatenate(
            [
                alpha * dense.scores + (1 - alpha) * by_words,
                alpha * dense.absent + (1 - alpha) * lexical.scores[is_alone],
            ]
        ),
    )


def _normalised(hits: Hits, floor: float | None) -> _Leg:
    """Scores from `floor` (None: the lowest that counts) to the best, as 0 to 1."""
    num_fused = min(len(hits.keys), FUSED_DEPTH)
    if num_fused == 0:
        return _Leg(hits.keys, hits.scores, 0.0)
    best, lowest = float(hits.scores[0]), float(hits.scores[num_fused - 1])
    low = lowest if floor is None else min(floor, lowest)
    width = best - low
    if width <= 0:
        return _Leg(hits.keys, np.ones(len(hits.keys)), 0.0)
    scaled = np.maximum((hits.scores - low) / width, 0.0)
    return _Leg(hits.keys, scaled, (lowest - low) / width if num_fused == FUSED_DEPTH else 0.0)


def _sorted(keys: NDArray[np.int64], scores: NDArray[np.float64]) -> Hits:
    order = np.lexsort((keys, -scores))
    return Hits(keys[order], scores[order])


def ndcg(ranking: Ranking, query: JudgedQuery) -> float:
    """nDCG@10 of the documents behind `ranking`, with linear gain; `query` has something relevant.

    Source: Jarvelin and Kekalainen, TOIS 2002.
    """
    first: dict[int, None] = {}
    for key, _ in ranking:
        first.setdefault(query.documents.get(key, key))
        if len(first) == _CUT_OFF:
            break
    found = [max(query.gains.get(document, 0.0), 0.0) for document in first]
    return _dcg(found) / _dcg(sorted((gain for gain in query.gains.values() if gain > 0), reverse=True)[:_CUT_OFF])


def _dcg(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
