"""What a run found, to JSON and back."""

from __future__ import annotations

import json

import pytest

from engine.errors import TrainingDataError
from engine.tuning.outcome import (
    Answer,
    Calibration,
    CurvePoint,
    Evaluation,
    Outcome,
    Prediction,
    SliceMetrics,
    TrainingRun,
    outcome_from_json,
)
from engine.tuning.training.events import HistoryPoint

POINT = HistoryPoint(step=4, epoch=1.0, train_loss=1.5, valid_loss=1.25, metric=0.5)
OUTCOME = Outcome(
    name="bot",
    task="classify",
    metric="accuracy",
    created="2026-01-01T00:00:00+00:00",
    base_model="tiny",
    base_digest="b" * 64,
    adapter_digest="a" * 64,
    data_source="data.jsonl",
    data_digest="d" * 64,
    instruction="Classify.",
    guard={"verdict": "ok"},
    run=TrainingRun({"rank": 8}, (POINT,), POINT, 4, "finished", 0.5, 100.0, 1, 0),
    evaluations=(
        Evaluation(
            name="validation",
            source="data.jsonl",
            num_rows=1,
            slices=(SliceMetrics("all", 1, {"accuracy": 1.0}, {"accuracy": 0.0}),),
            predictions=(
                Prediction(3, "<b>", ("a",), Answer("a", 1.0, 0.1, 0.9, 0.8), Answer("b", 0.0, 2.0, 0.6, 0.5)),
            ),
        ),
    ),
    num_train=9,
    num_validation=1,
    num_train_tokens=90,
    labels=("a", "b"),
    label_texts=("a", "b"),
    train_lines=(1, 2),
    calibration=Calibration(1.25, 1, 0.5, 0.4, 0.1, 0.05),
    curve=(CurvePoint(5, {"accuracy": 0.5}, 0.1, 2.5),),
)


def test_outcome_comes_back_from_json_as_it_was():
    content = json.loads(json.dumps(OUTCOME.to_json()))
    assert outcome_from_json(content) == OUTCOME
    assert OUTCOME.evaluation("validation") == OUTCOME.evaluations[0]
    assert OUTCOME.evaluation("evaluation") is None


def test_damaged_outcome_is_refused_by_field():
    content = OUTCOME.to_json()
    content["run"]["best"]["step"] = "four"
    with pytest.raises(TrainingDataError, match=r"result.json: run.best.step: .*Train again"):
        outcome_from_json(content)
    with pytest.raises(TrainingDataError, match="has format 2, this version reads 1"):
        outcome_from_json(OUTCOME.to_json() | {"format": 2})
