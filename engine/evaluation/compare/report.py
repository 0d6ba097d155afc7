"""A comparison as one HTML page, as JSON, as a table of answers, and as lines for a terminal."""

from __future__ import annotations

from pathlib import Path

from engine.evaluation.compare.figures import Comparison
from engine.evaluation.compare.per_query import write_answers
from engine.evaluation.compare.running import Compared
from engine.evaluation.compare.sections_answers import (
    answers_section,
    differing_section,
    made_section,
    sources_section,
    updates_section,
)
from engine.evaluation.compare.sections_costs import costs_section, search_section
from engine.evaluation.compare.sections_quality import glance_section, quality_section
from engine.evaluation.compare.wording import p_value, spelled
from engine.report.document import document, write_document
from engine.report.html import Html
from engine.report.plots import check_plotter
from engine.report.wording import counted, duration, signed

# So many reasons stand beside the verdict; the rest follow below the first figures.
_NUM_FIRST = 5


def write_report(compared: Compared, folder: Path) -> Path:
    """Write report.html, report.json and per_query.csv over older ones. Returns: the path of report.html.

    Raises: ConfigError without matplotlib; SwitchyardError when the folder cannot be written.
    """
    check_plotter()
    write_answers(compared.sheet, folder)
    return write_document(folder, page(compared), compared.comparison.to_json())


def page(compared: Compared) -> Html:
    """The whole document: what a manager needs first, then what an engineer asks."""
    comparison = compared.comparison
    verdict, setting = comparison.verdict, comparison.setting
    sections = [
        glance_section(comparison, verdict.reasons[_NUM_FIRST:]),
        quality_section(comparison),
        costs_section(comparison),
        search_section(comparison),
        updates_section(comparison),
        answers_section(comparison),
        sources_section(comparison),
        differing_section(comparison, compared.sheet),
        made_section(comparison),
    ]
    day = setting.created[:16].replace("T", " ")
    return document(
        title=f"{setting.base_model}: arms compared",
        heading="Arms compared",
        about=f"{counted(comparison.num_questions, 'question')} of {setting.origin}, {setting.base_model}, {day} UTC",
        headline=verdict.headline,
        reasons=verdict.reasons[:_NUM_FIRST],
        tone=comparison.tone,
        sections=[each for each in sections if each is not None],
    )


def summary(comparison: Comparison) -> list[str]:
    """The comparison in lines for a terminal."""
    lines = [comparison.verdict.headline, *(f"  {reason}" for reason in comparison.verdict.reasons), ""]
    width = max(len("arm"), *(len(each.name) for each in comparison.arms))
    lines.append(
        f"  {'arm':<{width}} {'quality':>8}  {'95 % interval':<16} {'p50 ms':>8} {'p95 ms':>8}  against the best"
    )
    for each in sorted(comparison.arms, key=lambda arm: -arm.quality.value):
        interval = "too few" if each.quality.interval is None else "{:.3f} to {:.3f}".format(*each.quality.interval)
        pair = comparison.pair(each.name, comparison.best)
        against = "best" if pair is None else f"{signed(pair.difference)}, {pair.finding} (p {p_value(pair.p)})"
        p50, p95 = (f"{value:,.0f}" if value is not None else "" for value in (each.p50_ms, each.p95_ms))
        doubt = "  (not to be believed)" if each.untrusted else ""
        lines.append(
            f"  {each.name:<{width}} {each.quality.value:>8.3f}  {interval:<16} {p50:>8} {p95:>8}  {against}{doubt}"
        )
    if comparison.bound is not None:
        lines.append(f"  best arm for each question, after the fact: {spelled(comparison.bound.quality)}")
    if comparison.search is not None:
        found = comparison.search
        lines.append(
            f"  search: recall@5 {found.recall_5:.3f}, MRR@10 {found.mrr_10:.3f}, nDCG@10 {found.ndcg_10:.3f} "
            f"({counted(found.num_rows, 'question')})"
        )
    if comparison.refresh is not None:
        lines.append(
            f"  one document of {counted(comparison.refresh.num_chunks, 'passage')} is found anew after "
            f"{duration(comparison.refresh.seconds)}"
        )
    return [*lines, *(f"  {note}" for note in (*comparison.notes, *comparison.updates_skipped))]
