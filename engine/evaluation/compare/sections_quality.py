"""The first sections of the report: which arm is better."""

from __future__ import annotations

from collections.abc import Sequence

from engine.evaluation.compare.figures import ArmFigures, Comparison
from engine.evaluation.compare.sections_pairs import pairs_table
from engine.evaluation.compare.wording import arm_name, meaning, minutes, ranked, whole, words
from engine.evaluation.intervals import Interval
from engine.report.bars import Bar, bar_chart
from engine.report.html import Content, Html, section, table, tag
from engine.report.wording import listed, metric_name, signed


def glance_section(comparison: Comparison, reasons: Sequence[str]) -> Html:
    """Quality of every arm as bars, what each is in words, and the reasons that found no place beside the verdict."""
    arms = ranked(comparison)
    bars = [
        Bar(
            arm_name(each),
            each.quality.value,
            f"{each.quality.value:.3f}",
            each.quality.interval,
            is_marked=each.name == comparison.recommended,
        )
        for each in arms
    ]
    caption = "Quality, 0 to 1, with 95 % intervals." + (" Bold: recommended." if comparison.recommended else "")
    updates = {each.arm: each for each in comparison.updates}
    rows: list[tuple[Content, ...]] = []
    for each in arms:
        followed = updates.get(each.name)
        rows.append(
            (
                arm_name(each),
                words(meaning(each.name)),
                f"{each.quality.value:.3f}",
                whole(each.p50_ms),
                words(_cost(each)),
                words("not tested" if followed is None else f"{followed.followed} of {followed.num}"),
                words(_against(comparison, each)),
            )
        )
    header = (
        "arm",
        text("what answers"),
        "quality",
        "median ms",
        text("to set up"),
        text("changes followed"),
        text("beside the best"),
    )
    return section(
        "glance",
        "At a glance",
        bar_chart(caption, bars),
        table("The arms, best first", header, rows),
        tag("ul", [tag("li", reason) for reason in reasons]) if reasons else None,
        [tag("p", note, class_="soft") for note in comparison.notes],
    )


def quality_section(comparison: Comparison) -> Html:
    """Every metric, and every pair of arms."""
    names = sorted({name for each in comparison.arms for name in each.metrics}, key=_metric_order)
    rows = [
        (
            arm_name(each),
            f"{each.quality.value:.3f}",
            plain(each.quality.interval),
            *(f"{each.metrics[name]:.3f}" if name in each.metrics else "" for name in names),
            f"{each.num_failed:,}",
        )
        for each in ranked(comparison)
    ]
    header = ("arm", "quality", "95 % interval", *(_metric(name) for name in names), "failed")
    graded = listed([f"{num:,} by {_metric(name)}" for name, num in comparison.metrics.items()])
    parts: list[Content] = [
        tag("p", f"Quality is the mean grade of an answer, from 0 to 1: {graded}. A failed answer counts as 0."),
        table("Quality of each arm", header, rows),
    ]
    if comparison.bound is not None:
        parts.append(
            tag(
                "p",
                "The best arm for each question, chosen after the fact, would reach "
                f"{comparison.bound.quality.value:.3f}, {comparison.bound.gain:.3f} above the best single arm. "
                "It profits from chance, so no route reaches it.",
            )
        )
    if comparison.pairs:
        parts.append(pairs_table(comparison))
    return section("quality", "Quality", parts)


def text(heading: str) -> Html:
    """The heading of a column of words, which is aligned as those are."""
    return tag("span", heading)


def plain(interval: Interval | None) -> str:
    """0.650 to 0.771"""
    return "too few" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _against(comparison: Comparison, arm: ArmFigures) -> str:
    pair = comparison.pair(arm.name, comparison.best)
    if pair is None:
        return "highest quality"
    if pair.finding == "too few":
        return f"{signed(pair.difference)}; chance may explain it"
    return f"{signed(pair.difference)}, {pair.finding}"


def _cost(arm: ArmFigures) -> str:
    if arm.kind == "adapter":
        return "tuning" if arm.tuning_minutes is None else f"{minutes(arm.tuning_minutes)} of tuning"
    return {"few-shot": "labelled examples", "auto": "a router"}.get(
        arm.kind, "an index" if arm.passages else "nothing"
    )


def _metric(name: str) -> str:
    return "saying that there is no answer" if name == "refusal" else metric_name(name)


def _metric_order(name: str) -> int:
    order = ("accuracy", "macro_f1", "f1", "exact_match", "rouge_l", "refusal")
    return order.index(name) if name in order else len(order)
