"""What a reader must know before believing a comparison, and what would change it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.evaluation.compare.costs import Refresh
from engine.evaluation.compare.figures import ArmFigures, Bound, Pair, SearchFigures, find_pair
from engine.evaluation.compare.updating import UpdateFigures
from engine.evaluation.compare.wording import differs
from engine.metrics.bootstrap import MIN_ROWS
from engine.report.wording import duration

# Of fewer questions nothing is recommended.
MIN_QUESTIONS = MIN_ROWS
# A route is worth learning where the best choice for each question gains so much, and on so many it matters.
MIN_GAIN, MIN_DIFFER = 0.03, 50
# Shares of hits, and qualities, below which something else comes first.
LOW_HITS, POOR = 0.5, 0.25
# The share of changed documents that an arm must follow.
_FOLLOWS = 0.5


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a recommendation is made from."""

    num_questions: int
    arms: tuple[ArmFigures, ...]
    pairs: tuple[Pair, ...]
    bound: Bound | None
    search: SearchFigures | None
    updates: tuple[UpdateFigures, ...]
    refresh: Refresh | None


def cautions(evidence: Evidence) -> list[str]:
    """Sentences, the most pressing first."""
    found = []
    for why in dict.fromkeys(each.untrusted for each in evidence.arms if each.untrusted):
        names = " and ".join(each.name for each in evidence.arms if each.untrusted == why)
        found.append(f"Do not believe the figures of {names}: {why}.")
    found += [
        f"{each.name} failed on {each.num_failed:,} of {evidence.num_questions:,} questions: {each.first_failure}"
        for each in evidence.arms
        if each.num_failed
    ]
    if max(each.quality.value for each in evidence.arms) < POOR:
        found.append("Even the best arm answers poorly: a larger model, or better passages, come before any choice.")
    found += [*_retrieval(evidence), *_updates(evidence)]
    if evidence.num_questions < MIN_QUESTIONS:
        return found
    return [
        *found,
        *_hybrid(evidence),
        *_few_shot(evidence),
        *_routing(evidence),
    ]


def failed_updates(evidence: Evidence) -> set[str]:
    """Arms that failed the update test where another passed it."""
    if not any(_follows(each) for each in evidence.updates):
        return set()
    return {each.arm for each in evidence.updates if not _follows(each)}


def _retrieval(evidence: Evidence) -> list[str]:
    known = [each for each in evidence.arms if each.hits is not None and each.kind != "auto"]
    if not known:
        return []
    arm = next((each for each in known if each.name == "base+context"), known[0])
    hits = arm.hits
    assert hits is not None
    what = "a right document" if hits.by_documents else "the answer"
    said = f"the passages shown hold {what} for {hits.rate:.0%} of the questions"
    both = ""
    if hits.quality_hit is not None and hits.quality_miss is not None:
        there, missing = hits.quality_hit.value, hits.quality_miss.value
        both = f" The quality of {arm.name} is {there:.3f} where they do and {missing:.3f} where not."
    if hits.rate < LOW_HITS:
        return [f"Improve the search first: {said}; arms with passages are judged by what they could not read.{both}"]
    return [f"The search works: {said}.{both}"]


def _updates(evidence: Evidence) -> list[str]:
    if not evidence.updates:
        return []
    counts = ", ".join(f"{each.arm} {each.followed} of {each.num}" for each in evidence.updates)
    if not any(_follows(each) for each in evidence.updates):
        return [f"No arm keeps up with changed documents; changes followed: {counts}. Read what was said, below."]
    if not failed_updates(evidence):
        return [f"All arms keep up with changed documents; changes followed: {counts}."]
    anew = ""
    if evidence.refresh is not None:
        anew = f" A changed document is found after {duration(evidence.refresh.seconds)}."
    return [f"Where facts change, passages are needed whatever the quality; changes followed: {counts}.{anew}"]


def _hybrid(evidence: Evidence) -> list[str]:
    found = []
    for each in evidence.arms:
        if each.kind != "adapter" or not each.name.endswith("+context"):
            continue
        alone = find_pair(evidence.pairs, each.name, each.name.removesuffix("+context"))
        if alone is not None and alone.finding == "worse":
            found.append(
                f"{each.name} is worse than the adapter alone ({differs(alone)}): passages confuse it. Train it with "
                "passages in its prompts, a fifth of them without the right one: `switchyard tune --context retrieved`."
            )
        base = find_pair(evidence.pairs, each.name, "base+context")
        if base is not None and base.finding == "worse":
            found.append(
                f"Where passages are shown, leave the adapter off: {each.name} against base+context {differs(base)}."
            )
    return found


def _few_shot(evidence: Evidence) -> list[str]:
    found = []
    for each in evidence.arms:
        pair = find_pair(evidence.pairs, each.name, "few-shot")
        if pair is None or each.kind != "adapter" or each.name.endswith("+context"):
            continue
        if pair.finding in ("worse", "not distinguishable"):
            what = "does better than" if pair.finding == "worse" else "cannot be told from"
            found.append(f"Showing training examples {what} training on them ({each.name}): {differs(pair)}.")
    return found


def _routing(evidence: Evidence) -> list[str]:
    bound = evidence.bound
    if bound is None:
        return []
    where = (
        f"the arms differ on {bound.num_differ:,} questions, and the best choice for each would add {bound.gain:.3f} "
        "at most"
    )
    if bound.gain >= MIN_GAIN and bound.num_differ >= MIN_DIFFER:
        return [f"Learning the route may pay: {where}. Begin with `switchyard router collect`."]
    return [f"Learning the route does not pay: {where}; {MIN_GAIN:g} on {MIN_DIFFER} questions are needed."]


def _follows(figures: UpdateFigures) -> bool:
    return figures.followed / figures.num >= _FOLLOWS
