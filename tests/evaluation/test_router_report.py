"""The report of a router holds what was measured, once, in a page that needs nothing else."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from made_outcomes import decided_by_first, made

from engine.evaluation.report import page, summary, write_report
from engine.evaluation.training import train_router
from engine.routing.artefact import Objective


@pytest.fixture(scope="module")
def evaluation():
    outcomes = made(330, decided_by_first, sources=("<docs>", "<docs>", "trivia"))
    return train_router(outcomes, Objective(), created="2026-01-02T03:04:05+00:00").evaluation


def test_page_has_its_sections_and_fetches_nothing(evaluation):
    written = page(evaluation)
    assert re.findall(r'<section id="([a-z]+)"', written) == [
        *("rivals", "arms", "costs", "order", "sureness", "sources", "made")
    ]
    assert not re.search(r"<script|\bsrc=|https?://(?!www\.w3\.org)", written)
    assert "&lt;docs&gt;" in written
    assert "<docs>" not in written
    assert written.count("<svg") == 3
    assert evaluation.verdict.headline in written
    assert "TF-IDF + LR was not run: the outcomes hold no texts of questions." in written
    ids = re.findall(r'\bid="([^"]+)"', written)
    assert len(ids) == len({*ids})


def test_json_holds_the_figures_of_the_page(evaluation, tmp_path):
    found = write_report(evaluation, tmp_path / "new" / "folder")
    content = json.loads((found.parent / "report.json").read_text())
    assert content == evaluation.to_json()
    assert f"{content['routed']['quality']['value']:.3f}" in found.read_text()
    first = found.read_bytes()
    assert write_report(evaluation, found.parent).read_bytes() == first


def test_summary_is_said_in_lines(evaluation):
    lines = summary(evaluation)
    assert lines[0] == evaluation.verdict.headline
    assert any(line.startswith("  AUROC base | base+context: 0.") for line in lines)


def test_page_and_lines_say_how_sources_count_and_whether_one_is_answered_worse(evaluation):
    written, lines = page(evaluation), summary(evaluation)
    assert " on 330 questions of 2 sources, each counted alike, that it was not fitted on" in lines[0]
    said = "no source lies below the best single arm beyond its interval"
    assert f"  {said}" in lines
    assert f"<p>N{said[1:]}.</p>" in written
    assert "count each source alike" in written
    by_source = {each.source: each for each in evaluation.routed.sources}
    assert evaluation.routed.quality.value == pytest.approx(np.mean([each.routed for each in by_source.values()]))
    (line,) = [line for line in lines if line.startswith("  trivia ")]
    trivia = by_source["trivia"]
    assert line.split()[1:5] == ["110", f"{trivia.single:.3f}", f"{trivia.routed:.3f}", f"{trivia.difference:+.3f}"]


def test_page_of_one_source_says_nothing_of_sources_that_count_alike():
    found = train_router(made(320, decided_by_first), Objective(), created="2026-01-02T03:04:05+00:00").evaluation
    assert "320 questions that it was not fitted on" in summary(found)[0]
    assert not any("source" in line for line in summary(found))
    assert "count each source alike" not in page(found)


def test_page_of_what_could_not_be_learned_has_the_arms_alone():
    outcomes = made(40, decided_by_first)
    found = train_router(outcomes, Objective(), created="2026-01-02T03:04:05+00:00").evaluation
    written = page(found)
    assert re.findall(r'<section id="([a-z]+)"', written) == ["arms", "made"]
    assert "40 questions are too few; 300 are needed" in written
