"""A learned route on measured outcomes: each question is routed by a router that was fitted without its fold.

Nothing is asked again: quality and latency of a decision are those that were measured of the arm. The latency of an arm
without passages does not hold the search before the decision. Figures over all questions count each source alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.choosing import measured, one_hot, single_arm
from engine.evaluation.figures import RoutedFigures
from engine.evaluation.folds import make_folds
from engine.evaluation.measuring import measure
from engine.evaluation.outcomes import Outcomes
from engine.evaluation.overall import overall_of
from engine.evaluation.rivals import SINGLE
from engine.evaluation.table import OutcomeTable, make_table
from engine.evaluation.training import NUM_FOLDS, cross_fit
from engine.evaluation.verdict import below_single, judge, too_little
from engine.routing.artefact import Objective, ObjectiveName
from engine.routing.heads import Floats
from loadtest.bench_format import OURS, Ratio, Row
from loadtest.router.drawn_figures import (
    Figure,
    Resamples,
    headroom,
    mean,
    mean_ratio,
    median_ratio,
    medians,
    percentile,
    spread_of,
)

ALWAYS_RAG, BEST = "always rag", "best arm of each question"
QUALITY, LATENCY = "routed quality", "p50 latency"
NUM_RESAMPLES = 1_000
# Of always rag's median latency, what a route should take at most.
RAG_SHARE = 0.6
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
        "sources, counted alike": table.overall.num_sources,
        "keys": outcomes.keys.to_json(),
    }
    resamples = Resamples(table.overall, num_resamples, seed)
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
    resamples: Resamples,
) -> None:
    routed, rivals = cross_fit(table, folds, objective, seed)
    shares = one_hot(routed.chosen, len(table.arms))
    figures = measure(table, routed, rivals)
    best_arm = table.arms[single_arm(objective, table)]
    found.extra[f"verdict, {case}"] = judge(objective, figures, table, shares, best_arm).headline
    found.extra[f"differences, {case}"] = _differences(figures)
    if len(figures.sources) > 1:
        found.extra[f"sources, {case}"] = below_single(figures.sources)
        found.extra[f"differences by source, {case}"] = _source_differences(figures)
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
    _add_row(found, case, BEST, "quality", "0 to 1", table.quality.max(axis=1), mean, resamples)
    if figures.headroom is not None:
        # Both ends are means of the same draws.
        columns = np.stack(
            [measured(shares, table.quality), measured(rivals[SINGLE], table.quality), table.quality.max(axis=1)],
            axis=1,
        )
        _add_row(found, case, OURS, "headroom", "share", columns, headroom, resamples)
    if ALWAYS_RAG in choices:
        _add_share_of_rag(found, case, table, choices, resamples)
    _add_sources(found, case, table, choices)
    _add_ratios(found, case, table, choices, resamples)


def _add_rows(
    found: Replayed,
    case: str,
    system: str,
    quality: Floats,
    latency_ms: Floats,
    resamples: Resamples,
    context: Floats | None = None,
) -> None:
    _add_row(found, case, system, "quality", "0 to 1", quality, mean, resamples)
    for metric, percent in (("p50_ms", 50), ("p95_ms", 95)):
        _add_row(found, case, system, metric, "ms", latency_ms, percentile(percent), resamples)
    if context is not None:
        _add_row(found, case, system, "context_rate", "share", context, mean, resamples)


def _add_row(
    found: Replayed,
    case: str,
    system: str,
    metric: str,
    unit: str,
    values: Floats,
    figure: Figure,
    resamples: Resamples,
) -> tuple[float, float, float]:
    """Returns: the value and its interval of 95 %."""
    value, drawn = float(figure(values, resamples.weights)), resamples.of(values, figure)
    low, p20, p80, high = spread_of(drawn)
    found.rows.append(Row(case, system, metric, unit, value, p20, p80))
    intervals = found.extra.setdefault("intervals of 95 %", [])
    intervals.append({"case": case, "system": system, "metric": metric, "low": low, "high": high})
    return value, low, high


def _add_share_of_rag(
    found: Replayed, case: str, table: OutcomeTable, choices: Mapping[str, Floats], resamples: Resamples
) -> None:
    """What the route takes of the median latency of passages for every question, and whether it is little enough."""
    columns = np.stack([measured(choices[ALWAYS_RAG], table.latency_ms), measured(choices[OURS], table.latency_ms)], 1)
    share, low, high = _add_row(found, case, OURS, "p50_of_always_rag", "share", columns, median_ratio, resamples)
    rag, mine = medians(columns, resamples.weights)
    said = found.extra.setdefault(f"p50 latency, at most {RAG_SHARE:g} of always rag's", {})
    said[f"objective {OBJECTIVES[case]}"] = (
        f"{'yes' if share <= RAG_SHARE else 'no'}: {share:.3f} (95 % interval {low:.3f} to {high:.3f}), "
        f"{mine:,.0f} ms of {rag:,.0f} ms"
    )


def _add_sources(found: Replayed, case: str, table: OutcomeTable, choices: Mapping[str, Floats]) -> None:
    sources = np.array(table.sources)
    for source in sorted({*table.sources}):
        mine = sources == source
        inside = overall_of(sources[mine].tolist(), table.groups[mine])
        resamples = Resamples(inside, NUM_RESAMPLES // 5, 0)
        for system in (OURS, SINGLE, ALWAYS_RAG):
            if system in choices:
                quality = measured(choices[system], table.quality)[mine]
                _add_row(found, f"{case}, {source}", system, "quality", "0 to 1", quality, mean, resamples)


def _add_ratios(
    found: Replayed, case: str, table: OutcomeTable, choices: Mapping[str, Floats], resamples: Resamples
) -> None:
    """Above 1 the route is better: more quality, or less latency."""
    is_quality = case == QUALITY
    values = table.quality if is_quality else table.latency_ms
    mine = measured(choices[OURS], values)
    for other in (SINGLE, ALWAYS_RAG):
        if other not in choices:
            continue
        columns = np.stack([mine, measured(choices[other], values)], axis=1)
        figure = mean_ratio if is_quality else median_ratio
        value = float(figure(columns, resamples.weights))
        if not np.isfinite(value):
            continue
        _, p20, p80, _ = spread_of(resamples.of(columns, figure))
        found.ratios.append(Ratio(case, "quality" if is_quality else "p50_ms", other, value, p20, p80))


def _differences(figures: RoutedFigures) -> list[dict[str, Any]]:
    """Mean worth (quality less the price of latency) of the route less that of each rival, with its interval."""
    return [
        {"over": each.name, "difference": each.difference, "interval": each.interval} for each in figures.comparisons
    ]


def _source_differences(figures: RoutedFigures) -> list[dict[str, Any]]:
    """Mean quality of the route less that of the best single arm, question by question of each source."""
    return [
        {"source": each.source, "questions": each.num_rows, "difference": each.difference, "interval": each.gain}
        for each in figures.sources
    ]
