"""Every pair of arms, those with the best arm and the base model first."""

from __future__ import annotations

from engine.evaluation.compare.figures import Comparison, Pair
from engine.evaluation.compare.wording import p_value, ranked, words
from engine.report.html import Content, Html, join, table, tag
from engine.report.wording import counted, signed


def pairs_table(comparison: Comparison) -> Html:
    order = {each.name: place for place, each in enumerate(ranked(comparison))}
    shown = []
    for each in comparison.pairs:
        first, second = sorted((each.first, each.second), key=order.__getitem__)
        pair = comparison.pair(first, second)
        assert pair is not None
        shown.append(pair)
    shown.sort(key=lambda pair: (order[pair.first], order[pair.second]))
    # What most readers ask first: the best one, and the base model.
    asked = [
        each for each in shown if comparison.best in (each.first, each.second) or "base" in (each.first, each.second)
    ]
    rest = [each for each in shown if each not in asked]
    test = comparison.pairs[0].test
    said = (
        f"Tests: {test}, two-sided, on the same {comparison.num_questions:,} questions in "
        f"{counted(comparison.num_groups, 'group')}; p is corrected for {counted(len(shown), 'pair')} (Holm), "
        "intervals are not. “Would show” is the smallest difference found in four of five cases on such questions."
    )
    return join(
        table("Beside the best arm and the base model", _PAIR_HEADER, [_pair_row(comparison, each) for each in asked]),
        tag("p", said, class_="soft"),
        tag(
            "details",
            tag("summary", "The other pairs"),
            table("Every other pair", _PAIR_HEADER, [_pair_row(comparison, each) for each in rest]),
        )
        if rest
        else None,
    )


_PAIR_HEADER: tuple[Content, ...] = (
    "arm",
    tag("span", "against"),
    "difference",
    "95 % interval",
    "p",
    "would show",
    tag("span", "finding"),
)


def _pair_row(comparison: Comparison, pair: Pair) -> tuple[Content, ...]:
    interval = "too few" if pair.interval is None else f"{signed(pair.interval[0])} to {signed(pair.interval[1])}"
    finding: str = pair.finding
    if finding == "not distinguishable":
        finding = f"not distinguishable at n = {comparison.num_questions:,}"
    elif finding == "too few":
        finding = f"{comparison.num_questions:,} questions can show nothing"
    return (
        words(pair.first),
        words(pair.second),
        signed(pair.difference),
        interval,
        p_value(pair.p),
        "nothing" if pair.detectable is None else f"{pair.detectable:.3f}",
        words(finding),
    )
