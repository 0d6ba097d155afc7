"""An evaluation of a router as one HTML page and as JSON."""

from __future__ import annotations

from pathlib import Path

from engine.evaluation.figures import Estimate, Evaluation, RoutedFigures
from engine.evaluation.report_robustness import robustness_lines, robustness_section
from engine.evaluation.report_sections import (
    arms_section,
    cost_section,
    made_section,
    order_section,
    overhead_wording,
    rivals_section,
    sources_section,
    sureness_section,
)
from engine.evaluation.verdict import gained, spread
from engine.report.document import Tone, document, write_document
from engine.report.html import Html
from engine.report.plots import check_plotter
from engine.report.wording import counted


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write report.html, one file that needs no network, and report.json with the same figures, over older ones.

    The same evaluation gives the same files. Returns: the path of report.html.
    Raises: ConfigError without matplotlib; SwitchyardError when the folder cannot be written.
    """
    check_plotter()
    return write_document(folder, page(evaluation), evaluation.to_json())


def page(evaluation: Evaluation) -> Html:
    """The whole document."""
    verdict, figures = evaluation.verdict, evaluation.routed
    tone: Tone = "good" if verdict.is_learned else "mixed"
    sections = [arms_section(evaluation)]
    changed = [] if evaluation.robustness is None else [robustness_section(evaluation.robustness)]
    if figures is not None:
        sections = [
            rivals_section(evaluation, figures),
            *sections,
            cost_section(figures),
            order_section(figures),
            sureness_section(figures),
            sources_section(figures),
        ]
    day = evaluation.created[:16].replace("T", " ")
    about = f"{counted(evaluation.num_questions, 'question')} of {evaluation.origin}, {day} UTC"
    return document(
        title=evaluation.title,
        heading=evaluation.title,
        about=about,
        headline=verdict.headline,
        reasons=verdict.reasons,
        tone=tone,
        sections=[*sections, *changed, made_section(evaluation)],
    )


def summary(evaluation: Evaluation) -> list[str]:
    """The evaluation in lines for a terminal."""
    lines = [evaluation.verdict.headline, *(f"  {reason}" for reason in evaluation.verdict.reasons)]
    lines.append("")
    lines.append(f"  {'arm':<28} {'quality':>8} {'mean ms':>9} {'p95 ms':>9} {'routed to':>10}")
    lines += [
        f"  {each.name:<28} {each.quality.value:>8.3f} {each.mean_ms:>9,.0f} {each.p95_ms:>9,.0f} {each.chosen:>10.0%}"
        for each in evaluation.arms
    ]
    if evaluation.routed is not None:
        lines += _routed(evaluation.routed)
        if evaluation.num_sources > 1:
            lines += ["", *_sources(evaluation.routed)]
    if evaluation.overhead is not None:
        lines += ["", f"  a decision from signals: {overhead_wording(evaluation.overhead)}"]
    if evaluation.robustness is not None:
        lines += ["", *robustness_lines(evaluation.robustness)]
    return lines


def _routed(figures: RoutedFigures) -> list[str]:
    p95 = figures.p95_ms
    found = [f"  {'as routed':<28} {figures.quality.value:>8.3f} {figures.mean_ms:>9,.0f} {p95:>9,.0f}", ""]
    for name, estimate in (("quality as routed", figures.quality), ("lost against the best arm", figures.regret)):
        found.append(f"  {name}: {_estimate(estimate)}")
    for pair in figures.pairs:
        if pair.auroc is not None:
            found.append(
                f"  AUROC {pair.first} | {pair.second}: {pair.auroc:.3f} ({spread(pair.interval)}; "
                f"{counted(pair.num_rows, 'question')})"
            )
    return found


def _sources(figures: RoutedFigures) -> list[str]:
    found = [f"  {'source':<28} {'questions':>9} {'single arm':>11} {'as routed':>10}  difference"]
    for each in figures.sources:
        gain = gained(Estimate(each.difference, each.gain))
        found.append(f"  {each.source:<28} {each.num_rows:>9,} {each.single:>11.3f} {each.routed:>10.3f}  {gain}")
    return found


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({spread(estimate.interval)})"
