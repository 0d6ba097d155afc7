"""Is a new generation worse? Both are searched for the judged queries of every tenant, and compared query by query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.metrics.bootstrap import MIN_ROWS, paired_interval
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.index.fusion import MIN_JUDGED, JudgedQuery, fit_alpha, hybrid, ndcg, ranked
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.judged import Grades, judged_queries
from engine.retrieval.store.generations import Task

# Over all tenants: twice as many as one fit reads.
MAX_EVALUATED = 2_000


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two generations."""

    live: LiveCollection
    encoder: EncoderLike


@dataclass(frozen=True, slots=True)
class Comparison:
    """Means of nDCG@10 over queries; `gain` is that of new over old per query, with its 95 % interval.

    The interval is None for fewer queries than it takes (`metrics.bootstrap`).
    """

    num_queries: int
    old: float
    new: float
    gain: float
    gain_low: float | None
    gain_high: float | None

    @property
    def is_worse(self) -> bool:
        """Whether chance does not explain how much worse the new one is."""
        return self.gain_high is not None and self.gain_high < 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`default` is by the default fusion, on every query; `fitted` by weights fitted to one half of the queries for
    each generation, on the other half: None where no tenant has enough.
    """

    default: Comparison
    fitted: Comparison | None

    def to_json(self) -> dict[str, Any]:
        """As reports keep it."""
        return asdict(self)


def evaluate(
    old: Side,
    new: Side,
    collection: str,
    grades: Sequence[tuple[str, Grades]],
    default_alpha: float | None,
    check: Callable[[], None],
) -> Evaluation | None:
    """Compare two generations on tenants' judged queries; None where there are none.

    Args:
        grades: per tenant, by query the grades of documents.
        default_alpha: of the default fusion, None for ranks.
        check: called between pieces; raises where there is to be no other.
    """
    default: list[tuple[float, float]] = []
    fitted: list[tuple[float, float]] = []
    for tenant, queries in grades:
        chosen = dict(list(queries.items())[: MAX_EVALUATED - len(default)])
        pairs = [judged_queries(side.live, side.encoder, collection, tenant, chosen, check) for side in (old, new)]
        default += zip(*(_qualities(judged, default_alpha) for judged in pairs), strict=True)
        if len(chosen) >= MIN_JUDGED:
            alphas = [fit_alpha(judged[::2], at_least=1) for judged in pairs]
            halves = (_qualities(judged[1::2], alpha) for judged, alpha in zip(pairs, alphas, strict=True))
            fitted += zip(*halves, strict=True)
    if not default:
        return None
    return Evaluation(_compared(default), _compared(fitted) if fitted else None)


def decide(task: Task, found: Evaluation | None, collection: str, number: int) -> tuple[bool, str]:
    """Whether the new generation is put in place, and why or why not."""
    use = f"switchyard generations use {collection} {number}"
    if task == "always":
        return True, "it was asked for whatever the evaluation says"
    if task == "never":
        return False, f"it was only to be built; put it in place with: {use}"
    if found is None:
        return False, (
            "no query of the collection is judged, so nothing says whether it is worse. Judge some with `switchyard "
            f"judge`, or put it in place as it is: {use}"
        )
    if found.default.gain_high is None:
        return False, (
            f"{found.default.num_queries} judged queries say too little, {MIN_ROWS} are needed. Put it in place as it "
            f"is: {use}"
        )
    if found.default.is_worse:
        return False, f"it answers the judged queries worse; put it in place all the same with: {use}"
    return True, "it does not answer the judged queries worse"


def _qualities(judged: Sequence[JudgedQuery], alpha: float | None) -> list[float]:
    return [ndcg(hybrid(ranked(one.dense), ranked(one.lexical), alpha).pairs(), one) for one in judged]


def _compared(pairs: Sequence[tuple[float, float]]) -> Comparison:
    old, new = np.array(pairs, dtype=np.float64).T
    low, high = paired_interval(new - old) or (None, None)
    return Comparison(len(pairs), float(old.mean()), float(new.mean()), float((new - old).mean()), low, high)
