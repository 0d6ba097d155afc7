"""The evidence head where the truth is known: a signal that decides, noise, thresholds on held-out groups."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import TrainingDataError
from engine.evaluation.evidence import fit_evidence
from engine.routing.abstain_files import read_evidence_head, write_evidence_head
from engine.routing.signals.table import SignalTable

NUM = 600
NAMES = ("search.z_best", "search.noise", "search.never")
GROUPS = [f"article{place % 20}" for place in range(NUM)]


def drawn(seed: int = 0, lead: float = 2.0) -> tuple[SignalTable, np.ndarray]:
    """Answerable questions have a `z_best` that is `lead` standard deviations higher."""
    draw = np.random.default_rng(seed)
    truth = draw.random(NUM) < 0.5
    values = np.column_stack([draw.normal(truth * lead), draw.normal(size=NUM), np.full(NUM, np.nan)])
    return SignalTable(NAMES, values), truth


def test_a_signal_that_decides_is_found_and_its_threshold_holds_on_other_groups():
    head, report = fit_evidence(*drawn(), GROUPS, encoder="e" * 64)
    assert report.auroc == pytest.approx(0.92, abs=0.03)
    assert report.coverage == pytest.approx(0.9, abs=0.03)
    # Two normals two deviations apart: 0.236 of the others lie above the tenth percentile of the answerable ones.
    assert report.false_answers == pytest.approx(0.24, abs=0.06)
    assert report.false_share < 0.26 and report.ece < 0.06
    assert head.signals.names == NAMES[:2] and head.encoder == "e" * 64
    assert abs(head.signals.weights[0]) > 5 * abs(head.signals.weights[1])


def test_the_threshold_keeps_the_share_that_was_asked_for():
    table, truth = drawn()
    for coverage in (0.5, 0.95):
        head, report = fit_evidence(table, truth, GROUPS, coverage=coverage)
        assert report.coverage == pytest.approx(coverage, abs=0.04)
        assert (head.probabilities(table)[truth] >= head.threshold).mean() == pytest.approx(coverage, abs=0.04)


def test_noise_is_told_apart_no_better_than_by_chance():
    _, report = fit_evidence(*drawn(lead=0.0), GROUPS)
    assert report.auroc is not None and abs(report.auroc - 0.5) < 0.08
    assert report.false_answers == pytest.approx(0.9, abs=0.06)


def test_the_same_questions_give_the_same_head_which_is_read_as_it_was_written(tmp_path):
    table, truth = drawn()
    head, _ = fit_evidence(table, truth, GROUPS)
    again, _ = fit_evidence(table, truth, GROUPS)
    write_evidence_head(tmp_path, head)
    read = read_evidence_head(tmp_path)
    assert head.probabilities(table).tolist() == again.probabilities(table).tolist()
    assert read.probabilities(table).tolist() == head.probabilities(table).tolist()
    assert read.threshold == head.threshold


def test_too_few_questions_of_a_kind_or_groups_are_refused():
    table, truth = drawn()
    with pytest.raises(TrainingDataError, match="0 of 600 questions can be answered"):
        fit_evidence(table, np.zeros(NUM, bool), GROUPS)
    with pytest.raises(TrainingDataError, match="of 3 groups"):
        fit_evidence(table, truth, [str(place % 3) for place in range(NUM)])
    with pytest.raises(TrainingDataError, match="1 of them with answerable ones"):
        fit_evidence(table, truth, ["all" if kind else str(place % 9) for place, kind in enumerate(truth)])
