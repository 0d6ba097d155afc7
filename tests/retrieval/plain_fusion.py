"""The two fusions as their formulas read, key by key: what the arrays must give to the last bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engine.retrieval.index.fusion import FUSED_DEPTH, Ranking


def plain_convex(dense: Mapping[int, float], lexical: Mapping[int, float], alpha: float) -> Ranking:
    """See `convex`."""
    legs = [(*_scaled(dense, None), alpha), (*_scaled(lexical, 0.0), 1 - alpha)]
    weighted = [leg for leg in legs if leg[2] > 0]
    keys = {key for scores, _, _ in weighted for key in scores}
    return _sorted({key: sum(w * scores.get(key, absent) for scores, absent, w in weighted) for key in keys})


def plain_reciprocal_ranks(rankings: Sequence[Sequence[int]], k0: int, weights: Sequence[float]) -> Ranking:
    """See `reciprocal_rank_fusion`."""
    parts: dict[int, list[float]] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, key in enumerate(ranking, start=1):
            parts.setdefault(key, []).append(weight / (k0 + rank))
    return _sorted({key: math.fsum(terms) for key, terms in parts.items()})


def _scaled(scores: Mapping[int, float], floor: float | None) -> tuple[dict[int, float], float]:
    """Scores from 0 to 1, and what a key without one counts as."""
    fused = sorted(scores.values(), reverse=True)[:FUSED_DEPTH]
    if not fused:
        return {}, 0.0
    low = fused[-1] if floor is None else min(floor, fused[-1])
    width = fused[0] - low
    if width <= 0:
        return dict.fromkeys(scores, 1.0), 0.0
    absent = (fused[-1] - low) / width if len(fused) == FUSED_DEPTH else 0.0
    return {key: max((score - low) / width, 0.0) for key, score in scores.items()}, absent


def _sorted(scores: Mapping[int, float]) -> Ranking:
    return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))
