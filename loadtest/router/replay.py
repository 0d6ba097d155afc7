"""A learned route on measured outcomes: each question is routed by a router that was fitted without its fold.

Nothing is asked again: quality and latency of a decision are those that were measured of the arm. The latency of an arm
without passages does not hold the search before the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.choosing import measured, one_hot
from engine.evaluation.figures import RoutedFigures
from engine.evaluation.folds import make_folds
from engine.evaluation.measuring import measure
from engine.evaluation.outcomes import Outcomes
from engine.evaluation.rivals import SINGLE
from engine.evaluation.table import OutcomeTable, make_table
from engine.evaluation.training import NUM_FOLDS, cross_fit
from engine.evaluation.verdict import judge, too_little
from engine.routing.artefact import Objective, ObjectiveName
from engine.routing.heads import Floats
from loadtest.bench_format import OURS, Ratio, Row

ALWAYS_RAG, BEST = "always rag", "best arm of each question"
QUALITY, LATENCY = "routed quality", "p50 latency"
NUM_RESAMPLES = 1_000
_RAG_ARM = "base+context"
# What each case is routed for.
OBJECTIVES: dict[str, ObjectiveName] = {QUALITY: "quality", LATENCY: "latency"}


@dataclass(slots=True)
class Replayed:
    """Rows and ratios with the 20th and 80th percentile of resampled groups, and what else there is to say."""

    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def replay(outcomes: Outcomes, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Replayed:
    """Both objectives on `outcomes`. Where nothing can be learned from them, `extra["not routed"]` says why."""
    table, num_left_out = make_table(outcomes)
    found = Replayed()
    found.extra["outcomes"] = {
        "questions": len(table),
        "left out": num_left_out,
        "that matter": int(table.is_discordant.sum()),
        "groups": len(np.unique(table.groups)),
        "keys": outcomes.keys.to_json(),
    }
    resamples = _Resamples(table.groups, num_resamples, seed)
    for place, arm in enumerate(table.arms):
        _add_rows(found, "alone", arm, table.quality[:, place], table.latency_ms[:, place], resamples)
    why = too_little(table)
    if why is not None:
        found.extra["not routed"] = why
        return found
    folds = make_folds(table, NUM_FOLDS, seed)
    for case, name in OBJECTIVES.items():
        _replay(found, case, Objective(name), table, folds, seed, resamples)
    return found


def _replay(
    found: Replayed,
    case: str,
    objective: Objective,
    table: OutcomeTable,
    folds: NDArray[np.int64],
    seed: int,
    resamples: _Resamples,
) -> None:
    routed, rivals = cross_fit(table, folds, objective, seed)
    shares = one_hot(routed.chosen, len(table.arms))
    figures = measure(table, routed, rivals)
    best_arm = table.arms[int(table.quality.mean(axis=0).argmax())]
    found.extra[f"verdict, {case}"] = judge(objective, figures, table, shares, best_arm).headline
    found.extra[f"differences, {case}"] = _differences(figures)
    choices = {OURS: shares, **rivals}
    if _RAG_ARM in table.arms:
        rag = np.full(len(table), table.arms.index(_RAG_ARM), dtype=np.int64)
        choices[ALWAYS_RAG] = one_hot(rag, len(table.arms))
    for system, chosen in choices.items():
        _add_rows(
            found,
            case,
            system,
            measured(chosen, table.quality),
            measured(chosen, table.latency_ms),
            resamples,
            measured(chosen, np.tile(table.has_context, (len(table), 1)).astype(np.float64)),
        )
    _add_row(found, case, BEST, "quality", "0 to 1", table.quality.max(axis=1), np.mean, resamples)
    if figures.headroom is not None:
        # Both ends are means of the same draws.
        columns = np.stack(
            [measured(shares, table.quality), measured(rivals[SINGLE], table.quality), table.quality.max(axis=1)],
            axis=1,
        )
        _add_row(found, case, OURS, "headroom", "share", columns, _headroom, resamples)
    _add_sources(found, case, table, choices)
    _add_ratios(found, case, table, choices, resamples)


def _add_rows(
    found: Replayed,
    case: str,
    system: str,
    quality: Floats,
    latency_ms: Floats,
    resamples: _Resamples,
    context: Floats | None = None,
) -> None:
    _add_row(found, case, system, "quality", "0 to 1", quality, np.mean, resamples)
    for metric, percent in (("p50_ms", 50), ("p95_ms", 95)):
        _add_row(found, case, system, metric, "ms", latency_ms, _percentile(percent), resamples)
    if context is not None:
        _add_row(found, case, system, "context_rate", "share", context, np.mean, resamples)


def _add_row(
    found: Replayed,
    case: str,
    system: str,
    metric: str,
    unit: str,
    values: Floats,
    figure: Callable[[Floats], Any],
    resamples: _Resamples,
) -> None:
    value, drawn = float(figure(values)), resamples.of(values, figure)
    low, p20, p80, high = _percentiles(drawn)
    found.rows.append(Row(case, system, metric, unit, value, p20, p80))
    intervals = found.extra.setdefault("intervals of 95 %", [])
    intervals.append({"case": case, "system": system, "metric": metric, "low": low, "high": high})


def _add_sources(found: Replayed, case: str, table: OutcomeTable, choices: Mapping[str, Floats]) -> None:
    sources = np.array(table.sources)
    for source in sorted({*table.sources}):
        mine = sources == source
        resamples = _Resamples(table.groups[mine], NUM_RESAMPLES // 5, 0)
        for system in (OURS, SINGLE, ALWAYS_RAG):
            if system in choices:
                quality = measured(choices[system], table.quality)[mine]
                _add_row(found, f"{case}, {source}", system, "quality", "0 to 1", quality, np.mean, resamples)


def _add_ratios(
    found: Replayed, case: str, table: OutcomeTable, choices: Mapping[str, Floats], resamples: _Resamples
) -> None:
    """Above 1 the route is better: more quality, or less latency."""
    is_quality = case == QUALITY
    values = table.quality if is_quality else table.latency_ms
    mine = measured(choices[OURS], values)
    for other in (SINGLE, ALWAYS_RAG):
        if other not in choices:
            continue
        columns = np.stack([mine, measured(choices[other], values)], axis=1)
        figure = _mean_ratio if is_quality else _median_ratio
        value = float(figure(columns))
        if not np.isfinite(value):
            continue
        _, p20, p80, _ = _percentiles(resamples.of(columns, figure))
        found.ratios.append(Ratio(case, "quality" if is_quality else "p50_ms", other, value, p20, p80))


def _differences(figures: RoutedFigures) -> list[dict[str, Any]]:
    """Mean worth (quality less the price of latency) of the route less that of each rival, with its interval."""
    return [
        {"over": each.name, "difference": each.difference, "interval": each.interval} for each in figures.comparisons
    ]


def _headroom(columns: Floats) -> float:
    routed, single, best = columns.mean(axis=0)
    return float((routed - single) / (best - single)) if best > single else float("nan")


def _mean_ratio(columns: Floats) -> float:
    mine, other = columns.mean(axis=0)
    return float(mine / other) if other > 0 else float("nan")


def _median_ratio(columns: Floats) -> float:
    mine, other = np.percentile(columns, 50, axis=0)
    return float(other / mine) if mine > 0 else float("nan")


def _percentile(percent: float) -> Callable[[Floats], float]:
    return lambda values: float(np.percentile(values, percent))


def _percentiles(drawn: Floats) -> tuple[float, float, float, float]:
    """2.5, 20, 80 and 97.5 % of what is finite."""
    low, p20, p80, high = np.percentile(drawn[np.isfinite(drawn)], (2.5, 20, 80, 97.5)).tolist()
    return low, p20, p80, high


class _Resamples:
    """Rows of groups drawn with replacement, the same draws for every figure."""

    def __init__(self, groups: NDArray[np.int64], num: int, seed: int) -> None:
        _, place = np.unique(groups, return_inverse=True)
        members = [np.flatnonzero(place == group) for group in range(place.max() + 1)]
        draw = np.random.default_rng(seed)
        self._rows = [
            np.concatenate([members[group] for group in draw.integers(len(members), size=len(members))])
            for _ in range(num)
        ]

    def of(self, values: Floats, figure: Callable[[Floats], Any]) -> Floats:
        """[R] the figure of `values` [N] or [N, C] in every draw."""
        return np.array([float(figure(values[rows])) for rows in self._rows])
