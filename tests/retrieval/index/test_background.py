"""What unrelated questions score in a collection."""

from __future__ import annotations

import numpy as np
import pytest

from engine.retrieval.index.background import BackgroundMeter, background_questions
from engine.retrieval.index.cpu_rows import CpuRows
from engine.values import DocumentWrite, Query


def unit_vectors(seed: int, count: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_there_are_64_distinct_questions():
    questions = background_questions()
    assert len(set(questions)) == 64
    assert all(question.endswith("?") or question == "What rhymes with orange?" for question in questions)


def test_background_is_mean_and_deviation_of_the_best_scores():
    rows, questions = CpuRows(8), unit_vectors(1, 64)
    stored = unit_vectors(2, 30)
    rows.append(np.arange(30), stored)
    meter = BackgroundMeter()
    meter.refresh(rows, questions)
    best = (questions @ stored.T).max(axis=1)
    assert meter.background is not None
    assert meter.background.mean == pytest.approx(best.mean(), abs=1e-5)
    assert meter.background.std == pytest.approx(best.std(), abs=1e-5)
    assert meter.background.num_questions == 64


def test_background_is_measured_anew_when_the_number_of_chunks_has_changed_by_more_than_a_tenth():
    rows, questions = CpuRows(8), unit_vectors(1, 64)
    rows.append(np.arange(30), unit_vectors(2, 30))
    meter = BackgroundMeter()
    meter.refresh(rows, questions)
    first = meter.background
    rows.append(np.arange(30, 33), questions[:3])
    meter.refresh(rows, questions)
    assert meter.background == first
    rows.append(np.arange(33, 34), questions[3:4])
    meter.refresh(rows, questions)
    assert meter.background != first
    rows.remove(range(15))
    meter.refresh(rows, questions)
    assert meter.background is None


def test_evidence_carries_the_background_from_20_chunks_on(retriever):
    def background():
        (found,) = retriever.evidence([Query("x", "docs", 1)])
        return found.background

    retriever.write("docs", [DocumentWrite(f"d{i}", b"Page %d of many." % i) for i in range(19)])
    assert background() is None
    retriever.write("docs", [DocumentWrite("d19", b"Page 19 of many.")])
    assert background().num_questions == 64
    assert -1 <= background().mean <= 1
