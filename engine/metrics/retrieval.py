"""How high a search ranks the documents that hold the answer. Relevance is yes or no.

nDCG discounts by the logarithm of the rank (Jarvelin, Kekalainen 2002); the reciprocal rank is 0 beyond the cut-off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import log2


def recall(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant that stand among the first `k`. Raises: ValueError where nothing is relevant."""
    return len({*_first(ranking, k)} & _checked(relevant)) / len({*relevant})


def hit(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 where a relevant one stands among the first `k`. Raises: see `recall`."""
    return float(not _checked(relevant).isdisjoint(_first(ranking, k)))


def reciprocal_rank(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """1 / rank of the first relevant one among the first `k`, else 0. Raises: see `recall`."""
    wanted = _checked(relevant)
    return next((1 / rank for rank, each in enumerate(_first(ranking, k), start=1) if each in wanted), 0.0)


def ndcg(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Discounted gain of the first `k` against that of the best ranking. Raises: see `recall`."""
    wanted = _checked(relevant)
    gain = sum(1 / log2(rank + 1) for rank, each in enumerate(_first(ranking, k), start=1) if each in wanted)
    return gain / sum(1 / log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))


def _first(ranking: Sequence[str], k: int) -> list[str]:
    """The first `k` different ones: a document counts once, where its best passage stands."""
    return list(dict.fromkeys(ranking))[:k]


def _checked(relevant: Collection[str]) -> set[str]:
    if not relevant:
        raise ValueError("where nothing is relevant there is nothing to find")
    return {*relevant}
