"""Figures of decisions against what every arm made of the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.calibrating import is_best
from engine.evaluation.choosing import measured, one_hot
from engine.evaluation.curves import context_curve, frontier
from engine.evaluation.figures import (
    ArmFigures,
    CalibrationFigures,
    Comparison,
    Estimate,
    PairFigures,
    Reliability,
    RoutedFigures,
    SourceFigures,
    Zones,
)
from engine.evaluation.fitting import Routed
from engine.evaluation.intervals import bounds, grouped_interval
from engine.evaluation.overall import Overall
from engine.evaluation.rivals import RANDOM, SINGLE, random_shares
from engine.evaluation.table import DISCORDANT, OutcomeTable
from engine.metrics.calibration import NUM_BINS, brier_score, expected_calibration_error
from engine.metrics.ranking import auroc, auroc_interval
from engine.routing.heads import Floats

# A source with fewer of either kind says nothing of the order within it.
_MIN_OF_KIND = 10
_MIN_HEADROOM = 1e-3
_GOOD = 0.5


def arm_figures(table: OutcomeTable, chosen: NDArray[np.int32] | None) -> tuple[ArmFigures, ...]:
    """Every arm alone, in the table's order."""
    overall = table.overall
    drawn = _Drawn({name: table.quality[:, arm] for arm, name in enumerate(table.arms)}, overall)
    best = table.quality >= table.quality.max(axis=1, keepdims=True) - 1e-9
    return tuple(
        ArmFigures(
            name=name,
            quality=drawn.estimate(name),
            refused=overall.mean(table.refused[:, arm]),
            mean_ms=overall.mean(table.latency_ms[:, arm]),
            p50_ms=overall.percentile(table.latency_ms[:, arm], 50),
            p95_ms=overall.percentile(table.latency_ms[:, arm], 95),
            tokens=overall.mean_known(table.tokens[:, arm]),
            best_rate=overall.mean(best[:, arm]),
            chosen=0.0 if chosen is None else overall.mean(chosen == arm),
        )
        for arm, name in enumerate(table.arms)
    )


def measure(table: OutcomeTable, routed: Routed, rivals: Mapping[str, Floats]) -> RoutedFigures:
    """All figures of `routed`, beside `rivals`: choices [N, A], with SINGLE among them."""
    shares, overall = one_hot(routed.chosen, len(table.arms)), table.overall
    everyone = {**rivals, RANDOM: random_shares(shares, overall)}
    worth = table.quality - routed.costs
    best, latency = table.quality.max(axis=1), measured(shares, table.latency_ms)
    columns = {
        "routed": measured(shares, table.quality),
        "oracle": best,
        "single": measured(rivals[SINGLE], table.quality),
        "worth": measured(shares, worth),
        "saved": measured(rivals[SINGLE], table.latency_ms) - latency,
        **{f"rival {name}": measured(each, worth) for name, each in everyone.items()},
    }
    drawn = _Drawn(columns, overall)
    headroom = drawn.mean("oracle") - drawn.mean("single")
    return RoutedFigures(
        quality=drawn.estimate("routed"),
        oracle=drawn.estimate("oracle"),
        regret=drawn.difference("oracle", "routed"),
        headroom=drawn.share("routed", "single", "oracle") if headroom >= _MIN_HEADROOM else None,
        context_rate=overall.mean(shares[:, table.has_context].sum(axis=1)),
        mean_ms=overall.mean(latency),
        p50_ms=overall.percentile(latency, 50),
        p95_ms=overall.percentile(latency, 95),
        latency_saved_ms=drawn.estimate("saved"),
        comparisons=tuple(
            Comparison(
                name,
                drawn.mean("worth"),
                drawn.mean(f"rival {name}"),
                drawn.difference("worth", f"rival {name}").interval,
            )
            for name in everyone
        ),
        pairs=pair_figures(table, routed.expected),
        calibration=tuple(
            CalibrationFigures(
                name,
                expected_calibration_error(routed.before[:, arm], table.quality[:, arm]),
                expected_calibration_error(routed.expected[:, arm], table.quality[:, arm]),
                brier_score(routed.before[:, arm], table.quality[:, arm]),
                brier_score(routed.expected[:, arm], table.quality[:, arm]),
            )
            for arm, name in enumerate(table.arms)
        ),
        reliability=_reliability(routed.confidence, is_best(routed.chosen, table.quality)),
        zones=_zones(table, routed.chosen),
        curve=context_curve(table, routed),
        frontier=frontier(table, routed, shares),
        sources=_sources(table, shares, rivals[SINGLE]),
    )


def pair_figures(table: OutcomeTable, expected: Floats) -> tuple[PairFigures, ...]:
    """Every pair of arms: the order of their expected gains against the measured ones."""
    found = []
    sources = np.array(table.sources)
    for first, second in combinations(range(len(table.arms)), 2):
        gain = table.quality[:, second] - table.quality[:, first]
        rows = np.flatnonzero(np.abs(gain) >= DISCORDANT)
        scores, positive = (expected[:, second] - expected[:, first])[rows], gain[rows] > 0
        inside = []
        for source in sorted({*table.sources}):
            mine = sources[rows] == source
            if min(positive[mine].sum(), (~positive[mine]).sum()) >= _MIN_OF_KIND:
                inside.append((auroc(scores[mine], positive[mine]) or 0.0, int(mine.sum())))
        found.append(
            PairFigures(
                first=table.arms[first],
                second=table.arms[second],
                num_rows=len(rows),
                auroc=auroc(scores, positive),
                interval=auroc_interval(scores, positive),
                within=sum(each * num for each, num in inside) / sum(num for _, num in inside) if inside else None,
                num_sources=len(inside),
            )
        )
    return tuple(found)


def _sources(table: OutcomeTable, shares: Floats, single: Floats) -> tuple[SourceFigures, ...]:
    found = []
    for source in sorted({*table.sources}):
        rows = np.flatnonzero([each == source for each in table.sources])
        quality = table.quality[rows]
        best = int(quality.mean(axis=0).argmax())
        by_router, by_single = measured(shares[rows], quality), measured(single[rows], quality)
        found.append(
            SourceFigures(
                source=source,
                num_rows=len(rows),
                best_arm=table.arms[best],
                best_arm_quality=float(quality[:, best].mean()),
                single=float(by_single.mean()),
                routed=float(by_router.mean()),
                oracle=float(quality.max(axis=1).mean()),
                gain=grouped_interval(by_router - by_single, table.groups[rows]),
                context_rate=float(shares[rows][:, table.has_context].sum() / len(rows)),
            )
        )
    return tuple(found)


def _zones(table: OutcomeTable, chosen: NDArray[np.int32]) -> Zones:
    differ, overall = table.is_discordant, table.overall
    good = ~differ & (table.quality.max(axis=1) >= _GOOD)
    best = is_best(chosen, table.quality)
    return Zones(
        all_good=overall.mean(good),
        differ=overall.mean(differ),
        all_poor=overall.mean(~differ & ~good),
        best_of_differ=overall.mean_known(np.where(differ, best, np.nan)),
    )


def _reliability(confidence: Floats, right: NDArray[np.bool_]) -> Reliability:
    order = np.argsort(confidence, kind="stable")
    bins = [rows for rows in np.array_split(order, NUM_BINS) if len(rows)]
    return Reliability(
        tuple(float(confidence[rows].mean()) for rows in bins),
        tuple(float(right[rows].mean()) for rows in bins),
        expected_calibration_error(confidence, right),
        brier_score(confidence, right),
    )


class _Drawn:
    """Columns of figures, and the means of the same resamples of all of them."""

    def __init__(self, columns: Mapping[str, Floats], overall: Overall) -> None:
        self._places = {name: place for place, name in enumerate(columns)}
        values = np.stack([*columns.values()], axis=1)
        self._whole = overall.means(values)
        self._means = overall.resampled(values)

    def mean(self, name: str) -> float:
        return float(self._whole[self._places[name]])

    def estimate(self, name: str) -> Estimate:
        return Estimate(self.mean(name), None if self._means is None else bounds(self._of(name)))

    def difference(self, one: str, other: str) -> Estimate:
        value = self.mean(one) - self.mean(other)
        return Estimate(value, None if self._means is None else bounds(self._of(one) - self._of(other)))

    def share(self, one: str, low: str, high: str) -> Estimate:
        """How far `one` is on the way from `low` to `high`."""
        value = (self.mean(one) - self.mean(low)) / (self.mean(high) - self.mean(low))
        if self._means is None:
            return Estimate(value, None)
        whole = self._of(high) - self._of(low)
        drawn = (self._of(one) - self._of(low)) / np.where(whole > 0, whole, np.nan)
        return Estimate(value, bounds(drawn))

    def _of(self, name: str) -> Floats:
        assert self._means is not None
        return np.asarray(self._means[:, self._places[name]])
