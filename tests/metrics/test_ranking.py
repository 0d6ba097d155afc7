"""AUROC by worked examples, by counting pairs, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.metrics.ranking import auroc, auroc_gain_interval, auroc_interval


@pytest.mark.parametrize(
    ("scores", "is_positive", "expected"),
    [
        ([0.1, 0.9], [False, True], 1.0),
        ([0.9, 0.1], [False, True], 0.0),
        ([0.5, 0.5], [False, True], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [False, False, True, True], 0.75),
        ([1.0, 2.0], [True, True], None),
        ([], [], None),
    ],
)
def test_auroc_of_worked_examples(scores, is_positive, expected):
    assert auroc(scores, is_positive) == expected


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(rows):
    positives = [score for score, is_positive in rows if is_positive]
    negatives = [score for score, is_positive in rows if not is_positive]
    pairs = [(high > low) + (high == low) / 2 for high in positives for low in negatives]
    found = auroc([float(score) for score, _ in rows], [is_positive for _, is_positive in rows])
    assert found == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_interval_holds_the_value_and_narrows_with_rows():
    draw = np.random.default_rng(1)
    is_positive = np.arange(400) % 2 == 0
    scores = draw.normal(size=400) + is_positive
    value, (low, high) = auroc(scores, is_positive), auroc_interval(scores, is_positive)
    few_low, few_high = auroc_interval(scores[:40], is_positive[:40])
    assert low < value < high
    assert high - low < few_high - few_low
    assert auroc_interval(scores, is_positive) == (low, high)
    # Hanley and McNeil (1982): the standard error at AUROC 0.76 with 200 of each is 0.024.
    assert high - low == pytest.approx(2 * 1.96 * 0.024, rel=0.15)


def test_paired_interval_sees_a_gain_that_two_intervals_would_not():
    draw = np.random.default_rng(2)
    is_positive = np.arange(300) % 2 == 0
    weak = draw.normal(size=300) + is_positive
    strong = weak + 0.3 * is_positive
    low, high = auroc_gain_interval(strong, weak, is_positive)
    assert 0 < low < high
    assert auroc_interval(strong, is_positive)[0] < auroc_interval(weak, is_positive)[1]
    assert auroc_gain_interval(weak, weak, is_positive) == (0.0, 0.0)


def test_no_interval_of_few_rows_or_of_one_class():
    assert auroc_interval([0.0] * 29, [True] + [False] * 28) is None
    assert auroc_interval([0.0] * 40, [True] * 40) is None
    assert auroc_gain_interval([0.0] * 40, [0.0] * 40, [False] * 40) is None


def test_a_rare_class_is_drawn_until_it_occurs():
    scores = np.arange(40.0)
    assert auroc_interval(scores, scores == 39) == (1.0, 1.0)


def test_scores_without_a_rank_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auroc([0.0, float("nan")], [True, False])
    with pytest.raises(ValueError, match=r"\(1,\) and truths \(2,\)"):
        auroc([0.0], [True, False])
