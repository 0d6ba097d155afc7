"""How a comparison puts arms and differences."""

from __future__ import annotations

from engine.evaluation.compare.figures import ArmFigures, Comparison, Pair
from engine.evaluation.figures import Estimate
from engine.report.html import Html, named, tag
from engine.report.wording import duration, signed

_MEANING = {
    "base": "the base model alone",
    "base+context": "RAG: the base model with passages",
    "few-shot": "the base model, shown training examples",
    "auto": "the router's choice",
}


def meaning(name: str) -> str:
    """An arm in words."""
    if name in _MEANING:
        return _MEANING[name]
    return (
        "hybrid: the fine-tuned adapter with passages" if name.endswith("+context") else "the fine-tuned adapter alone"
    )


def spelled(estimate: Estimate) -> str:
    """0.712 (95 % interval 0.650 to 0.771)"""
    if estimate.interval is None:
        return f"{estimate.value:.3f} (too few for an interval)"
    low, high = estimate.interval
    return f"{estimate.value:.3f} (95 % interval {low:.3f} to {high:.3f})"


def differs(pair: Pair) -> str:
    """The difference with its interval and its p, or that none can be told."""
    interval = (
        "" if pair.interval is None else f", 95 % interval {signed(pair.interval[0])} to {signed(pair.interval[1])}"
    )
    return f"{signed(pair.difference)}{interval}, p {p_value(pair.p)}"


def p_value(p: float) -> str:
    """0.034, or < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def ranked(comparison: Comparison) -> list[ArmFigures]:
    """The arms, best first."""
    return sorted(comparison.arms, key=lambda each: -each.quality.value)


def arm_name(arm: ArmFigures) -> Html:
    """An arm's name, marked where its figures cannot be believed."""
    doubt = tag("span", "not to be believed", class_="distrusted") if arm.untrusted else None
    return tag("span", named(arm.name), " " if doubt else None, doubt, class_="wraps")


def words(text: str) -> Html:
    """A cell of words, which may take several lines."""
    return tag("span", text, class_="wraps")


def whole(value: float | None) -> str:
    """1,234; nothing where it is not known."""
    return "" if value is None else f"{value:,.0f}"


def minutes(value: float | None) -> str:
    """Minutes as people say them; nothing where they are not known."""
    return "" if value is None else duration(60 * value)
