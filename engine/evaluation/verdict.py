"""Whether a learned route is worth it, said in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.evaluation.figures import Comparison, Estimate, RoutedFigures, SourceFigures, Verdict
from engine.evaluation.intervals import Interval
from engine.evaluation.rivals import SINGLE
from engine.evaluation.table import DISCORDANT, OutcomeTable
from engine.routing.artefact import Objective
from engine.routing.heads import Floats

MIN_QUESTIONS, MIN_DISCORDANT = 300, 50
# Folds of fewer groups hold too few to be told apart by.
MIN_GROUPS = 50


def too_little(table: OutcomeTable) -> str | None:
    """Why no route can be learned from `table`, or None."""
    num_discordant = int(table.is_discordant.sum())
    if len(table) < MIN_QUESTIONS:
        return f"{len(table):,} questions are too few; {MIN_QUESTIONS} are needed"
    if num_discordant < MIN_DISCORDANT:
        return (
            f"the arms differ by {DISCORDANT:g} of quality or more on {num_discordant} of {len(table):,} questions; "
            f"{MIN_DISCORDANT} are needed"
        )
    if (num := len(np.unique(table.groups))) < MIN_GROUPS:
        return f"the questions are in {num} groups; {MIN_GROUPS} are needed"
    if not np.isfinite(table.values).any():
        return "no signal of any question is known"
    return None


def untrained(best_arm: str, why: str) -> Verdict:
    """The verdict where nothing was fitted."""
    return Verdict(False, f"Not learned: {why}. {best_arm} answers every question.", ())


def judge(objective: Objective, figures: RoutedFigures, table: OutcomeTable, shares: Floats, best_arm: str) -> Verdict:
    """The learned route is taken where it beats the best single arm and every rival beyond chance.

    Args:
        shares: [N, A] of the route.
        best_arm: the best single arm, which answers otherwise.
    """
    instead = f"{best_arm} answers every question."
    return _judge(objective, figures, table, shares, best_arm, ("Learned", "Not learned", instead))


def judge_again(
    objective: Objective, figures: RoutedFigures, table: OutcomeTable, shares: Floats, best_arm: str
) -> Verdict:
    """Whether a router that was learned holds on other questions; what decides is not changed by it."""
    instead = "Train it anew with outcomes of such questions, or pin the route."
    return _judge(objective, figures, table, shares, best_arm, ("It holds", "It does not hold", instead))


def _judge(
    objective: Objective,
    figures: RoutedFigures,
    table: OutcomeTable,
    shares: Floats,
    best_arm: str,
    words: tuple[str, str, str],
) -> Verdict:
    good, bad, instead = words
    reasons = []
    worse = [each for each in figures.comparisons if not each.is_better]
    what = counted_value(objective)
    single = next(each for each in figures.comparisons if each.name == SINGLE)
    kept = True
    if objective.name == "latency":
        at = table.arms.index(best_arm)
        loss = (shares * table.quality).sum(axis=1) - table.quality[:, at]
        gain = table.overall.estimate(loss)
        kept = gain.interval is not None and gain.interval[0] >= -objective.epsilon
        reasons.append(f"quality against {best_arm} alone: {gained(gain)}; at most {objective.epsilon:g} may be lost")
    if worse:
        first = worse[0]
        headline = (
            f"{bad}: beyond chance the route is no better than {first.name} "
            f"({what} {first.routed:.3f} against {first.other:.3f}). {instead}"
        )
    elif not kept:
        headline = f"{bad}: the route may lose more quality than it is allowed to. {instead}"
    else:
        headline = (
            f"{good}: {what} {single.routed:.3f} on {len(table):,} questions{_counted_alike(figures)} that it was not "
            f"fitted on, where the best single arm has {single.other:.3f}."
        )
    reasons += [f"against {each.name}: {compared(each)}" for each in figures.comparisons]
    reasons += _others(objective, figures)
    if len(figures.sources) > 1:
        reasons.append(below_single(figures.sources))
    return Verdict(not worse and kept, headline, tuple(reasons))


def counted_value(objective: Objective) -> str:
    """What routes are compared by."""
    is_free = objective.max_p95_ms is None and objective.name != "latency"
    return "quality" if is_free else "quality less cost"


def compared(comparison: Comparison) -> str:
    """The difference and its interval."""
    return gained(Estimate(comparison.difference, comparison.interval))


def gained(estimate: Estimate) -> str:
    """+0.031 (95 % interval +0.010 to +0.052)"""
    return f"{estimate.value:+.3f} ({spread(estimate.interval, signed=True)})"


def spread(interval: Interval | None, *, signed: bool = False) -> str:
    """95 % interval 0.010 to 0.052"""
    if interval is None:
        return "too few groups of questions for an interval"
    low, high = (f"{each:+.3f}" if signed else f"{each:.3f}" for each in interval)
    return f"95 % interval {low} to {high}"


def below_single(sources: Sequence[SourceFigures]) -> str:
    """Whether any source is answered worse than by the best single arm beyond chance, and which cannot be told."""
    below = [f"{each.source} {gained(Estimate(each.difference, each.gain))}" for each in sources if each.is_below]
    unknown = [f"{each.source} {each.difference:+.3f}" for each in sources if each.gain is None]
    said = f"below the best single arm beyond the interval: {', '.join(below)}"
    if not below:
        said = "no source lies below the best single arm beyond its interval"
    return said + (f"; too few groups to tell: {', '.join(unknown)}" if unknown else "")


def _counted_alike(figures: RoutedFigures) -> str:
    num = len(figures.sources)
    return f" of {num} sources, each counted alike," if num > 1 else ""


def _others(objective: Objective, figures: RoutedFigures) -> list[str]:
    found = [f"passages for {figures.context_rate:.0%} of the questions"]
    if figures.headroom is not None:
        found.append(f"share of the possible gain that is captured: {figures.headroom.value:.0%}")
    saved = figures.latency_saved_ms.value
    than = "less" if saved >= 0 else "more"
    found.append(f"mean latency {figures.mean_ms:.0f} ms, {abs(saved):.0f} ms {than} than the best single arm")
    if objective.max_p95_ms is not None:
        found.append(f"95th percentile of latency {figures.p95_ms:.0f} ms of {objective.max_p95_ms:g} ms allowed")
    return found
