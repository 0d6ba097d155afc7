"""The sections of a report as one page that needs nothing else."""

from __future__ import annotations

import re
from importlib.resources import files

from engine.tuning.guard.wording import counted
from engine.tuning.outcome import Outcome
from engine.tuning.report.html import Html, tag
from engine.tuning.report.judgement import Judgement
from engine.tuning.report.sections_data import guard_section, run_section
from engine.tuning.report.sections_quality import (
    calibration_section,
    labels_sections,
    models_section,
    samples_section,
    slices_section,
)
from engine.tuning.report.sections_training import curve_section, learning_section

# Nothing is fetched and nothing runs, whatever a text in the data says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HEADING = re.compile(r'<section id="([a-z]+)"[^>]*><h2[^>]*>(.*?)</h2>')


def page(outcome: Outcome, judgement: Judgement) -> Html:
    """The whole document."""
    evaluation = judgement.evaluation
    sections = [
        models_section(outcome, judgement),
        learning_section(outcome),
        curve_section(outcome),
        slices_section(outcome),
        *([] if evaluation is None else labels_sections(outcome, evaluation)),
        None if evaluation is None else calibration_section(outcome, evaluation),
        None if evaluation is None else samples_section(evaluation),
        guard_section(outcome),
        run_section(outcome),
    ]
    written = [each for each in sections if each is not None]
    style = Html((files("engine.tuning.report") / "style.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{outcome.name}: tuning report"),
        tag("style", style),
    )
    body = tag("body", tag("main", _header(outcome, judgement), _contents(written), written))
    return Html("<!doctype html>\n" + tag("html", head, body, lang="en") + "\n")


def _header(outcome: Outcome, judgement: Judgement) -> Html:
    day = outcome.created[:16].replace("T", " ")
    about = f"{outcome.task} on {outcome.base_model}, {counted(outcome.num_train, 'training row')}, {day} UTC"
    reasons = tag("ul", [tag("li", reason) for reason in judgement.reasons]) if judgement.reasons else None
    return tag(
        "header",
        tag("h1", f"Tuning report: {outcome.name}"),
        tag("span", about, class_="soft"),
        tag("div", tag("p", judgement.headline, class_="headline"), reasons, class_=f"verdict {judgement.tone}"),
    )


def _contents(sections: list[Html]) -> Html:
    """Links to the sections, by their headings."""
    found = [match.groups() for each in sections if (match := _HEADING.match(each))]
    items = [tag("li", tag("a", Html(title), href=f"#{identifier}")) for identifier, title in found]
    return tag("nav", tag("ul", items), aria_label="Contents")
