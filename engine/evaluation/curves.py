"""Quality over its costs: what other operating points would have given."""

from __future__ import annotations

import numpy as np

from engine.evaluation.choosing import latency_costs, latency_prices, measured, one_hot, routed_by
from engine.evaluation.figures import Curve, Estimate
from engine.evaluation.fitting import Routed
from engine.evaluation.intervals import bounds
from engine.evaluation.table import OutcomeTable
from engine.routing.artefact import FrontierPoint
from engine.routing.heads import Floats

_NUM_FRONTIER = 10
_NUM_CURVE = 21


def context_curve(table: OutcomeTable, routed: Routed) -> Curve | None:
    """Quality over the share of questions with passages; None where all arms use them, or none does."""
    with_context, overall = table.has_context, table.overall
    if with_context.all() or not with_context.any():
        return None
    gains = routed.expected[:, with_context].max(axis=1) - routed.expected[:, ~with_context].max(axis=1)
    prices = [2.0, *np.quantile(gains, np.linspace(1, 0, _NUM_CURVE)).tolist(), -2.0]
    routes = [routed_by(np.where(with_context, price, 0.0), routed.expected) for price in prices]
    rates = np.array([overall.mean(each[:, with_context].sum(axis=1)) for each in routes])
    values = np.stack([measured(each, table.quality) for each in routes], axis=1)
    qualities, means = overall.means(values), overall.resampled(values)
    area = _area(rates, qualities[None])
    return Curve(
        tuple(rates.tolist()),
        tuple(qualities.tolist()),
        Estimate(float(area[0]), None if means is None else bounds(_area(rates, means))),
    )


def _area(rates: Floats, qualities: Floats) -> Floats:
    """[R] mean height of qualities [R, P] above the line from their first to their last point."""
    chord = qualities[:, :1] + (qualities[:, -1:] - qualities[:, :1]) * rates
    return np.asarray(np.trapezoid(qualities - chord, rates, axis=1))


def frontier(table: OutcomeTable, routed: Routed, shares: Floats) -> tuple[FrontierPoint, ...]:
    """What the route gives, then a price of latency at a time, every arm alone, and the best arm each time.

    Args:
        shares: [N, A] of the route.
    """
    prices, overall = latency_prices(routed.expected, table), table.overall
    kept = sorted({*np.linspace(0, len(prices) - 1, min(_NUM_FRONTIER, len(prices))).round().astype(int).tolist()})
    choices: list[tuple[str, float | None, Floats]] = [("this router", None, shares)]
    choices += [
        (
            f"{prices[place]:.3g} a second",
            prices[place],
            routed_by(latency_costs(prices[place], table), routed.expected),
        )
        for place in kept
    ]
    num_arms = len(table.arms)
    choices += [
        (f"always {name}", None, one_hot(np.full(len(table), arm), num_arms)) for arm, name in enumerate(table.arms)
    ]
    # Of equally good arms the fastest.
    good = table.quality >= table.quality.max(axis=1, keepdims=True) - 1e-9
    oracle = np.where(good, overall.means(table.latency_ms), np.inf).argmin(axis=1)
    choices.append(("the best arm each time", None, one_hot(oracle, num_arms)))
    qualities = np.stack([measured(each, table.quality) for *_, each in choices], axis=1)
    means = overall.resampled(qualities)
    found = []
    for place, (name, price, each) in enumerate(choices):
        low, high = (None if means is None else bounds(means[:, place])) or (None, None)
        latency = measured(each, table.latency_ms)
        found.append(
            FrontierPoint(
                name=name,
                price=price,
                context_rate=overall.mean(each[:, table.has_context].sum(axis=1)),
                quality=overall.mean(qualities[:, place]),
                low=low,
                high=high,
                mean_ms=overall.mean(latency),
                p50_ms=overall.percentile(latency, 50),
                p95_ms=overall.percentile(latency, 95),
                tokens=overall.mean_known(table.tokens[each.astype(bool)]),
            )
        )
    return tuple(found)
