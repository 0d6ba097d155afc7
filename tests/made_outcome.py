"""Outcomes of tuning runs that never ran, for tests of what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.tuning.outcome import (
    Answer,
    Baseline,
    Calibration,
    Context,
    CurvePoint,
    Evaluation,
    Metrics,
    Outcome,
    Prediction,
    SliceMetrics,
    TrainingRun,
)
from engine.tuning.training.events import HistoryPoint

LABELS = ("card", "pin", "transfer")


def history(*losses: tuple[float, float], metrics: Sequence[float] = ()) -> tuple[HistoryPoint, ...]:
    """An evaluation each 10 steps with (training, validation) losses."""
    return tuple(
        HistoryPoint(10 * number, number / 4, train, valid, metrics[number - 1] if metrics else None)
        for number, (train, valid) in enumerate(losses, start=1)
    )


def run_of(points: tuple[HistoryPoint, ...], best: int = -1, **changes: Any) -> TrainingRun:
    """A run with these evaluations, of which `best` was kept."""
    kept = points[best] if points else HistoryPoint(0, 0.0, 0.0, 0.0, None)
    settings = {"rank": 8, "learning_rate": 1e-3, "decay": "cosine"}
    run = TrainingRun(settings, points, kept, 40, "finished", 2.5, 1234.5, 2**31, 0)
    return replace(run, **changes)


def labelled(
    right_after: Sequence[bool], right_before: Sequence[bool] | None = None, *, name: str = "evaluation"
) -> Evaluation:
    """Rows of `classify` in turn of each label; a wrong answer is the next label."""
    predictions = []
    for place, is_right in enumerate(right_after):
        label, wrong = LABELS[place % 3], LABELS[(place + 1) % 3]
        sure = 0.9 if is_right else 0.6
        after = Answer(label if is_right else wrong, float(is_right), 0.1, sure, sure - 0.05)
        before = None
        if right_before is not None:
            before = Answer(label if right_before[place] else wrong, float(right_before[place]), 1.0, 0.5, 0.5)
        predictions.append(Prediction(place + 1, f"text {place}", (label,), after, before, place % 5 == 0))
    return evaluation_of(predictions, "accuracy", name)


def answered(pairs: Sequence[tuple[float, float]], metric: str = "f1") -> Evaluation:
    """Rows of `qa` or `chat` with the quality before and after."""
    predictions = [
        Prediction(place + 1, f"question {place}", ("right",), Answer("new", after, 0.5), Answer("old", before, 2.0))
        for place, (before, after) in enumerate(pairs)
    ]
    return evaluation_of(predictions, metric, "validation")


def evaluation_of(predictions: Sequence[Prediction], metric: str, name: str) -> Evaluation:
    """The evaluation with its only slice."""
    after: Metrics = {metric: mean([each.after.quality for each in predictions]), "loss": 0.5}
    known = [each.before.quality for each in predictions if each.before is not None]
    before: Metrics | None = {metric: mean(known)} if known else None
    whole = SliceMetrics("all", len(predictions), after, before)
    kind = "validation" if name == "validation" else "evaluation"
    return Evaluation(kind, "rows.jsonl", len(predictions), (whole,), tuple(predictions))


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / max(1, len(values))


def baseline_of(evaluation: Evaluation, right: Sequence[bool], name: str = "TF-IDF + LR") -> Baseline:
    """Answers that are right where `right` says so."""
    answers = tuple(each.targets[0] if hit else "?" for each, hit in zip(evaluation.predictions, right, strict=True))
    metrics = {"accuracy": mean([float(hit) for hit in right])}
    return Baseline(name, 2.0, {evaluation.name: metrics}, {evaluation.name: answers})


def outcome_of(*evaluations: Evaluation, task: Any = "classify", context: Context = "none", **changes: Any) -> Outcome:
    """An outcome in which all that may be missing is missing."""
    labels = LABELS if task == "classify" else ()
    outcome = Outcome(
        name="bot",
        task=task,
        metric="accuracy" if task == "classify" else "f1",
        created="2026-01-02T03:04:05+00:00",
        base_model="tiny",
        base_digest="b" * 64,
        adapter_digest="a" * 64,
        data_source="rows.jsonl",
        data_digest="d" * 64,
        instruction="",
        guard={"verdict": "ok", "findings": []},
        run=run_of(history((2.0, 2.1), (1.0, 1.2), metrics=(0.4, 0.7))),
        evaluations=evaluations,
        num_train=90,
        num_validation=10,
        num_train_tokens=900,
        context=context,
        labels=labels,
        label_texts=labels,
    )
    return replace(outcome, **changes)


def full_outcome(guard: dict[str, Any] | None = None) -> Outcome:
    """A `classify` run with everything that a report can show."""
    validation = labelled([True] * 40, [False] * 40, name="validation")
    evaluation = labelled([place % 4 > 0 for place in range(60)], [place % 3 == 0 for place in range(60)])
    exceptions = [each for each in evaluation.predictions if each.is_exception]
    slices = (*evaluation.slices, SliceMetrics("exceptions", len(exceptions), {"accuracy": 0.5}, {"accuracy": 0.25}))
    evaluation = replace(evaluation, slices=slices)
    points = history((2.0, 1.9), (0.9, 0.8), (0.3, 0.9), (0.05, 1.5), metrics=(0.5, 0.8, 0.7, 0.6))
    finding = {"level": "risky", "reason": "Few rows.", "fix": "Add more."}
    return outcome_of(
        validation,
        evaluation,
        guard=guard or {"verdict": "risky", "findings": [finding]},
        run=run_of(points, best=1, peak_gpu_bytes=2**30),
        exceptions_source="edge.jsonl",
        num_exceptions=12,
        exceptions_factor=3,
        calibration=Calibration(1.5, 40, 0.5, 0.4, 0.1, 0.05),
        curve=(CurvePoint(30, {"accuracy": 0.5, "loss": 1.0}, 0.5, 10.0), CurvePoint(60, {"accuracy": 0.7}, 1.0, 20.0)),
        baselines=(baseline_of(evaluation, [place % 2 == 0 for place in range(60)]),),
        minutes_in_all=4.0,
    )
