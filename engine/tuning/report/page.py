"""The sections of a report as one page that needs nothing else."""

from __future__ import annotations

from engine.report.document import document
from engine.report.html import Html
from engine.report.wording import counted
from engine.tuning.outcome import Outcome
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
    day = outcome.created[:16].replace("T", " ")
    return document(
        title=f"{outcome.name}: tuning report",
        heading=f"Tuning report: {outcome.name}",
        about=f"{outcome.task} on {outcome.base_model}, {counted(outcome.num_train, 'training row')}, {day} UTC",
        headline=judgement.headline,
        reasons=judgement.reasons,
        tone=judgement.tone,
        sections=[each for each in sections if each is not None],
    )
