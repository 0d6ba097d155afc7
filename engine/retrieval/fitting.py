"""The weight of meaning that judged queries ask for: fitted on one half of them, decided on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.retrieval.index.fusion import MIN_JUDGED, Hits, JudgedQuery, fit_alpha, hybrid, ndcg, ranked

_NUM_RESAMPLES = 2_000
_SEED = 7


@dataclass(frozen=True, slots=True)
class Fit:
    """What came out. Qualities are means of nDCG@10 over the queries that the weight was not fitted on.

    `gain` is that of `fitted` over `default` per query, `gain_low` and `gain_high` its 95 % confidence interval.
    """

    alpha: float
    is_used: bool
    num_fitted: int
    num_held_out: int
    default: float
    fitted: float
    dense: float
    lexical: float
    gain: float
    gain_low: float
    gain_high: float


def fit(judged: Sequence[JudgedQuery], default_alpha: float | None) -> Fit | None:
    """Fit the weight on every other query, and use it unless the others are answered worse than by the default.

    Args:
        judged: in an order that has nothing to do with what the queries are.
        default_alpha: the weight of the default fusion; None: reciprocal ranks.
    Returns: None for fewer than 100 queries that have something relevant.
    """
    usable = [query for query in judged if any(gain > 0 for gain in query.gains.values())]
    if len(usable) < MIN_JUDGED:
        return None
    seen, held_out = usable[::2], usable[1::2]
    alpha = fit_alpha(seen, at_least=1)
    default = [ndcg(hybrid(*_legs(query), default_alpha).pairs(), query) for query in held_out]
    fitted = [ndcg(hybrid(*_legs(query), alpha).pairs(), query) for query in held_out]
    gains = np.array(fitted) - np.array(default)
    drawn = np.random.default_rng(_SEED).integers(len(gains), size=(_NUM_RESAMPLES, len(gains)))
    low, high = np.percentile(gains[drawn].mean(axis=1), [2.5, 97.5])
    return Fit(
        alpha=alpha,
        is_used=bool(gains.mean() >= 0),
        num_fitted=len(seen),
        num_held_out=len(held_out),
        default=float(np.mean(default)),
        fitted=float(np.mean(fitted)),
        dense=float(np.mean([ndcg(_legs(query)[0].pairs(), query) for query in held_out])),
        lexical=float(np.mean([ndcg(_legs(query)[1].pairs(), query) for query in held_out])),
        gain=float(gains.mean()),
        gain_low=float(low),
        gain_high=float(high),
    )


def _legs(query: JudgedQuery) -> tuple[Hits, Hits]:
    return ranked(query.dense), ranked(query.lexical)
