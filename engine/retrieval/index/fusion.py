"""Two rankings to one: by ranks, or by a convex combination of scores whose weight is fitted on judged queries."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
class JudgedQuery:
    """What both legs found for a query (key to score) and what is relevant (document to gain; absent is 0).

    `documents` gives the document of each key, for keys that are chunks: a document stands where its best chunk does. A
    key that it lacks is its own document.
    """

    dense: Mapping[int, float]
    lexical: Mapping[int, float]
    gains: Mapping[int, float]
    documents: Mapping[int, int] = field(default_factory=dict)


def hybrid(dense: Ranking, lexical: Ranking, alpha: float | None) -> Ranking:
    """The ranking of a hybrid search: by scores with weight `alpha` of the dense leg, or by ranks (None).

    A score of 1 is first in both legs.
    """
    if alpha is not None:
        return convex(dict(dense), dict(lexical), alpha)
    fused = reciprocal_rank_fusion(
        [[key for key, _ in leg] for leg in (dense, lexical)], k0=_RRF_K0, weights=_RRF_WEIGHTS
    )
    best_possible = sum(_RRF_WEIGHTS) / (_RRF_K0 + 1)
    return [(key, score / best_possible) for key, score in fused]


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]], *, k0: int = 60, weights: Sequence[float] | None = None
) -> Ranking:
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
    parts: defaultdict[int, list[float]] = defaultdict(list)
    for ranking, weight in zip(rankings, weights, strict=True):
        if len(set(ranking)) != len(ranking):
            raise ValueError(f"a ranking of {len(ranking)} keys holds {len(set(ranking))} distinct ones")
        for rank, key in enumerate(ranking, start=1):
            parts[key].append(weight / (k0 + rank))
    # fsum does not depend on the order of the rankings, so that equal sums tie.
    return _ranked({key: math.fsum(terms) for key, terms in parts.items()})


def convex(dense: Mapping[int, float], lexical: Mapping[int, float], alpha: float) -> Ranking:
    """alpha * dense + (1 - alpha) * lexical over normalised scores; best first, ties by key.

    Each leg is scaled per query to its best score as 1. BM25 begins at 0. Encoders differ in where the cosines of
    unrelated texts lie (about 0 or about 0.7), so the dense scale begins at its FUSED_DEPTH-th score, whatever more was
    fetched. A key that a leg lacks counts as the lowest of that leg's first FUSED_DEPTH, or 0 where there are fewer.

    Args:
        dense: cosine similarities by key.
        lexical: BM25 scores by key.
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
    legs = [(_normalised(query.dense, None), _normalised(query.lexical, 0.0)) for query in usable]
    means = {
        alpha: math.fsum(
            ndcg(_combined(dense, lexical, alpha), query) for (dense, lexical), query in zip(legs, usable, strict=True)
        )
        for alpha in _GRID
    }
    return max(_GRID, key=lambda alpha: (means[alpha], -abs(alpha - 0.5)))


@dataclass(frozen=True, slots=True)
class _Leg:
    """Scores from 0 to 1, and what a key without one counts as."""

    scores: Mapping[int, float]
    absent: float


def _combined(dense: _Leg, lexical: _Leg, alpha: float) -> Ranking:
    weighted = [(leg, weight) for leg, weight in ((dense, alpha), (lexical, 1 - alpha)) if weight > 0]
    keys = {key for leg, _ in weighted for key in leg.scores}
    return _ranked({key: sum(weight * leg.scores.get(key, leg.absent) for leg, weight in weighted) for key in keys})


def _normalised(scores: Mapping[int, float], floor: float | None) -> _Leg:
    """Scores from `floor` (None: the lowest that counts) to the best, as 0 to 1."""
    fused = sorted(scores.values(), reverse=True)[:FUSED_DEPTH]
    if not fused:
        return _Leg({}, 0.0)
    best, lowest = fused[0], fused[-1]
    low = lowest if floor is None else min(floor, lowest)
    width = best - low
    scaled = {key: max((score - low) / width, 0.0) if width > 0 else 1.0 for key, score in scores.items()}
    is_cut = len(fused) == FUSED_DEPTH
    return _Leg(scaled, (lowest - low) / width if is_cut and width > 0 else 0.0)


def _ranked(scores: Mapping[int, float]) -> Ranking:
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))


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
