"""Which arm to serve, said in sentences with the evidence beside them. Every rule is in `recommend`, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.evaluation.compare.cautions import POOR, Evidence, cautions, failed_updates
from engine.evaluation.compare.figures import ArmFigures, Pair, find_pair
from engine.evaluation.compare.wording import differs, meaning, spelled
from engine.evaluation.figures import Verdict
from engine.metrics.bootstrap import MIN_ROWS
from engine.report.wording import counted

# Of so few questions nothing is recommended.
MIN_QUESTIONS = MIN_ROWS
# An arm is no faster than another by less.
_AS_FAST = 1.15
_SIMPLEST = ("base", "few-shot", "adapter", "base+context", "adapter+context", "auto")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The arm to serve (None: nothing can be said), and why."""

    arm: str | None
    tone: Literal["good", "mixed", "bad"]
    verdict: Verdict


def recommend(evidence: Evidence) -> Recommendation:
    """The cheapest of the arms that no other is better than beyond chance, if it can keep up with changes.

    1. Too few questions: nothing is recommended, and what would be needed is said.
    2. Arms whose figures cannot be trusted, and those that failed the update test where another arm passed it, are out.
    3. Of the rest, those that the best one does not beat beyond chance; of these the fastest, and of the about equally
       fast the one with fewest parts.
    """
    reasons = cautions(evidence)
    best = max(evidence.arms, key=lambda each: each.quality.value)
    if evidence.num_questions < MIN_QUESTIONS:
        headline = (
            f"No recommendation: {counted(evidence.num_questions, 'question')} can show no difference that would hold. "
            f"Ask at least {MIN_QUESTIONS}, better 200."
        )
        led = f"On these, {best.name} is ahead with a quality of {best.quality.value:.3f}; chance may explain it."
        return Recommendation(None, "bad", Verdict(False, headline, (led, *reasons)))
    if len(evidence.arms) == 1:
        headline = f"{_named(best.name)} has a quality of {spelled(best.quality)}; there is nothing to compare it with."
        return Recommendation(best.name, "mixed", Verdict(False, headline, tuple(reasons)))
    stale = failed_updates(evidence)
    fit = [each for each in evidence.arms if each.untrusted is None and each.name not in stale]
    if not fit:
        headline = f"No recommendation: of no arm can the figures be believed. {best.name} has {spelled(best.quality)}."
        return Recommendation(None, "bad", Verdict(False, headline, tuple(reasons)))
    top = max(fit, key=lambda each: each.quality.value)
    equal = [each for each in fit if each is top or not _beats(evidence.pairs, top.name, each.name)]
    chosen = _cheapest(equal)
    headline = f"Serve {_named(chosen.name)}: quality {spelled(chosen.quality)} on {evidence.num_questions:,} questions"
    headline += f", answers in {chosen.p50_ms:,.0f} ms (median)." if chosen.p50_ms is not None else "."
    because = _because(evidence, chosen, top, equal)
    is_clear = len(equal) == 1 and chosen.quality.value >= POOR
    tone: Literal["good", "mixed"] = "good" if is_clear else "mixed"
    return Recommendation(chosen.name, tone, Verdict(is_clear, headline, (*because, *reasons)))


def _because(evidence: Evidence, chosen: ArmFigures, top: ArmFigures, equal: Sequence[ArmFigures]) -> list[str]:
    reasons = []
    for other in evidence.arms:
        pair = find_pair(evidence.pairs, chosen.name, other.name)
        if other is chosen or pair is None:
            continue
        if pair.finding == "better":
            reasons.append(f"Better than {other.name}: {differs(pair)}.")
        elif pair.finding == "worse":
            reasons.append(f"Worse than {other.name}: {differs(pair)}.")
    if len(equal) > 1:
        others = [each for each in equal if each is not chosen]
        least = [
            pair.detectable
            for each in others
            if (pair := find_pair(evidence.pairs, chosen.name, each.name)) is not None and pair.detectable is not None
        ]
        shown = f"; a difference below about {max(least):.3f} would not show" if least else ""
        names = ", ".join(each.name for each in others)
        reasons.append(
            f"Not distinguishable from {names} at n = {evidence.num_questions:,}{shown}. It is the fastest of these, "
            "or about as fast with fewer parts."
        )
        if chosen is not top:
            reasons.append(
                f"{top.name} has the highest quality, {spelled(top.quality)}, by a difference that chance may explain."
            )
    return reasons


def _beats(pairs: tuple[Pair, ...], one: str, other: str) -> bool:
    pair = find_pair(pairs, one, other)
    return pair is not None and pair.finding == "better"


def _cheapest(arms: Sequence[ArmFigures]) -> ArmFigures:
    fastest = min(each.p50_ms if each.p50_ms is not None else float("inf") for each in arms)
    near = [each for each in arms if (each.p50_ms if each.p50_ms is not None else float("inf")) <= _AS_FAST * fastest]
    return min(near, key=lambda each: (_SIMPLEST.index(_shape(each)), -each.quality.value))


def _shape(arm: ArmFigures) -> str:
    return arm.name if arm.kind != "adapter" else "adapter+context" if arm.name.endswith("+context") else "adapter"


def _named(name: str) -> str:
    return f"{name} ({meaning(name)})"
