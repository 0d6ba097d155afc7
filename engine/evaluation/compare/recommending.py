"""Which arm to serve, said in sentences with the evidence beside them. Every rule is in `recommend`, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.evaluation.compare.cautions import MIN_QUESTIONS, POOR, Evidence, cautions, failed_updates
from engine.evaluation.compare.figures import ArmFigures, find_pair
from engine.evaluation.compare.pairing import ALPHA
from engine.evaluation.compare.wording import differs, meaning, spelled
from engine.evaluation.figures import Verdict
from engine.report.wording import counted

# An arm is no faster than another by less, and no worse by at most so much that chance may explain.
_AS_FAST, _SMALL = 1.15, 0.05
_SIMPLEST = ("base", "few-shot", "adapter", "base+context", "adapter+context", "auto")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The arm to serve (None: nothing can be said), and why."""

    arm: str | None
    tone: Literal["good", "mixed", "bad"]
    verdict: Verdict


def recommend(evidence: Evidence) -> Recommendation:
    """The cheapest of the arms whose quality is the best as far as can be told, if it can keep up with changes.

    1. Too few questions: nothing is recommended, and what would be needed is said.
    2. Arms whose figures cannot be trusted are out.
    3. Of the rest, the best one and those that are as good (see `_choose`): of these the fastest, and of the about
       equally fast the one with fewest parts.
    4. Where that one failed the update test and others passed it, the same choice among those: instead of it, or beside
       it where its quality is better beyond chance.
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
    fit = [each for each in evidence.arms if each.untrusted is None]
    if not fit:
        headline = f"No recommendation: of no arm can the figures be believed. {best.name} has {spelled(best.quality)}."
        return Recommendation(None, "bad", Verdict(False, headline, tuple(reasons)))
    chosen, equal = _choose(evidence, fit)
    failed = failed_updates(evidence)
    if chosen.name in failed and (moving := [each for each in fit if each.name not in failed]):
        instead, others = _choose(evidence, moving)
        pair = find_pair(evidence.pairs, chosen.name, instead.name)
        if instead.quality.value < POOR:
            reasons.insert(0, f"{chosen.name} does not follow changed documents, and no arm that does answers well.")
        elif pair is not None and pair.finding == "better":
            headline = (
                f"Serve {_named(chosen.name)} for what does not change, quality {spelled(chosen.quality)}, and "
                f"{_named(instead.name)} for what does, quality {spelled(instead.quality)}."
            )
            said = f"{chosen.name} against {instead.name}: {differs(pair)}; but it does not follow a changed document."
            return Recommendation(instead.name, "mixed", Verdict(False, headline, (said, *reasons)))
        else:
            chosen, equal = instead, others
    headline = f"Serve {_named(chosen.name)}: quality {spelled(chosen.quality)} on {evidence.num_questions:,} questions"
    headline += f", answers in {chosen.p50_ms:,.0f} ms (median)." if chosen.p50_ms is not None else "."
    # What the router chose is one of the others each time, and often the same one.
    rest = [each.name for each in evidence.arms if each is not chosen and each.kind != "auto"]
    pairs = [find_pair(evidence.pairs, chosen.name, name) for name in rest]
    is_clear = chosen.quality.value >= POOR and all(each is not None and each.finding == "better" for each in pairs)
    because = _because(evidence, chosen, equal)
    tone: Literal["good", "mixed"] = "good" if is_clear else "mixed"
    return Recommendation(chosen.name, tone, Verdict(is_clear, headline, (*because, *reasons)))


def _choose(evidence: Evidence, arms: Sequence[ArmFigures]) -> tuple[ArmFigures, list[ArmFigures]]:
    """The cheapest of the arms that are as good as the best one, and all of these.

    An arm is as good where its difference is small and, even uncorrected, not beyond chance: a correction for many
    pairs hides differences, which must not speak for the cheaper arm.
    """
    top = max(arms, key=lambda each: each.quality.value)
    equal = [top]
    for each in arms:
        pair = find_pair(evidence.pairs, top.name, each.name)
        if pair is not None and pair.p_alone >= ALPHA and pair.difference <= _SMALL:
            equal.append(each)
    return _cheapest(equal), equal


def _because(evidence: Evidence, chosen: ArmFigures, equal: Sequence[ArmFigures]) -> list[str]:
    num, names = evidence.num_questions, {each.name for each in equal}
    pairs = [find_pair(evidence.pairs, chosen.name, each.name) for each in evidence.arms]
    others = [pair for pair in pairs if pair is not None and pair.second not in names]
    reasons = []
    for finding, said in (
        ("better", "Better beyond chance than"),
        ("worse", "Worse than what is not fit to be served:"),
        ("not distinguishable", f"Not distinguishable at n = {num:,} from"),
        ("too few", "Nothing can be shown against"),
    ):
        found = [f"{pair.second} ({differs(pair)})" for pair in others if pair.finding == finding]
        if found:
            reasons.append(f"{said} {', '.join(found)}.")
    same = [pair for pair in pairs if pair is not None and pair.second in names]
    if same:
        least = [pair.detectable for pair in same if pair.detectable is not None]
        shown = f"; a difference below about {max(least):.3f} would not show" if least else ""
        reasons.append(
            f"As good as {', '.join(pair.second for pair in same)}, as far as n = {num:,} can tell{shown}. "
            "It is the fastest of these, or about as fast with fewer parts."
        )
    return reasons


def _cheapest(arms: Sequence[ArmFigures]) -> ArmFigures:
    fastest = min(each.p50_ms if each.p50_ms is not None else float("inf") for each in arms)
    near = [each for each in arms if (each.p50_ms if each.p50_ms is not None else float("inf")) <= _AS_FAST * fastest]
    return min(near, key=lambda each: (_SIMPLEST.index(_shape(each)), -each.quality.value))


def _shape(arm: ArmFigures) -> str:
    return arm.name if arm.kind != "adapter" else "adapter+context" if arm.name.endswith("+context") else "adapter"


def _named(name: str) -> str:
    return f"{name} ({meaning(name)})"
