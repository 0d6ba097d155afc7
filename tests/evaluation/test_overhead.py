"""What a decision costs, as the report says it."""

from __future__ import annotations

from dataclasses import replace

from made_outcomes import decided_by_first, made
from made_router import artefact

from engine.evaluation.evaluate import evaluate_unseen, unseen_questions
from engine.evaluation.figures import Overhead
from engine.evaluation.overhead import BATCH, measure_overhead
from engine.evaluation.report import page, summary

OUTCOMES = made(60, decided_by_first, name="d", seed=4)


def test_overhead_is_measured_alone_and_in_batches():
    router = artefact()
    found = measure_overhead(router, unseen_questions(router, OUTCOMES).table)
    assert 0 < found.p50_ms <= found.p95_ms
    assert found.batched_ms > 0
    assert found.batch == BATCH


def test_report_and_lines_say_what_a_decision_costs():
    router = artefact()
    evaluation = evaluate_unseen(router, unseen_questions(router, OUTCOMES), created="2026-01-02T03:04:05")
    assert not any("from signals" in line for line in summary(evaluation))
    timed = replace(evaluation, overhead=Overhead(0.251, 0.4, 32, 0.0123))
    said = "0.25 ms (95th percentile 0.40) alone, 0.012 ms each of 32 at once"
    assert f"  a decision from signals: {said}" in summary(timed)
    assert said in page(timed)
    assert timed.to_json()["overhead"]["batched_ms"] == 0.0123
